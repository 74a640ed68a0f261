package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/cmd/postern/recipients"
)

// recipients has the commands about recipients that get no mail.
func (a *app) recipients() recipients.Shell {
	return recipients.Shell{
		In: a.stdin, Out: a.stdout, Err: a.stderr, Noun: noun, Invalid: invalidUse,
		With: func(ctx context.Context, do func(context.Context, *pgxpool.Pool, string) error) error {
			return a.withUsers(ctx, func(ctx context.Context, users *accounts) error { return do(ctx, users.pool, users.actor) })
		},
	}
}
