package database

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"postern/migrations"
)

// RequireSchema returns an error that says what to do unless the schema is one that
// this binary runs on: its own, or a newer one whose migrations say so.
func RequireSchema(ctx context.Context, conn *pgx.Conn) error {
	_, err := Schema(ctx, conn)
	return err
}

func Schema(ctx context.Context, conn *pgx.Conn) (migrations.Status, error) {
	status, err := migrations.Check(ctx, conn)
	if err != nil {
		return status, fmt.Errorf("read the schema's version: %w", err)
	}
	if err := status.Err(); err != nil {
		return status, err
	}
	if len(status.Pending) > 0 {
		return status, errors.New("the database's schema is older than this program: run 'postern migrate'")
	}
	return status, nil
}
