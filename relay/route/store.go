package route

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/relay/seal"
)

// Kinds of refusals by a Store. The error that wraps one is a sentence for the
// person who asked.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("not found")
	ErrInvalid  = errors.New("invalid")
)

// refusal is a sentence of a kind.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

// Store keeps upstreams and routes in Postgres. It is safe for concurrent use. Each
// change is in the audit, in its own transaction.
type Store struct {
	pool   *pgxpool.Pool
	sealer *seal.Sealer
	actor  string
}

// ErrNoKey says that a password was not opened because there is no usable key; the reader of
// the key has reported why.
var ErrNoKey = errors.New("its password is not opened: the key was not used, see above")

// NewStore makes a Store. sealer may be nil where no upstream has a password:
// adding one with a password is refused then, and one that has a password cannot
// be used.
func NewStore(pool *pgxpool.Pool, sealer *seal.Sealer) *Store {
	return &Store{pool: pool, sealer: sealer, actor: "unknown"}
}

// As returns a Store that acts as actor, for the audit.
func (s *Store) As(actor string) *Store { return &Store{s.pool, s.sealer, actor} }

// Account is an upstream as listings show it, without its password.
type Account struct {
	Name           string    `json:"name"`
	Host           string    `json:"host"`
	Port           int       `json:"port"`
	TLS            TLSMode   `json:"tls"`
	Username       string    `json:"username,omitempty"`
	CustomCA       bool      `json:"custom_ca"`
	MaxConnections int       `json:"max_connections"` // 0: the default
	CreatedAt      time.Time `json:"created_at"`
}

// Rule is one routing rule. Zero match fields match everything; without any it
// is the default route, which comes after all others. Upstreams in the order in
// which they are to be tried; none: to MX.
type Rule struct {
	ID              int64     `json:"id"`
	Position        int       `json:"position"`
	UserID          int64     `json:"user_id,omitempty"`
	SenderDomain    string    `json:"sender_domain,omitempty"`
	RecipientDomain string    `json:"recipient_domain,omitempty"`
	Upstreams       []string  `json:"upstreams"`
	CreatedAt       time.Time `json:"created_at"`
}

// MX reports a rule that sends to the recipient's MX.
func (r Rule) MX() bool { return len(r.Upstreams) == 0 }

const addUpstream = `
insert into upstream (name, host, port, tls, username, password, ca, max_connections)
values ($1, $2, $3, $4, $5, $6, $7, $8)`

// AddUpstream adds an account; its password is sealed first. Errors: ErrInvalid, ErrExists.
func (s *Store) AddUpstream(ctx context.Context, u Upstream) error {
	if err := u.Validate(); err != nil {
		return err
	}
	var sealed []byte
	if u.Username != "" {
		if s.sealer == nil {
			return refuse(ErrInvalid, "a password needs a sealing key, and none is configured")
		}
		sealed = s.sealer.Seal(passwordOf(u.Name, u.Username), []byte(u.Password))
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, addUpstream, u.Name, u.Host, u.Port, string(u.TLS), u.Username, sealed, u.CA, u.MaxConnections)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream add", Object: u.Name, Detail: map[string]any{
			"host": u.Host, "port": u.Port, "tls": u.TLS, "username": u.Username, "custom_ca": u.CA != "", "max_connections": u.MaxConnections}})
	})
	if pg.Code(err) == pg.UniqueViolation {
		return refuse(ErrExists, "an upstream named %q exists already", u.Name)
	}
	if err != nil {
		return fmt.Errorf("add upstream: %w", err)
	}
	return nil
}

const listUpstreams = `
select name, host, port, tls, username, ca <> '', max_connections, created_at
from upstream order by name`

// ListUpstreams lists all accounts by name.
func (s *Store) ListUpstreams(ctx context.Context) ([]Account, error) {
	rows, err := s.pool.Query(ctx, listUpstreams)
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Account, error) {
		var a Account
		err := row.Scan(&a.Name, &a.Host, &a.Port, &a.TLS, &a.Username, &a.CustomCA, &a.MaxConnections, &a.CreatedAt)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	return list, nil
}

// Unusable returns, by name, the upstreams whose password this Store cannot open.
func (s *Store) Unusable(ctx context.Context) (map[string]error, error) {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	bad := map[string]error{}
	for name, e := range snap.upstreams {
		if e.err != nil {
			bad[name] = e.err
		}
	}
	return bad, nil
}

// Upstreams returns the accounts with their passwords, by name; those whose password
// this Store cannot open are left out, as Unusable says.
func (s *Store) Upstreams(ctx context.Context) ([]Upstream, error) {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	var list []Upstream
	for _, name := range slices.Sorted(maps.Keys(snap.upstreams)) {
		if e := snap.upstreams[name]; e.err == nil {
			list = append(list, e.upstream)
		}
	}
	return list, nil
}

const removeUpstream = `delete from upstream where name = $1`

// RemoveUpstream removes an account that no rule names. Errors: ErrNotFound, ErrInvalid.
func (s *Store) RemoveUpstream(ctx context.Context, name string) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, removeUpstream, name)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return refuse(ErrNotFound, "no upstream is named %q", name)
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream remove", Object: name})
	})
	switch {
	case pg.Code(err) == pg.ForeignKeyViolation:
		return refuse(ErrInvalid, "upstream %q is used by a route; move the route to another one first, with 'postern route add --replace', or remove it", name)
	case err != nil && !errors.Is(err, ErrNotFound):
		return fmt.Errorf("remove upstream: %w", err)
	}
	return err
}

// knownUpstreams keeps those that are there from being removed until the rule is in.
const knownUpstreams = `select name from upstream where name = any($1::text[]) for key share`

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

// AddRoute adds a rule and returns its number. Position 0 puts it after those
// that are there. Errors: ErrInvalid, ErrExists, ErrNotFound.
func (s *Store) AddRoute(ctx context.Context, r Rule) (id int64, err error) {
	id, _, err = s.putRoute(ctx, r, false)
	return id, err
}

// ReplaceRoute is AddRoute in place of the rule with the same match, if there is one, so that
// one of them always exists. It returns the former rule's number, or 0.
func (s *Store) ReplaceRoute(ctx context.Context, r Rule) (id, replaced int64, err error) {
	return s.putRoute(ctx, r, true)
}

func (s *Store) putRoute(ctx context.Context, r Rule, replace bool) (id, replaced int64, err error) {
	if err := r.normalise(); err != nil {
		return 0, 0, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Before the match is looked at: of two mistakes, a wrong name is the one to mend first.
		if err := requireUpstreams(ctx, tx, r.Upstreams); err != nil {
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
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return 0, 0, err
	case pg.Code(err) == pg.UniqueViolation:
		return 0, 0, refuse(ErrExists, "a route for %s exists already; remove it first", r.match())
	case err != nil:
		return 0, 0, fmt.Errorf("add route: %w", err)
	}
	return id, replaced, nil
}

func requireUpstreams(ctx context.Context, tx pgx.Tx, names []string) error {
	rows, err := tx.Query(ctx, knownUpstreams, names)
	if err != nil {
		return err
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(known, name) })
	if len(missing) > 0 {
		return refuse(ErrNotFound, "no upstream is named %s; see 'postern upstream list'", quoteAll(missing))
	}
	return nil
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

// ListRoutes lists the rules in the order in which they are tried.
func (s *Store) ListRoutes(ctx context.Context) ([]Rule, error) {
	rows, err := s.pool.Query(ctx, listRoutes)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanRule)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
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

// RemoveRoute removes a rule and returns it. Errors: ErrNotFound.
func (s *Store) RemoveRoute(ctx context.Context, id int64) (was Rule, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, oneRoute, id)
		if err != nil {
			return err
		}
		was, err = pgx.CollectExactlyOneRow(rows, scanRule)
		if errors.Is(err, pgx.ErrNoRows) {
			return refuse(ErrNotFound, "there is no route %d", id)
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, removeRoute, id); err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "route remove", Object: was.String(), Detail: map[string]any{"route": id}})
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return was, fmt.Errorf("remove route: %w", err)
	}
	return was, err
}
