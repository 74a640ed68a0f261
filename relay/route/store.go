package route

import (
	"context"
	"fmt"
	"slices"

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

const (
	// The user is locked before the table: the removal of a user has the same order.
	lockUser = `select from app_user where id = $1 for key share`
	// A change waits for concurrent ones, and sees their result.
	lockRoutes = `lock table route in share row exclusive mode`
	addRoute   = `
insert into route (position, user_id, sender_domain, recipient_domain)
values (0, nullif($1::bigint, 0), nullif($2, ''), nullif($3, '')) returning id`
	addWays = `
insert into route_way (route_id, rank, upstream)
select $1, t.rank, nullif(t.name, $3::text) from unnest($2::text[]) with ordinality as t (name, rank)`
	numberRoutes = `
update route set position = t.n
from unnest($1::bigint[]) with ordinality as t (id, n)
where route.id = t.id and position <> t.n`
	removeRoute = `delete from route where id = $1`
)

// change calls do with the rules in their order, in a transaction that no other change of rules
// overlaps. user is that of a new rule, or 0.
func (s *Store) change(ctx context.Context, what string, user int64, do func(tx pgx.Tx, list []Rule) error) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if tag, err := tx.Exec(ctx, lockUser, user); err != nil {
			return err
		} else if user != 0 && tag.RowsAffected() == 0 {
			return refusal.NotFound("there is no user %d", user)
		}
		if _, err := tx.Exec(ctx, lockRoutes); err != nil {
			return err
		}
		list, err := listRules(ctx, tx)
		if err != nil {
			return err
		}
		return do(tx, list)
	})
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// Add adds a rule before another one, or with 0 after those that are there, and returns its
// number. Errors: refusal.ErrInvalid, refusal.ErrExists, refusal.ErrNotFound.
func (s *Store) Add(ctx context.Context, r Rule, before int64) (id int64, err error) {
	id, _, err = s.put(ctx, r, before, false)
	return id, err
}

// Replace is Add in place of the rule with the same match, if there is one, so that
// one of them always exists. It returns the former rule's number, or 0.
func (s *Store) Replace(ctx context.Context, r Rule, before int64) (id, replaced int64, err error) {
	return s.put(ctx, r, before, true)
}

func (s *Store) put(ctx context.Context, r Rule, before int64, replace bool) (id, replaced int64, err error) {
	if err := r.Normalise(); err != nil {
		return 0, 0, err
	}
	if r.IsDefault() && before != 0 {
		return 0, 0, refusal.Invalid("the default route is always the last")
	}
	err = s.change(ctx, "add route", r.UserID, func(tx pgx.Tx, list []Rule) error {
		// Checked before the match: of two mistakes, the wrong name is to be corrected first.
		if err := upstream.Require(ctx, tx, r.upstreams()); err != nil {
			return err
		}
		if same := indexOf(list, func(o *Rule) bool { return o.covers(&r) && r.covers(o) }); same >= 0 {
			if !replace {
				return refusal.Exists("a route for %s exists already; remove it first", r.match())
			}
			replaced = list[same].ID
			if _, err := tx.Exec(ctx, removeRoute, replaced); err != nil {
				return err
			}
			list = slices.Delete(list, same, same+1)
			if (before == 0 || before == replaced) && same < len(list) {
				before = list[same].ID
			} else if before == replaced {
				before = 0
			}
		}
		if id, err = insertRoute(ctx, tx, r); err != nil {
			return err
		}
		r.ID = id
		if err := number(ctx, tx, append(list, r), id, before); err != nil {
			return err
		}
		detail := map[string]any{"route": id}
		if replaced != 0 {
			detail["replaced"] = replaced
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route add", Object: r.String(), Detail: detail})
	})
	if err != nil {
		return 0, 0, err
	}
	return id, replaced, nil
}

func insertRoute(ctx context.Context, tx pgx.Tx, r Rule) (id int64, err error) {
	err = tx.QueryRow(ctx, addRoute, r.UserID, r.SenderDomain, r.RecipientDomain).Scan(&id)
	if err == nil {
		_, err = tx.Exec(ctx, addWays, id, r.Via, MX)
	}
	return id, err
}

// number gives the rules of list their positions, with rule id before another one, or with 0
// behind all. The default route is the last wherever it is put.
func number(ctx context.Context, tx pgx.Tx, list []Rule, id, before int64) error {
	order, last := make([]int64, 0, len(list)), int64(0)
	for i := range list {
		switch r := &list[i]; {
		case r.IsDefault():
			last = r.ID
		case r.ID != id:
			order = append(order, r.ID)
		}
	}
	at := len(order)
	if before != 0 && before != last {
		if at = slices.Index(order, before); at < 0 {
			return refusal.NotFound("there is no route %d; see 'postern route list'", before)
		}
	}
	if id != last {
		order = slices.Insert(order, at, id)
	}
	if last != 0 {
		order = append(order, last)
	}
	_, err := tx.Exec(ctx, numberRoutes, order)
	return err
}

// Move puts a rule before another one, or with 0 behind all but the default route, and returns
// it. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Move(ctx context.Context, id, before int64) (moved Rule, err error) {
	err = s.change(ctx, "move route", 0, func(tx pgx.Tx, list []Rule) error {
		at := indexOf(list, func(r *Rule) bool { return r.ID == id })
		switch {
		case at < 0:
			return refusal.NotFound("there is no route %d; see 'postern route list'", id)
		case list[at].IsDefault():
			return refusal.Invalid("route %d is the default route, which is always the last", id)
		case before == id:
			return refusal.Invalid("route %d cannot stand before itself", id)
		}
		moved = list[at]
		if err := number(ctx, tx, list, id, before); err != nil {
			return err
		}
		detail := map[string]any{"route": id, "before": before}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route move", Object: moved.String(), Detail: detail})
	})
	return moved, err
}

func indexOf(list []Rule, is func(*Rule) bool) int {
	return slices.IndexFunc(list, func(r Rule) bool { return is(&r) })
}

const listRoutes = `
select r.id, coalesce(r.user_id, 0), coalesce(r.sender_domain, ''), coalesce(r.recipient_domain, ''), r.created_at,
       coalesce((select array_agg(coalesce(w.upstream, 'mx') order by w.rank)
                 from route_way w where w.route_id = r.id), '{}')
from route r
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
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Rule, err error) {
		err = row.Scan(&r.ID, &r.UserID, &r.SenderDomain, &r.RecipientDomain, &r.CreatedAt, &r.Via)
		return r, err
	})
	for i := range list {
		list[i].Position = i + 1
	}
	return list, err
}

// Remove removes a rule and returns it. Errors: refusal.ErrNotFound.
func (s *Store) Remove(ctx context.Context, id int64) (was Rule, err error) {
	err = s.change(ctx, "remove route", 0, func(tx pgx.Tx, list []Rule) error {
		at := indexOf(list, func(r *Rule) bool { return r.ID == id })
		if at < 0 {
			return refusal.NotFound("there is no route %d; see 'postern route list'", id)
		}
		was = list[at]
		if _, err := tx.Exec(ctx, removeRoute, id); err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route remove", Object: was.String(), Detail: map[string]any{"route": id}})
	})
	return was, err
}
