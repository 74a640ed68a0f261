package upstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/relay/dkim"
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

// Listed is an account as listings show it, without its secrets.
type Listed struct {
	Account
	OAuth     oauth.Kind `json:"oauth,omitempty"`
	CustomCA  bool       `json:"custom_ca"`
	Senders   []string   `json:"senders"` // none: as everybody
	PausedAt  *time.Time `json:"paused_at,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
}

// setting is a column of table upstream, and where an account has it.
type setting struct {
	column string
	field  any
}

// settings are the one list of an account's columns: they are read and written by it.
func (a *Account) settings() []setting {
	return []setting{
		{"host", &a.Host}, {"port", &a.Port}, {"tls", &a.TLS}, {"username", &a.Username}, {"ca", &a.CA}, {"preset", &a.Preset},
		{"max_connections", &a.MaxConnections}, {"max_messages", &a.MaxMessages}, {"max_recipients", &a.MaxRecipients},
		{"idle_seconds", &a.IdleSeconds}, {"tls_name", &a.TLSName}, {"tls_pins", &a.TLSPins}, {"mechanism", &a.Mechanism}, {"in_doubt", &a.InDoubt},
		{"source", &a.Source}, {"ip", &a.IP}, {"hello", &a.Hello}, {"senders", &a.Senders}, {"rewrite_sender", &a.RewriteSender},
		{"oauth", &a.Grant.Kind}, {"budget", &a.Budget}, {"dkim", &a.DKIM},
	}
}

// fields are where the settings are, behind first.
func (a *Account) fields(first ...any) []any {
	for _, s := range a.settings() {
		first = append(first, s.field)
	}
	return first
}

// settingColumns are the names of the settings, and settingValues their parameters behind the three
// that addAccount and changeAccount have besides.
var settingColumns, settingValues = func() (columns, values string) {
	for i, s := range new(Account).settings() {
		columns += ", " + s.column
		values += fmt.Sprintf(", $%d", i+4)
	}
	return columns[2:], values[2:]
}()

const secretExpires = `coalesce(secret_expires::text, '')`

var addAccount = `
insert into upstream (name, password, secret_expires, ` + settingColumns + `)
values ($1, $2, nullif($3, '')::date, ` + settingValues + `)`

// Add adds an account; its password is sealed first. Errors: refusal.ErrInvalid, refusal.ErrExists.
func (s *Store) Add(ctx context.Context, a Account) error {
	if err := a.Validate(); err != nil {
		return err
	}
	sealed, err := s.seal(a)
	if err != nil {
		return err
	}
	a.DKIM = cmp.Or(a.DKIM, dkim.Off)
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, addAccount, a.fields(a.Name, sealed, a.SecretExpires)...); err != nil {
			return err
		}
		if err := budget.Check(ctx, tx, a.Budget); err != nil {
			return err
		}
		return s.record(ctx, tx, "upstream.added", audit.Deed{Action: "upstream add", Object: a.Name, Detail: a.detail()})
	})
	if pg.Code(err) == pg.UniqueViolation {
		return refusal.Exists("an upstream named %q exists already; 'postern upstream set' changes it", a.Name)
	}
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("add upstream: %w", err)
	}
	return err
}

const tellChange = `insert into event (kind, object, detail) values ($1, $2, $3)`

// record puts a change of an account into the audit and into the feed of events, in its transaction.
func (s *Store) record(ctx context.Context, tx pgx.Tx, kind string, d audit.Deed) error {
	if err := audit.Record(ctx, tx, s.actor, d); err != nil {
		return err
	}
	if d.Detail == nil {
		d.Detail = map[string]any{}
	}
	_, err := tx.Exec(ctx, tellChange, kind, d.Object, d.Detail)
	return err
}

// detail is the account for the audit: its settings, by their columns.
func (a Account) detail() map[string]any {
	detail := map[string]any{"expires": a.SecretExpires, "custom_ca": a.CA != ""}
	for _, s := range a.settings() {
		detail[s.column] = reflect.ValueOf(s.field).Elem().Interface()
	}
	delete(detail, "ca")
	return detail
}

// seal seals what the account is proved by, nil if there is nothing.
func (s *Store) seal(a Account) ([]byte, error) {
	if a.Username == "" {
		return nil, nil
	}
	if s.sealer == nil {
		return nil, refusal.Invalid("a password needs a sealing key, and none is configured")
	}
	secret := []byte(a.Password)
	if a.Grant.Kind != "" {
		if err := a.Grant.Complete(a.Username); err != nil {
			return nil, refusal.Invalid("%v", err)
		}
		var err error
		if secret, err = json.Marshal(a.Grant); err != nil {
			return nil, err
		}
	}
	return s.sealer.Seal(a.place(), secret)
}

var accountForChange = `
select password, ` + secretExpires + `, ` + settingColumns + `
from upstream where name = $1 for update`

var changeAccount = `
update upstream set password = $2, secret_expires = nullif($3, '')::date, (` + settingColumns + `) = (` + settingValues + `),
	secret_told = case when secret_expires is not distinct from nullif($3, '')::date then secret_told end
where name = $1`

// kept stands for a password that is in the table and was not opened.
const kept = "(kept)"

// Change lets change edit an account, whose Password is "" unless it is to be another one, and whose
// Grant has its Kind only. It returns the changed account. A password belongs to a user name: with
// another name it has to be given anew. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Change(ctx context.Context, name string, change func(*Account) error) (a Account, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		a = Account{Name: name}
		var sealed []byte
		err := tx.QueryRow(ctx, accountForChange, name).Scan(a.fields(&sealed, &a.SecretExpires)...)
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
		if _, err = tx.Exec(ctx, changeAccount, a.fields(a.Name, sealed, a.SecretExpires)...); err != nil {
			return err
		}
		if err := budget.Check(ctx, tx, a.Budget); err != nil {
			return err
		}
		if a.Grant != was.Grant {
			if err := oauth.Forget(ctx, tx, name); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `select hurry_breaker($1)`, name); err != nil {
			return err
		}
		return s.record(ctx, tx, "upstream.changed", audit.Deed{Action: "upstream set", Object: name, Detail: changes(was, a)})
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
		return nil, refusal.Invalid("a new user name needs its grant as well")
	}
	keep := same && a.Username == was.Username && sealed != nil
	check := a
	if keep {
		if err := a.validateMechanism(); err != nil {
			return nil, err
		}
		check.Password, check.Grant, check.Mechanism = kept, oauth.Grant{}, ""
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

var listAccounts = `
select name, paused_at, created_at, ` + secretExpires + `, ` + settingColumns + ` from upstream order by name`

// List lists all accounts by name.
func (s *Store) List(ctx context.Context) (list []Listed, err error) {
	rows, err := s.pool.Query(ctx, listAccounts)
	if err != nil {
		return nil, fmt.Errorf("list upstreams: %w", err)
	}
	var l Listed
	_, err = pgx.ForEachRow(rows, l.fields(&l.Name, &l.PausedAt, &l.CreatedAt, &l.SecretExpires), func() error {
		l.OAuth, l.CustomCA, l.Senders = l.Grant.Kind, l.CA != "", strings.Fields(l.Account.Senders)
		list = append(list, l)
		return nil
	})
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

var loadAccounts = `
select name, password, paused_at, ` + secretExpires + `, ` + settingColumns + ` from upstream`

// Loaded is an account with its password and the mailbox that it sends as, or why it cannot be
// used.
type Loaded struct {
	Account Account
	Err     error
}

// PausedError says that an admin lets the mail of an upstream wait.
type PausedError struct{ Upstream string }

func (e *PausedError) Error() string { return "upstream " + e.Upstream + " is paused" }

// isPaused reports a PausedError.
func isPaused(err error) bool {
	_, is := errors.AsType[*PausedError](err)
	return is
}

// UnusableError says why this machine cannot use the account of an upstream; others may.
type UnusableError struct {
	Upstream string
	Err      error
}

func (e *UnusableError) Error() string { return fmt.Sprintf("upstream %q: %v", e.Upstream, e.Err) }

func (e *UnusableError) Unwrap() error { return e.Err }

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
	_, err = pgx.ForEachRow(rows, a.fields(&a.Name, &sealed, &paused, &a.SecretExpires), func() error {
		a.Replies = tableOf(a.Preset, added[a.Name])
		l := &Loaded{Account: a}
		err := s.unseal(&l.Account, sealed)
		if err == nil {
			l.Account.SendsAs, err = a.sendsAs()
		}
		switch {
		case err != nil:
			l.Err = &UnusableError{a.Name, err}
		case paused != nil:
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

// Usable returns the accounts with their passwords, by name; and, by name, why this Store
// cannot open the password of others.
func (s *Store) Usable(ctx context.Context) (list []Account, sealed map[string]error, err error) {
	accounts, err := s.Load(ctx, s.pool)
	sealed = map[string]error{}
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		if l := accounts[name]; l.Err == nil || isPaused(l.Err) {
			list = append(list, l.Account)
		} else {
			sealed[name] = l.Err
		}
	}
	return list, sealed, err
}

const pauseAccount = `
update upstream set paused_at = case when $2 then coalesce(paused_at, now()) end
where name = $1 and (paused_at is null) = $2 returning true`

// Pause lets the mail of an account wait, or no longer, and reports whether that is a change.
// Errors: refusal.ErrNotFound.
func (s *Store) Pause(ctx context.Context, name string, pause bool) (changed bool, err error) {
	action, kind := "upstream resume", "upstream.resumed"
	if pause {
		action, kind = "upstream pause", "upstream.paused"
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
		return s.record(ctx, tx, kind, audit.Deed{Action: action, Object: name})
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
		return s.record(ctx, tx, "upstream.removed", audit.Deed{Action: "upstream remove", Object: name})
	})
	switch {
	case pg.Code(err) == pg.ForeignKeyViolation:
		return refusal.Invalid("upstream %q is used by a route of 'postern route list'; give that another upstream first, with 'postern route add --replace', or remove it", name)
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

// unseal opens the secret. One that does not open spoils its own upstream only.
func (s *Store) unseal(a *Account, sealed []byte) error {
	switch {
	case sealed == nil:
		return nil
	case s.sealer == nil:
		return ErrNoKey
	}
	secret, err := s.sealer.Open(a.place(), sealed)
	switch {
	case err != nil:
	case a.Grant.Kind == "":
		a.Password = string(secret)
	default:
		err = json.Unmarshal(secret, &a.Grant)
	}
	return err
}

// place is what a secret is sealed for: moved to another row of the table it must not open. No
// part can hold NUL, so the joint is unambiguous.
func (a *Account) place() string {
	place := "upstream\x00" + a.Name + "\x00" + a.Username
	if a.Grant.Kind != "" {
		place += "\x00oauth"
	}
	return place
}

// Sealed describes the passwords and grants, with their places.
func Sealed() seal.Column {
	return seal.Column{
		Read: `
select array['upstream', name, username] || case when oauth = '' then '{}' else '{oauth}'::text[] end, password
from upstream where password is not null and ($1::bytea is null or substr(password, 1, length($1)) <> $1)`,
		Write: `update upstream set password = $3 where name = ($1::text[])[2] and password = $2`,
	}
}
