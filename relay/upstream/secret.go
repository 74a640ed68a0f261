package upstream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/refusal"
	"postern/relay/upstream/oauth"
)

// Open returns an account with its secrets. Errors: refusal.ErrNotFound.
func (s *Store) Open(ctx context.Context, name string) (Account, error) {
	accounts, err := s.Load(ctx, s.pool)
	if err != nil {
		return Account{}, err
	}
	l := accounts[name]
	if l == nil {
		return Account{}, unknownName(name)
	}
	if l.Err != nil && !isPaused(l.Err) {
		return Account{}, l.Err
	}
	return l.Account, nil
}

// lockAccount keeps an account as it is until the transaction ends.
const lockAccount = `select from upstream where name = $1 for share`

// SaveLogin stores what a person's login for an account gave, unless its settings have changed
// since. Errors: refusal.ErrInvalid.
func (s *Store) SaveLogin(ctx context.Context, a oauth.Account, l *oauth.Login) error {
	name := a.Upstream
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockAccount, name); err != nil {
			return err
		}
		accounts, err := s.Load(ctx, tx)
		if err != nil {
			return err
		}
		if now := accounts[name]; now == nil || now.Account.OAuth() != a {
			return refusal.Invalid("the settings of upstream %q have changed meanwhile: log in again", name)
		}
		if err := l.Save(ctx, tx, s.sealer); err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream login", Object: name})
	})
}

// Secret says when the secret of an account expires, and what is known of its token.
type Secret struct {
	Upstream string
	Expires  time.Time   // at the end of this day, UTC; zero: not known
	Token    oauth.State // zero without a grant, and before the first token
}

// Secrets lists what is known of the secrets of accounts, as Usable returns them.
func (s *Store) Secrets(ctx context.Context, accounts []Account) ([]Secret, error) {
	var granted []oauth.Account
	for i := range accounts {
		if accounts[i].Grant.Kind != "" {
			granted = append(granted, accounts[i].OAuth())
		}
	}
	tokens := map[string]oauth.State{}
	if granted != nil {
		states, err := oauth.States(ctx, s.pool, granted)
		if err != nil {
			return nil, err
		}
		for _, state := range states {
			tokens[state.Upstream] = state
		}
	}
	var list []Secret
	for i := range accounts {
		a := &accounts[i]
		if a.SecretExpires == "" && a.Grant.Kind == "" {
			continue
		}
		list = append(list, Secret{Upstream: a.Name, Expires: dayOf(a.SecretExpires), Token: tokens[a.Name]})
	}
	return list, nil
}

// dayOf reads a date as accounts have it.
func dayOf(text string) time.Time {
	day, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return time.Time{}
	}
	return day
}

// DaysLeft is how many days a secret is good for: 0 on its last, negative after it.
func (s *Secret) DaysLeft(now time.Time) int {
	return int(s.Expires.Sub(now.UTC().Truncate(24*time.Hour)) / (24 * time.Hour))
}

// tellExpiring returns each account once at 30, 7, 1 and 0 days, to the node that asks first, and tells
// the feed of events.
const tellExpiring = `
with told as (update upstream u set secret_told = t.days
from (select name, (select min(d) from unnest(array[30, 7, 1, 0]) d where secret_expires - (now() at time zone 'UTC')::date <= d) as days
	from upstream where secret_expires is not null) t
where u.name = t.name and t.days is not null and (u.secret_told is null or u.secret_told > t.days)
returning u.name, u.secret_expires, t.days),
e as (insert into event (kind, object, detail) select 'secret.expiring', name, jsonb_build_object('on', secret_expires, 'days', days) from told)
select name, secret_expires::timestamp at time zone 'UTC' from told`

// TellExpiring calls tell for the accounts whose secret's end is to be announced now, on one node
// only. A node that crashes before its commit leaves them to the next.
func (s *Store) TellExpiring(ctx context.Context, tell func(Secret)) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, tellExpiring)
		if err != nil {
			return err
		}
		var secret Secret
		_, err = pgx.ForEachRow(rows, []any{&secret.Upstream, &secret.Expires}, func() error {
			secret.Expires = secret.Expires.UTC()
			tell(secret)
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("look for secrets that expire: %w", err)
	}
	return nil
}
