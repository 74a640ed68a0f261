package route

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/relay/upstream"
)

// Store keeps the rules in Postgres. It is safe for concurrent use. Each change is in the
// audit, in its own transaction.
type Store struct {
	pool  *pgxpool.Pool
	actor string
}

// NewStore makes a Store.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool: pool, actor: "unknown"} }

// As returns a Store that acts as actor, for the audit.
func (s *Store) As(actor string) *Store { return &Store{s.pool, actor} }

const addRoute = `
insert into route (position, user_id, sender_domain, recipient_domain, via)
values (
    case when $1 > 0 then $1 else (select coalesce(max(position), 0) + 10 from route) end,
    nullif($2::bigint, 0), nullif($3, ''), nullif($4, ''), $5)
returning id`

const addRouteUpstreams = `
insert into route_upstream (route_id, rank, upstream)
select $1, t.rank, t.name from unnest($2::text[]) with ordinality as t (name, rank)`

// sameMatch finds the rule that matches what another would.
const sameMatch = `
select id from route where coalesce(user_id, 0) = $1 and coalesce(sender_domain, '') = $2 and coalesce(recipient_domain, '') = $3 for update`

// Add adds a rule and returns its number. Position 0 puts it after those
// that are there. Errors: refusal.ErrInvalid, refusal.ErrExists, refusal.ErrNotFound.
func (s *Store) Add(ctx context.Context, r Rule) (id int64, err error) {
	id, _, err = s.put(ctx, r, false)
	return id, err
}

// Replace is Add in place of the rule with the same match, if there is one, so that
// one of them always exists. It returns the former rule's number, or 0.
func (s *Store) Replace(ctx context.Context, r Rule) (id, replaced int64, err error) {
	return s.put(ctx, r, true)
}

func (s *Store) put(ctx context.Context, r Rule, replace bool) (id, replaced int64, err error) {
	if err := r.normalise(); err != nil {
		return 0, 0, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Before the match is looked at: of two mistakes, a wrong name is the one to mend first.
		if err := upstream.Require(ctx, tx, r.Upstreams); err != nil {
			return err
		}
		if replace {
			if replaced, err = removeSame(ctx, tx, r); err != nil {
				return err
			}
		}
		if id, err = insertRoute(ctx, tx, r); err != nil {
			return err
		}
		detail := map[string]any{"route": id}
		if replaced != 0 {
			detail["replaced"] = replaced
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route add", Object: r.String(), Detail: detail})
	})
	switch {
	case refusal.Is(err):
		return 0, 0, err
	case pg.Code(err) == pg.UniqueViolation:
		return 0, 0, refusal.Exists("a route for %s exists already; remove it first", r.match())
	case err != nil:
		return 0, 0, fmt.Errorf("add route: %w", err)
	}
	return id, replaced, nil
}

// removeSame removes the rule that has the match of r and returns its number, or 0.
func removeSame(ctx context.Context, tx pgx.Tx, r Rule) (id int64, err error) {
	err = tx.QueryRow(ctx, sameMatch, r.UserID, r.SenderDomain, r.RecipientDomain).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, removeRoute, id)
	}
	return id, err
}

func insertRoute(ctx context.Context, tx pgx.Tx, r Rule) (id int64, err error) {
	via := "upstream"
	if r.MX() {
		via = "mx"
	}
	err = tx.QueryRow(ctx, addRoute, r.Position, r.UserID, r.SenderDomain, r.RecipientDomain, via).Scan(&id)
	if err == nil {
		_, err = tx.Exec(ctx, addRouteUpstreams, id, r.Upstreams)
	}
	return id, err
}

const routes = `
select r.id, r.position, coalesce(r.user_id, 0), coalesce(r.sender_domain, ''),
       coalesce(r.recipient_domain, ''), r.created_at,
       coalesce((select array_agg(u.upstream order by u.rank)
                 from route_upstream u where u.route_id = r.id), '{}')
from route r`

const listRoutes = routes + `
order by (r.user_id is null and r.sender_domain is null and r.recipient_domain is null),
         r.position, r.id`

// List lists the rules in the order in which they are tried.
func (s *Store) List(ctx context.Context) ([]Rule, error) {
	list, err := listRules(ctx, s.pool)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func listRules(ctx context.Context, db pg.DB) ([]Rule, error) {
	rows, err := db.Query(ctx, listRoutes)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanRule)
}

func scanRule(row pgx.CollectableRow) (Rule, error) {
	var r Rule
	err := row.Scan(&r.ID, &r.Position, &r.UserID, &r.SenderDomain, &r.RecipientDomain, &r.CreatedAt, &r.Upstreams)
	return r, err
}

const (
	oneRoute    = routes + ` where r.id = $1 for update of r`
	removeRoute = `delete from route where id = $1`
)

// Remove removes a rule and returns it. Errors: refusal.ErrNotFound.
func (s *Store) Remove(ctx context.Context, id int64) (was Rule, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, oneRoute, id)
		if err != nil {
			return err
		}
		was, err = pgx.CollectExactlyOneRow(rows, scanRule)
		if errors.Is(err, pgx.ErrNoRows) {
			return refusal.NotFound("there is no route %d", id)
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, removeRoute, id); err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route remove", Object: was.String(), Detail: map[string]any{"route": id}})
	})
	if err != nil && !errors.Is(err, refusal.ErrNotFound) {
		return was, fmt.Errorf("remove route: %w", err)
	}
	return was, err
}
