package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/relay/seal"
)

// Store keeps the accounts in Postgres. It is safe for concurrent use. Each change is in the
// audit, in its own transaction.
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

// Listed is an account as listings show it, without its password.
type Listed struct {
	Name           string    `json:"name"`
	Host           string    `json:"host"`
	Port           int       `json:"port"`
	TLS            TLSMode   `json:"tls"`
	Username       string    `json:"username,omitempty"`
	CustomCA       bool      `json:"custom_ca"`
	MaxConnections int       `json:"max_connections"` // 0: the default
	CreatedAt      time.Time `json:"created_at"`
}

const addAccount = `
insert into upstream (name, host, port, tls, username, password, ca, max_connections)
values ($1, $2, $3, $4, $5, $6, $7, $8)`

// Add adds an account; its password is sealed first. Errors: refusal.ErrInvalid, refusal.ErrExists.
func (s *Store) Add(ctx context.Context, a Account) error {
	if err := a.Validate(); err != nil {
		return err
	}
	var sealed []byte
	if a.Username != "" {
		if s.sealer == nil {
			return refusal.Invalid("a password needs a sealing key, and none is configured")
		}
		sealed = s.sealer.Seal(passwordOf(a.Name, a.Username), []byte(a.Password))
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, addAccount, a.Name, a.Host, a.Port, string(a.TLS), a.Username, sealed, a.CA, a.MaxConnections)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream add", Object: a.Name, Detail: map[string]any{
			"host": a.Host, "port": a.Port, "tls": a.TLS, "username": a.Username, "custom_ca": a.CA != "", "max_connections": a.MaxConnections}})
	})
	if pg.Code(err) == pg.UniqueViolation {
		return refusal.Exists("an upstream named %q exists already", a.Name)
	}
	if err != nil {
		return fmt.Errorf("add upstream: %w", err)
	}
	return nil
}

const listAccounts = `
select name, host, port, tls, username, ca <> '', max_connections, created_at
from upstream order by name`

// List lists all accounts by name.
func (s *Store) List(ctx context.Context) ([]Listed, error) {
	rows, err := s.pool.Query(ctx, listAccounts)
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Listed, error) {
		var a Listed
		err := row.Scan(&a.Name, &a.Host, &a.Port, &a.TLS, &a.Username, &a.CustomCA, &a.MaxConnections, &a.CreatedAt)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	return list, nil
}

const loadAccounts = `
select name, host, port, tls, username, password, ca, max_connections from upstream`

// Loaded is an account with its password, or why it cannot be used.
type Loaded struct {
	Account Account
	Err     error
}

// Load reads all accounts, by name.
func (s *Store) Load(ctx context.Context, db pg.DB) (map[string]*Loaded, error) {
	rows, err := db.Query(ctx, loadAccounts)
	if err != nil {
		return nil, fmt.Errorf("read upstreams: %w", err)
	}
	accounts := map[string]*Loaded{}
	var a Account
	var sealed []byte
	_, err = pgx.ForEachRow(rows, []any{&a.Name, &a.Host, &a.Port, &a.TLS, &a.Username, &sealed, &a.CA, &a.MaxConnections}, func() error {
		accounts[a.Name] = s.open(a, sealed)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read upstreams: %w", err)
	}
	return accounts, nil
}

// Unusable returns, by name, the upstreams whose password this Store cannot open.
func (s *Store) Unusable(ctx context.Context) (map[string]error, error) {
	accounts, err := s.Load(ctx, s.pool)
	bad := map[string]error{}
	for name, l := range accounts {
		if l.Err != nil {
			bad[name] = l.Err
		}
	}
	return bad, err
}

// Usable returns the accounts with their passwords, by name; those whose password this Store
// cannot open are left out, as Unusable says.
func (s *Store) Usable(ctx context.Context) (list []Account, err error) {
	accounts, err := s.Load(ctx, s.pool)
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		if l := accounts[name]; l.Err == nil {
			list = append(list, l.Account)
		}
	}
	return list, err
}

const removeAccount = `delete from upstream where name = $1`

// Remove removes an account that no rule names. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Remove(ctx context.Context, name string) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, removeAccount, name)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return refusal.NotFound("no upstream is named %q", name)
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream remove", Object: name})
	})
	switch {
	case pg.Code(err) == pg.ForeignKeyViolation:
		return refusal.Invalid("upstream %q is used by a route; move the route to another one first, with 'postern route add --replace', or remove it", name)
	case err != nil && !errors.Is(err, refusal.ErrNotFound):
		return fmt.Errorf("remove upstream: %w", err)
	}
	return err
}

// knownUpstreams keeps those that are there from being removed until the rule is in.
const knownUpstreams = `select name from upstream where name = any($1::text[]) for key share`

// Require keeps the accounts of these names from being removed until the transaction ends.
// Errors: refusal.ErrNotFound.
func Require(ctx context.Context, tx pgx.Tx, names []string) error {
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
		return refusal.NotFound("no upstream is named %s; see 'postern upstream list'", quoteAll(missing))
	}
	return nil
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = fmt.Sprintf("%q", name)
	}
	return strings.Join(quoted, " or ")
}

// open unseals the password. One that does not open spoils its own upstream only.
func (s *Store) open(a Account, sealed []byte) *Loaded {
	if sealed == nil {
		return &Loaded{Account: a}
	}
	if s.sealer == nil {
		return &Loaded{Err: fmt.Errorf("upstream %q: %w", a.Name, ErrNoKey)}
	}
	password, err := s.sealer.Open(passwordOf(a.Name, a.Username), sealed)
	if err != nil {
		return &Loaded{Err: fmt.Errorf("upstream %q: %w", a.Name, err)}
	}
	a.Password = string(password)
	return &Loaded{Account: a}
}

// passwordOf is the place for which a password is sealed: moved to another row of the
// table it must not open. Neither part can hold NUL, so the joint is unambiguous.
func passwordOf(name, username string) string {
	return "upstream\x00" + name + "\x00" + username
}
