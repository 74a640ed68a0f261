package auth

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// Identity returns the identity of a login as a user by one of its credentials, whether or
// not it would be let in: credential 0 is none in particular, and then the limits are those
// of the user. The error is ErrNotFound, or of the database.
func (s *Store) Identity(ctx context.Context, userID, credentialID int64) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	acct, err := s.current(ctx, userID, credentialID)
	if err != nil {
		return Identity{}, fmt.Errorf("read user %d: %w", userID, err)
	}
	if acct.id == 0 {
		return Identity{}, notFound(fmt.Sprintf("no user %d", userID))
	}
	return acct.identity(), nil
}

// Names returns the canonical names of users by id; those that were removed have none.
func (s *Store) Names(ctx context.Context, ids ...int64) (map[int64]string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, `select id, name from app_user where id = any($1::bigint[])`, ids)
	if err != nil {
		return nil, fmt.Errorf("names of users: %w", err)
	}
	names := make(map[int64]string, len(ids))
	var id int64
	var name string
	_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
		names[id] = name
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("names of users: %w", err)
	}
	return names, nil
}

// FindCredentials returns at most limit credentials that are not revoked and whose
// ids begin with the digits of prefix, the newest first.
func (s *Store) FindCredentials(ctx context.Context, prefix string, limit int) ([]Credential, error) {
	if prefix != "" {
		if _, err := strconv.ParseInt(prefix, 10, 64); err != nil {
			return nil, nil
		}
	}
	list, err := s.credentials(ctx, selectCredentialsByPrefix, prefix, limit)
	if err != nil {
		return nil, fmt.Errorf("find credentials: %w", err)
	}
	return list, nil
}

const selectCredentialsByPrefix = selectCredentials + `
	where c.revoked_at is null and starts_with(c.id::text, $1) order by c.id desc limit $2`
