package main

import (
	"context"

	"github.com/spf13/cobra"

	"postern/cmd/postern/events"
	"postern/cmd/postern/webhook"
	"postern/internal/pg"
)

func (a *app) eventsCmd() *cobra.Command {
	return events.Command(a.stdout, a.warn, func(ctx context.Context, do func(context.Context, pg.DB) error) error {
		return a.withUsers(ctx, func(ctx context.Context, users *accounts) error { return do(ctx, users.pool) })
	}, invalidUse, noArguments)
}

// webhook has the commands about endpoints that are sent events.
func (a *app) webhook() webhook.Shell {
	return webhook.Shell{In: a.stdin, Out: a.stdout, Noun: noun, Invalid: invalidUse, Keys: a.sealingKeys, Load: a.source.Load, With: a.recipients().With}
}
