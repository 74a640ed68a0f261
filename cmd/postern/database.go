package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
)

// withDatabase finds the database and calls do with its URL. A private server
// that is not running is started for the time of the call.
func (a *app) withDatabase(ctx context.Context, do func(ctx context.Context, url string) error) error {
	cfg, _, err := a.source.Load()
	if err != nil {
		return err
	}
	return a.withDatabaseOf(ctx, cfg, do)
}

func (a *app) withDatabaseOf(ctx context.Context, cfg config.Config, do func(ctx context.Context, url string) error) error {
	err := database.With(ctx, cfg.Database, do)
	if errors.Is(err, database.ErrNone) {
		return usageError{err.Error()}
	}
	return err
}

// withPool runs a command's work on a small pool over a current schema.
func (a *app) withPool(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool) error) error {
	return a.withDatabase(ctx, func(ctx context.Context, url string) error {
		return a.database.Watched(ctx, url, func(conn *pgx.Conn) error {
			err := database.RequireSchema(ctx, conn)
			_ = conn.Close(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			pool, err := a.database.OpenPool(ctx, url, "command", 2, database.PrepareNothing)
			if err != nil {
				return err
			}
			defer pool.Close()
			return do(ctx, pool)
		})
	})
}
