package auth

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Errors of Store, possibly wrapped.
var (
	ErrExists   = errors.New("already exists")
	ErrNotFound = errors.New("no such user")
	ErrPassword = errors.New("not a valid password")
)

// Channel is where Store notifies that a user changed; the payload is the user's
// id. Listening makes a change act at once, polling within seconds.
const Channel = "postern_auth"

// storeTimeout bounds each call of Store.
const storeTimeout = 10 * time.Second

// User is an account as an admin sees it.
type User struct {
	ID             int64
	Name           string // canonical
	Enabled        bool
	DisabledReason string
	HasPassword    bool
	Senders        []string // canonical patterns, sorted; empty: the user's own name
	CreatedAt      time.Time
	UpdatedAt      time.Time
}

// NewUser is what AddUser needs to know.
type NewUser struct {
	Name     string
	Password string   // "" for none: nobody can log in until there is one
	Senders  []string // patterns, see CanonicalPattern
}

// Store keeps users and credentials. Each change is one transaction, raises the
// user's version, and is then announced on Channel.
type Store struct {
	pool *pgxpool.Pool
	cost Cost
}

// NewStore returns a Store on pool.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool: pool, cost: defaultCost} }

// AddUser adds an enabled user. The error is ErrName, ErrPattern, ErrPassword or
// ErrExists, or of the database.
func (s *Store) AddUser(ctx context.Context, n NewUser) (User, error) {
	name, err := CanonicalName(n.Name)
	if err != nil {
		return User{}, err
	}
	senders := make([]string, len(n.Senders))
	for i, pattern := range n.Senders {
		if senders[i], err = CanonicalPattern(pattern); err != nil {
			return User{}, err
		}
	}
	hash := ""
	if n.Password != "" {
		if hash, err = s.hash(n.Password); err != nil {
			return User{}, err
		}
	}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
		err = tx.QueryRow(ctx, `
			insert into app_user (name) values ($1) returning id`, name).Scan(&id)
		if err != nil {
			return 0, err
		}
		if err := insertSenders(ctx, tx, id, senders); err != nil {
			return 0, err
		}
		if hash == "" {
			return id, nil
		}
		return id, insertPassword(ctx, tx, id, hash)
	})
	if isUniqueViolation(err) {
		return User{}, fmt.Errorf("user %s: %w", name, ErrExists)
	}
	if err != nil {
		return User{}, fmt.Errorf("add user %s: %w", name, err)
	}
	return s.User(ctx, name)
}

// User returns one user. The error is ErrName or ErrNotFound, or of the database.
func (s *Store) User(ctx context.Context, name string) (User, error) {
	name, err := CanonicalName(name)
	if err != nil {
		return User{}, err
	}
	users, err := s.query(ctx, selectUsers+` where u.name = $1`, name)
	if err != nil {
		return User{}, fmt.Errorf("read user %s: %w", name, err)
	}
	if len(users) == 0 {
		return User{}, fmt.Errorf("user %s: %w", name, ErrNotFound)
	}
	return users[0], nil
}

// ListUsers returns at most limit users in the order of their names, from the
// first after the name after ("" for the beginning).
func (s *Store) ListUsers(ctx context.Context, after string, limit int) ([]User, error) {
	users, err := s.query(ctx, selectUsers+` where u.name > $1 order by u.name limit $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return users, nil
}

const selectUsers = `
	select u.id, u.name, u.enabled, u.disabled_reason,
	       exists (select from credential c where c.user_id = u.id and c.kind = 'password' and c.revoked_at is null),
	       array(select p.pattern from sender_pattern p where p.user_id = u.id order by p.pattern),
	       u.created_at, u.updated_at
	from app_user u`

func (s *Store) query(ctx context.Context, sql string, args ...any) ([]User, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[User])
}

// SetPassword gives a user a new password in place of the old one, which ends at
// once. The error is ErrName, ErrNotFound or ErrPassword, or of the database.
func (s *Store) SetPassword(ctx context.Context, name, password string) error {
	hash, err := s.hash(password)
	if err != nil {
		return err
	}
	return s.change(ctx, name, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `
			update credential set revoked_at = now(), updated_at = now()
			where user_id = $1 and kind = 'password' and revoked_at is null`, id)
		if err != nil {
			return err
		}
		return insertPassword(ctx, tx, id, hash)
	})
}

// SetEnabled disables a user, with a reason for other admins, or enables one again.
func (s *Store) SetEnabled(ctx context.Context, name string, on bool, reason string) error {
	if on {
		reason = ""
	}
	return s.change(ctx, name, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `update app_user set enabled = $2, disabled_reason = $3 where id = $1`,
			id, on, storable(reason))
		return err
	})
}

// AddSender lets a user send as what pattern says. Adding it again changes nothing.
func (s *Store) AddSender(ctx context.Context, name, pattern string) error {
	pattern, err := CanonicalPattern(pattern)
	if err != nil {
		return err
	}
	return s.change(ctx, name, func(ctx context.Context, tx pgx.Tx, id int64) error {
		return insertSenders(ctx, tx, id, []string{pattern})
	})
}

// RemoveSender takes a pattern away. One that is not there is ErrNotFound.
func (s *Store) RemoveSender(ctx context.Context, name, pattern string) error {
	pattern, err := CanonicalPattern(pattern)
	if err != nil {
		return err
	}
	return s.change(ctx, name, func(ctx context.Context, tx pgx.Tx, id int64) error {
		tag, err := tx.Exec(ctx, `delete from sender_pattern where user_id = $1 and pattern = $2`, id, pattern)
		if err == nil && tag.RowsAffected() == 0 {
			return fmt.Errorf("sender pattern %s: %w", pattern, errNoPattern)
		}
		return err
	})
}

var errNoPattern = fmt.Errorf("%w with it", ErrNotFound)

// change runs fn for an existing user, whose row is locked and whose version is raised.
func (s *Store) change(ctx context.Context, name string, fn func(ctx context.Context, tx pgx.Tx, id int64) error) error {
	name, err := CanonicalName(name)
	if err != nil {
		return err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
		err = tx.QueryRow(ctx, `
			update app_user set version = version + 1, updated_at = now()
			where name = $1 returning id`, name).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return 0, ErrNotFound
		}
		if err != nil {
			return 0, err
		}
		return id, fn(ctx, tx, id)
	})
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	return nil
}

// inTx runs fn in a transaction and announces the user that it returns.
func (s *Store) inTx(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) (id int64, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var id int64
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
		id, err = fn(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	// Apart from the transaction, for a NOTIFY serialises commits. The change is
	// made whether or not anybody hears of it: polling finds it too.
	_, _ = s.pool.Exec(ctx, `select pg_notify($1, $2)`, Channel, strconv.FormatInt(id, 10))
	return nil
}

func insertSenders(ctx context.Context, tx pgx.Tx, id int64, patterns []string) error {
	_, err := tx.Exec(ctx, `
		insert into sender_pattern (user_id, pattern)
		select $1::bigint, unnest($2::text[]) on conflict do nothing`, id, patterns)
	return err
}

func insertPassword(ctx context.Context, tx pgx.Tx, id int64, hash string) error {
	_, err := tx.Exec(ctx, `
		insert into credential (user_id, kind, hash) values ($1, 'password', $2)`, id, hash)
	return err
}

// hash refuses passwords that no client could send.
func (s *Store) hash(password string) (string, error) {
	switch {
	case password == "":
		return "", fmt.Errorf("%w: empty", ErrPassword)
	case len(password) > maxPassword:
		return "", fmt.Errorf("%w: longer than %d octets", ErrPassword, maxPassword)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return "", fmt.Errorf("%w: it holds control characters or is no UTF-8", ErrPassword)
	}
	return hashPassword(password, s.cost), nil
}

// storable makes text fit for a text column.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func isUniqueViolation(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}
