package auth

import (
	"context"
	"fmt"
	"time"

	"postern/auth/audit"
	"postern/policy/quota"

	"github.com/jackc/pgx/v5"
)

// LimitTarget is whom a limit is set for: exactly one of the four.
type LimitTarget struct {
	Default    bool   // each user
	Domain     string // all users of it together
	User       string // a name
	Credential int64  // an id
}

func (t LimitTarget) scope() (quota.Scope, error) {
	switch {
	case t == LimitTarget{Default: true}:
		return quota.Default, nil
	case t == LimitTarget{Domain: t.Domain} && t.Domain != "":
		return quota.Domain, nil
	case t == LimitTarget{User: t.User} && t.User != "":
		return quota.User, nil
	case t == LimitTarget{Credential: t.Credential} && t.Credential > 0:
		return quota.Credential, nil
	}
	return "", fmt.Errorf("%w: it is for each user, for a domain, for one user or for one credential", quota.ErrLimit)
}

// bearer is a target in the database: its columns of limit_rule, and whose they are.
type bearer struct {
	scope            quota.Scope
	user, credential int64
	domain           string
	name             string // of the user; "" for more than one
}

// subject is what the limits of the bearer count by.
func (b bearer) subject() string {
	switch b.scope {
	case quota.Domain:
		return b.domain
	case quota.User:
		return quota.ID(b.user)
	case quota.Credential:
		return quota.ID(b.credential)
	}
	return ""
}

// SetLimits sets limits in place of all limits of the same kinds that the target has.
// The error is quota.ErrLimit, ErrName or ErrNotFound, or of the database.
func (s *Store) SetLimits(ctx context.Context, target LimitTarget, limits []quota.Limit) error {
	if err := checkLimits(limits); err != nil {
		return err
	}
	var kinds, words []string
	for _, l := range limits {
		kinds, words = append(kinds, string(l.Kind)), append(words, l.String())
	}
	d := audit.Deed{Action: "limit set", Detail: map[string]any{"limits": words}}
	return s.changeLimits(ctx, target, d, func(ctx context.Context, tx pgx.Tx, b bearer) error {
		if err := deleteLimits(ctx, tx, b, kinds); err != nil {
			return err
		}
		return insertLimits(ctx, tx, b, limits)
	})
}

func checkLimits(limits []quota.Limit) error {
	if len(limits) == 0 {
		return fmt.Errorf("%w: none is given", quota.ErrLimit)
	}
	type place struct {
		kind   quota.Kind
		window time.Duration
	}
	seen := map[place]bool{}
	for _, l := range limits {
		if err := l.Check(); err != nil {
			return err
		}
		if p := (place{l.Kind, l.Window}); seen[p] {
			return fmt.Errorf("%w: %s is given twice", quota.ErrLimit, l)
		} else {
			seen[p] = true
		}
	}
	return nil
}

// ResetLimits takes away all limits of these kinds that the target has, or all of any
// kind when none is given. The errors are those of SetLimits.
func (s *Store) ResetLimits(ctx context.Context, target LimitTarget, kinds ...quota.Kind) error {
	names := []string{}
	for _, k := range kinds {
		if err := k.Check(); err != nil {
			return err
		}
		names = append(names, string(k))
	}
	d := audit.Deed{Action: "limit reset", Detail: map[string]any{"kinds": names}}
	return s.changeLimits(ctx, target, d, func(ctx context.Context, tx pgx.Tx, b bearer) error {
		return deleteLimits(ctx, tx, b, names)
	})
}

// SetNoDefaults exempts a user from the default limits, or undoes it.
func (s *Store) SetNoDefaults(ctx context.Context, user string, on bool) error {
	defaults := "on"
	if on {
		defaults = "off"
	}
	d := audit.Deed{Action: "limit set", Detail: map[string]any{"defaults": defaults}}
	return s.change(ctx, user, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `update app_user set no_limit_defaults = $2 where id = $1`, id, on)
		return err
	})
}

// Limits returns what is set for the target itself, by kind and window. The errors are
// those of SetLimits.
func (s *Store) Limits(ctx context.Context, target LimitTarget) ([]quota.Limit, error) {
	b, err := s.bearerOf(ctx, target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, `
		select kind, window_s, max from limit_rule
		where coalesce(user_id, 0) = $1 and coalesce(credential_id, 0) = $2 and domain = $3 order by kind, window_s`,
		b.user, b.credential, b.domain)
	if err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (quota.Limit, error) {
		l := quota.Limit{Scope: b.scope, Subject: b.subject()}
		var seconds int64
		err := row.Scan(&l.Kind, &seconds, &l.Max)
		l.Window = time.Duration(seconds) * time.Second
		return l, err
	})
}

func (s *Store) bearerOf(ctx context.Context, target LimitTarget) (b bearer, err error) {
	if b.scope, err = target.scope(); err != nil {
		return b, err
	}
	switch b.scope {
	case quota.Domain:
		if b.domain, err = canonicalDomain(target.Domain); err != nil {
			err = fmt.Errorf("%w: %q is not a domain", quota.ErrLimit, target.Domain)
		}
	case quota.User:
		var u User
		u, err = s.User(ctx, target.User)
		b.user, b.name = u.ID, u.Name
	case quota.Credential:
		var c Credential
		c, err = s.Credential(ctx, target.Credential)
		b.user, b.credential, b.name = c.UserID, c.ID, c.User
	}
	return b, err
}

// changeLimits runs fn for the target and records the deed.
func (s *Store) changeLimits(ctx context.Context, target LimitTarget, d audit.Deed, fn func(ctx context.Context, tx pgx.Tx, b bearer) error) error {
	b, err := s.bearerOf(ctx, target)
	if err != nil {
		return err
	}
	switch b.scope {
	case quota.Default:
		d.Object = "defaults"
		return s.changeShared(ctx, d, b, fn)
	case quota.Domain:
		d.Object = "*@" + b.domain
		return s.changeShared(ctx, d, b, fn)
	case quota.Credential:
		d.Detail["credential"] = b.credential
	}
	return s.change(ctx, b.name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		b.user = id
		return fn(ctx, tx, b)
	})
}

// changeShared changes limits of more than one user: all nodes look at everybody again.
func (s *Store) changeShared(ctx context.Context, d audit.Deed, b bearer, fn func(ctx context.Context, tx pgx.Tx, b bearer) error) error {
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		if err := touchEverybody(ctx, tx); err != nil {
			return 0, err
		}
		if err := fn(ctx, tx, b); err != nil {
			return 0, err
		}
		return 0, audit.Record(ctx, tx, s.actor, d)
	})
	if err != nil {
		return fmt.Errorf("limits of %s: %w", d.Object, err)
	}
	return nil
}

// deleteLimits deletes the rules of these kinds, or all when there are none.
func deleteLimits(ctx context.Context, tx pgx.Tx, b bearer, kinds []string) error {
	_, err := tx.Exec(ctx, `
		delete from limit_rule
		where coalesce(user_id, 0) = $1 and coalesce(credential_id, 0) = $2 and domain = $3
		  and (cardinality($4::text[]) = 0 or kind = any($4::text[]))`,
		b.user, b.credential, b.domain, kinds)
	return err
}

func insertLimits(ctx context.Context, tx pgx.Tx, b bearer, limits []quota.Limit) error {
	for _, l := range limits {
		_, err := tx.Exec(ctx, `
			insert into limit_rule (user_id, credential_id, domain, kind, window_s, max)
			values (nullif($1::bigint, 0), nullif($2::bigint, 0), $3, $4, $5, $6)`,
			b.user, b.credential, b.domain, l.Kind, int64(l.Window/time.Second), l.Max)
		if err != nil {
			return err
		}
	}
	return nil
}
