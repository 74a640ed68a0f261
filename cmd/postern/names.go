package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
)

// names are user names by id, for what the queue knows by id only.
type names map[int64]string

// userNames reads the names of users; those that were removed have none.
func userNames(ctx context.Context, pool *pgxpool.Pool, ids ...int64) (names, error) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	rows, err := pool.Query(ctx, `select id, name from app_user where id = any($1::bigint[])`, ids)
	if err != nil {
		return nil, fmt.Errorf("names of users: %w", err)
	}
	found := names{}
	var id int64
	var name string
	_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
		found[id] = name
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("names of users: %w", err)
	}
	return found, nil
}

// text is the user for people: "-" for the relay itself.
func (n names) text(id int64) string {
	if id == 0 {
		return "-"
	}
	if name := n[id]; name != "" {
		return name
	}
	return "removed user " + strconv.FormatInt(id, 10)
}

// userNamed finds a user by any spelling of its name.
func userNamed(ctx context.Context, pool *pgxpool.Pool, name string) (id int64, canonical string, err error) {
	if canonical, err = auth.CanonicalName(name); err != nil {
		return 0, "", usageError{err.Error()}
	}
	err = pool.QueryRow(ctx, `select id from app_user where name = $1`, canonical).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", fmt.Errorf("no user is named %q: see 'postern user list'", name)
	}
	if err != nil {
		return 0, "", fmt.Errorf("find user: %w", err)
	}
	return id, canonical, nil
}
