package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/policy/quota"
	"postern/relay/queue/desk"
	"postern/relay/seal"
	"postern/relay/upstream"
)

// accounts is what commands work on: users, and by pool all else, in the name of who acts.
type accounts struct {
	*auth.Store
	pool  *pgxpool.Pool
	actor string
}

// queue is the queue as these commands see it.
func (u *accounts) queue() *desk.Admin { return desk.NewAdmin(u.pool).As(u.actor) }

// upstreams are the smarthosts' accounts as these commands see them; sealer may be nil for
// what needs no password.
func (u *accounts) upstreams(sealer *seal.Sealer) *upstream.Store {
	return upstream.NewStore(u.pool, sealer).As(u.actor)
}

func (a *app) withUsers(ctx context.Context, do func(ctx context.Context, users *accounts) error) error {
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		who := a.actor()
		return userError(do(ctx, &accounts{auth.NewStore(pool).As(who), pool, who}))
	})
}

// onUsers makes the RunE of a command whose whole work is on the users.
func (a *app) onUsers(do func(ctx context.Context, users *accounts, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error { return do(ctx, users, args) })
	}
}

// userError marks errors in the arguments as usage errors.
func userError(err error) error {
	for _, kind := range []error{auth.ErrName, auth.ErrPattern, auth.ErrSuppressed, auth.ErrDoubtPolicy, auth.ErrPassword, quota.ErrLimit, auth.ErrNewCredential} {
		if errors.Is(err, kind) {
			return usageError{err.Error()}
		}
	}
	return err
}

// together makes changes to a user and to its mail: all or none. The nodes hear of it
// afterwards, for NOTIFY in a transaction makes all commits wait for each other.
func (u *accounts) together(ctx context.Context, change func(users *auth.Store, q *desk.Admin) (whose []int64, err error)) error {
	var whose []int64
	err := pgx.BeginFunc(ctx, u.pool, func(tx pgx.Tx) (err error) {
		whose, err = change(auth.NewStore(tx).As(u.actor), desk.NewAdmin(tx).As(u.actor))
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(whose)
	for _, id := range slices.Compact(whose) {
		_ = u.Announce(ctx, id) // nodes that do not hear it look for changes themselves
	}
	return nil
}

// heldMail says in words what a user has on hold and what to do about it; "" for nothing.
func heldMail(name string, n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("mail for %s of %s is held: 'postern queue release --user %s' releases it, 'postern queue cancel --user %s' deletes it\n",
		screen.Count(n, "recipient"), name, name, name)
}
