package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Identity returns what a login as a user by one of its credentials would be, whether
// or not it would be let in: credential 0 is for none in particular, and then the limits
// are those of the user. The error is ErrNotFound, or of the database.
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

// Deed is a row of the audit: what an admin did.
type Deed struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor"` // the operating system's user
	Action string          `json:"action"`
	Object string          `json:"object"`
	Detail json.RawMessage `json:"detail"`
}

// DeedFilter chooses deeds; zero fields choose all.
type DeedFilter struct {
	Since time.Duration // done within so long, to the microsecond
	Actor string
	User  string // what concerns the user of this name: its own deeds, and those about its mail
	Limit int
}

const selectDeeds = `
	select id, at, actor, action, object, detail from audit
	where ($1 = interval '0' or at > now() - $1::interval) and ($2 = '' or actor = $2)
	  and ($4 = '' or object = $4 or detail->>'user' = $4 or exists (
		select from unnest(string_to_array(object, ', ')) part
		where part = 'user ' || $4 or part = 'user ' || (select u.id from app_user u where u.name = $4)))
	order by id desc limit $3`

// Audit returns the latest deeds, the newest first. The error is ErrName, or of the
// database.
func (s *Store) Audit(ctx context.Context, f DeedFilter) ([]Deed, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if f.User != "" {
		name, err := CanonicalName(f.User)
		if err != nil {
			return nil, err
		}
		f.User = name
	}
	rows, err := s.db.Query(ctx, selectDeeds, f.Since, f.Actor, f.Limit, f.User)
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Deed])
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return list, nil
}
