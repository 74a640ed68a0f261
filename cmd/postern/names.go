package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/relay/queue/desk"
)

// userNamed finds a user by any spelling of its name.
func userNamed(ctx context.Context, pool *pgxpool.Pool, name string) (id int64, canonical string, err error) {
	if canonical, err = auth.CanonicalName(name); err != nil {
		return 0, "", usageError{err.Error()}
	}
	u, err := auth.NewStore(pool).User(ctx, canonical)
	if errors.Is(err, auth.ErrNotFound) {
		return 0, "", fmt.Errorf("no user is named %q: see 'postern user list'", name)
	}
	return u.ID, canonical, err
}

// upstreamNamed finds an upstream. One that was removed is known for as long as mail is in
// the queue that was last tried by it.
func upstreamNamed(ctx context.Context, pool *pgxpool.Pool, name string) error {
	there, err := upstreamsOrMX(ctx, pool, "")
	if err != nil || slices.Contains(there, name) {
		return err
	}
	left, err := desk.NewAdmin(pool).List(ctx, desk.Filter{Upstream: name, Limit: 1})
	if err != nil || len(left) > 0 {
		return err
	}
	return fmt.Errorf("no upstream is named %q; there are %s", name, strings.Join(there, ", "))
}
