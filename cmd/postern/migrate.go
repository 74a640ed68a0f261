package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"postern/cmd/postern/database"
	"postern/migrations"
)

func (a *app) migrateCmd() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "bring the database's schema up to date",
		Long: `Applies the migrations that the database lacks, each in a transaction of its own, under
a lock, so it is safe to run on several nodes concurrently. Migrations only go forward.
Nodes of an older version keep working if each new migration says so in its first line
('Runs with'): migrate first, then restart the nodes one after another (docs/operate.md).

With --check nothing is changed: the exit status is 0 when the schema is current
and 1 when it is not.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDatabase(cmd.Context(), func(ctx context.Context, url string) error {
				return a.database.Watched(ctx, url, func(conn *pgx.Conn) error {
					if check {
						return a.checkSchema(ctx, conn)
					}
					return a.applyMigrations(ctx, conn)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; report whether the schema is current")
	return cmd
}

func (a *app) applyMigrations(ctx context.Context, conn *pgx.Conn) error {
	applied := 0
	err := migrations.Apply(ctx, conn, func(line string) {
		applied++
		fmt.Fprintln(a.stdout, line)
	})
	if err != nil || applied > 0 {
		return err
	}
	return a.checkSchema(ctx, conn)
}

func (a *app) checkSchema(ctx context.Context, conn *pgx.Conn) error {
	status, err := database.Schema(ctx, conn)
	if err != nil {
		return err
	}
	if status.Ahead() {
		_, err = fmt.Fprintln(a.stdout, "the schema is newer than this program, which may run on it")
		return err
	}
	_, err = fmt.Fprintln(a.stdout, "the schema is current")
	return err
}
