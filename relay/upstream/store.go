package upstream

import (
	"context"
	"encoding/json"
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
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
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
	Name           string     `json:"name"`
	Host           string     `json:"host"`
	Port           int        `json:"port"`
	TLS            TLSMode    `json:"tls"`
	Username       string     `json:"username,omitempty"`
	OAuth          oauth.Kind `json:"oauth,omitempty"`
	SecretExpires  string     `json:"secret_expires,omitempty"` // the last day, as 2027-01-31
	CustomCA       bool       `json:"custom_ca"`
	Preset         string     `json:"preset,omitempty"`
	MaxConnections int        `json:"max_connections"` // 0: the default
	MaxMessages    int        `json:"max_messages"`    // 0: the default
	MaxRecipients  int        `json:"max_recipients"`  // 0: the default
	Budget         string     `json:"budget,omitempty"`
	PausedAt       *time.Time `json:"paused_at,omitempty"`
	CreatedAt      time.Time  `json:"created_at"`
}

const addAccount = `
insert into upstream (name, host, port, tls, username, password, ca, preset, max_connections, max_messages, max_recipients, oauth, secret_expires, budget)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, nullif($13, '')::date, $14)`

// Add adds an account; its password is sealed first. Errors: refusal.ErrInvalid, refusal.ErrExists.
func (s *Store) Add(ctx context.Context, a Account) error {
	if err := a.Validate(); err != nil {
		return err
	}
	sealed, err := s.seal(a)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, addAccount, a.Name, a.Host, a.Port, string(a.TLS), a.Username, sealed, a.CA, a.Preset,
			a.MaxConnections, a.MaxMessages, a.MaxRecipients, string(a.Grant.Kind), a.SecretExpires, a.Budget)
		if err == nil {
			err = knownZones(ctx, tx, a.Budget)
		}
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream add", Object: a.Name, Detail: a.detail()})
	})
	if pg.Code(err) == pg.UniqueViolation {
		return refusal.Exists("an upstream named %q exists already", a.Name)
	}
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("add upstream: %w", err)
	}
	return err
}

// knownZones refuses a budget with a zone that the database does not know.
func knownZones(ctx context.Context, db pg.DB, setting string) error {
	limits, err := budget.Parse(setting)
	if err != nil {
		return err
	}
	unknown, err := budget.Unknown(ctx, db, limits)
	if err == nil && len(unknown) > 0 {
		err = refusal.Invalid("the database knows no time zone %s; write it like Europe/Berlin", quoteAll(unknown))
	}
	return err
}

// detail is the account for the audit.
func (a Account) detail() map[string]any {
	return map[string]any{"host": a.Host, "port": a.Port, "tls": a.TLS, "username": a.Username, "custom_ca": a.CA != "",
		"preset": a.Preset, "max_connections": a.MaxConnections, "max_messages": a.MaxMessages, "max_recipients": a.MaxRecipients,
		"oauth": a.Grant.Kind, "expires": a.SecretExpires, "budget": a.Budget}
}

// seal seals what the account is proved by, nil if there is nothing.
func (s *Store) seal(a Account) ([]byte, error) {
	if a.Username == "" {
		return nil, nil
	}
	if s.sealer == nil {
		return nil, refusal.Invalid("a password needs a sealing key, and none is configured")
	}
	if a.Grant.Kind == "" {
		return s.sealer.Seal(passwordOf(a.Name, a.Username), []byte(a.Password)), nil
	}
	if err := a.Grant.Complete(a.Username, oauth.Known()); err != nil {
		return nil, refusal.Invalid("%v", err)
	}
	text, err := json.Marshal(a.Grant)
	if err != nil {
		return nil, err
	}
	return s.sealer.Seal(grantOf(a.Name, a.Username), text), nil
}

const accountForChange = `
select host, port, tls, username, password, ca, preset, max_connections, max_messages, max_recipients, oauth, coalesce(secret_expires::text, ''), budget
from upstream where name = $1 for update`

const changeAccount = `
update upstream set host = $2, port = $3, tls = $4, username = $5, password = $6, ca = $7, preset = $8,
	max_connections = $9, max_messages = $10, max_recipients = $11, oauth = $12, budget = $14, secret_expires = nullif($13, '')::date,
	secret_told = case when secret_expires is not distinct from nullif($13, '')::date then secret_told end
where name = $1`

// kept stands for a password that is in the table and was not opened.
const kept = "(kept)"

// Change lets change edit an account, whose Password is "" unless it is to be another one, and
// whose Grant has its Kind only. It returns what became of it. A password belongs to a user name: with another name it has to be
// given anew. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Change(ctx context.Context, name string, change func(*Account) error) (a Account, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		a = Account{Name: name}
		var sealed []byte
		err := tx.QueryRow(ctx, accountForChange, name).Scan(&a.Host, &a.Port, &a.TLS, &a.Username, &sealed, &a.CA, &a.Preset,
			&a.MaxConnections, &a.MaxMessages, &a.MaxRecipients, &a.Grant.Kind, &a.SecretExpires, &a.Budget)
		if errors.Is(err, pgx.ErrNoRows) {
			return unknownName(name)
		}
		if err != nil {
			return err
		}
		was := a
		if err := change(&a); err != nil {
			return err
		}
		if sealed, err = s.reseal(was, a, sealed); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, changeAccount, name, a.Host, a.Port, string(a.TLS), a.Username, sealed, a.CA, a.Preset,
			a.MaxConnections, a.MaxMessages, a.MaxRecipients, string(a.Grant.Kind), a.SecretExpires, a.Budget)
		if err == nil {
			err = knownZones(ctx, tx, a.Budget)
		}
		if err != nil {
			return err
		}
		if a.Grant != was.Grant {
			if err := oauth.Forget(ctx, tx, name); err != nil {
				return err
			}
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: "upstream set", Object: name, Detail: changes(was, a)})
	})
	if err != nil && !refusal.Is(err) {
		return a, fmt.Errorf("change upstream: %w", err)
	}
	return a, err
}

// reseal validates a changed account and returns its password as it is stored.
func (s *Store) reseal(was, a Account, sealed []byte) ([]byte, error) {
	same := a.Password == "" && a.Grant == was.Grant
	if same && a.Grant.Kind != "" && a.Username != was.Username {
		return nil, refusal.Invalid("another user name needs its grant as well")
	}
	keep := same && a.Username == was.Username && sealed != nil
	check := a
	if keep {
		check.Password, check.Grant = kept, oauth.Grant{}
	}
	if err := check.Validate(); err != nil || keep {
		return sealed, err
	}
	return s.seal(a)
}

// changes are the settings that differ, for the audit.
func changes(was, is Account) map[string]any {
	before, detail := was.detail(), is.detail()
	maps.DeleteFunc(detail, func(key string, value any) bool { return before[key] == value })
	if is.Password != "" || is.Grant != was.Grant {
		detail["password"] = "changed"
	}
	if was.CA != is.CA {
		detail["custom_ca"] = is.CA != ""
	}
	return detail
}

func unknownName(name string) error {
	return refusal.NotFound("no upstream is named %q; see 'postern upstream list'", name)
}

const listAccounts = `
select name, host, port, tls, username, oauth, coalesce(secret_expires::text, ''), ca <> '', preset, max_connections, max_messages, max_recipients,
	budget, paused_at, created_at
from upstream order by name`

// List lists all accounts by name.
func (s *Store) List(ctx context.Context) ([]Listed, error) {
	rows, err := s.pool.Query(ctx, listAccounts)
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Listed])
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	return list, nil
}

// Budgets returns what is used of the budgets of all upstreams.
func (s *Store) Budgets(ctx context.Context) ([]budget.Usage, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, u := range list {
		settings[u.Name] = u.Budget
	}
	return budget.Read(ctx, s.pool, settings)
}

// Named returns one of List. Errors: refusal.ErrNotFound.
func (s *Store) Named(ctx context.Context, name string) (Listed, error) {
	list, err := s.List(ctx)
	if err != nil {
		return Listed{}, err
	}
	if i := slices.IndexFunc(list, func(l Listed) bool { return l.Name == name }); i >= 0 {
		return list[i], nil
	}
	return Listed{}, unknownName(name)
}

const loadAccounts = `
select name, host, port, tls, username, password, ca, preset, max_connections, max_messages, max_recipients, oauth, coalesce(secret_expires::text, ''), budget, paused_at
from upstream`

// Loaded is an account with its password, or why it cannot be used.
type Loaded struct {
	Account Account
	Err     error
}

// PausedError says that an admin lets the mail of an upstream wait.
type PausedError struct{ Upstream string }

func (e *PausedError) Error() string { return "upstream " + e.Upstream + " is paused" }

// IsPaused reports a PausedError.
func IsPaused(err error) bool {
	_, is := errors.AsType[*PausedError](err)
	return is
}

// Load reads all accounts, by name.
func (s *Store) Load(ctx context.Context, db pg.DB) (map[string]*Loaded, error) {
	added, err := loadReplies(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("read replies of upstreams: %w", err)
	}
	rows, err := db.Query(ctx, loadAccounts)
	if err != nil {
		return nil, fmt.Errorf("read upstreams: %w", err)
	}
	accounts := map[string]*Loaded{}
	var a Account
	var sealed []byte
	var paused *time.Time
	_, err = pgx.ForEachRow(rows, []any{&a.Name, &a.Host, &a.Port, &a.TLS, &a.Username, &sealed, &a.CA, &a.Preset,
		&a.MaxConnections, &a.MaxMessages, &a.MaxRecipients, &a.Grant.Kind, &a.SecretExpires, &a.Budget, &paused}, func() error {
		a.Replies = tableOf(a.Preset, added[a.Name])
		l := s.open(a, sealed)
		if paused != nil && l.Err == nil {
			l.Err = &PausedError{a.Name}
		}
		accounts[a.Name] = l
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
		if l.Err != nil && !IsPaused(l.Err) {
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
		if l := accounts[name]; l.Err == nil || IsPaused(l.Err) {
			list = append(list, l.Account)
		}
	}
	return list, err
}

const pauseAccount = `
update upstream set paused_at = case when $2 then coalesce(paused_at, now()) end
where name = $1 and (paused_at is null) = $2 returning true`

// Pause lets the mail of an account wait, or no longer, and reports whether that is a change.
// Errors: refusal.ErrNotFound.
func (s *Store) Pause(ctx context.Context, name string, pause bool) (changed bool, err error) {
	action := "upstream resume"
	if pause {
		action = "upstream pause"
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := Require(ctx, tx, []string{name}); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, pauseAccount, name, pause).Scan(&changed)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.actor, audit.Deed{Action: action, Object: name})
	})
	if err != nil && !refusal.Is(err) {
		return false, fmt.Errorf("%s: %w", action, err)
	}
	return changed, err
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
			return unknownName(name)
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
	if a.Grant.Kind != "" {
		return s.openGrant(a, sealed)
	}
	password, err := s.sealer.Open(passwordOf(a.Name, a.Username), sealed)
	if err != nil {
		return &Loaded{Account: a, Err: fmt.Errorf("upstream %q: %w", a.Name, err)}
	}
	a.Password = string(password)
	return &Loaded{Account: a}
}

// passwordOf is the place for which a password is sealed: moved to another row of the
// table it must not open. Neither part can hold NUL, so the joint is unambiguous.
func passwordOf(name, username string) string {
	return "upstream\x00" + name + "\x00" + username
}

func (s *Store) openGrant(a Account, sealed []byte) *Loaded {
	text, err := s.sealer.Open(grantOf(a.Name, a.Username), sealed)
	if err == nil {
		err = json.Unmarshal(text, &a.Grant)
	}
	if err != nil {
		return &Loaded{Account: a, Err: fmt.Errorf("upstream %q: %w", a.Name, err)}
	}
	return &Loaded{Account: a}
}

// grantOf is passwordOf for a grant.
func grantOf(name, username string) string { return passwordOf(name, username) + "\x00oauth" }
