package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/auth/audit"
	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
)

// Errors of Store, possibly wrapped.
var (
	ErrExists   = errors.New("already exists")
	ErrNotFound = errors.New("no such user")
	ErrPassword = errors.New("not a valid password")
)

// User is an account as an admin sees it.
type User struct {
	ID             int64
	Name           string // canonical
	Enabled        bool
	DisabledReason string
	NoDefaults     bool   // exempt from the default limits
	InDoubt        string // what becomes of its mail in doubt, of DoubtPolicies; "": as its way says
	HasPassword    bool
	Credentials    int       // that work: neither revoked nor expired, the password with them
	LastUsedAt     time.Time // of any credential; zero: never
	Senders        []string  // canonical patterns, sorted; empty: the user's own name
	Resend         []string  // those of Senders by which the user may also resend others' mail
	CreatedAt      time.Time
	UpdatedAt      time.Time
}

// NewUser are the properties of a user for AddUser.
type NewUser struct {
	Name     string
	Password string   // "" for none: nobody can log in until there is one
	Senders  []string // patterns, see CanonicalPattern
}

// AddUser adds an enabled user. The error is ErrName, ErrPattern, ErrPassword or
// ErrExists, or of the database.
func (s *Store) AddUser(ctx context.Context, n NewUser) (User, error) {
	name, err := CanonicalName(n.Name)
	if err != nil {
		return User{}, err
	}
	senders, err := canonicalPatterns(n.Senders)
	if err != nil {
		return User{}, err
	}
	hash := ""
	if n.Password != "" {
		if hash, err = s.hash(n.Password); err != nil {
			return User{}, err
		}
	}
	d := audit.Deed{Action: "user add", Object: name, Detail: map[string]any{"password": hash != "", "senders": senders}}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
		if id, err = insertUser(ctx, tx, name, hash, senders); err != nil {
			return 0, err
		}
		return id, audit.Record(ctx, tx, s.actor, d)
	})
	if pg.Code(err) == pg.UniqueViolation {
		return User{}, fmt.Errorf("user %s: %w", name, ErrExists)
	}
	if err != nil {
		return User{}, fmt.Errorf("add user %s: %w", name, err)
	}
	return s.User(ctx, name)
}

func canonicalPatterns(patterns []string) (canonical []string, err error) {
	canonical = make([]string, len(patterns))
	for i, pattern := range patterns {
		if canonical[i], err = CanonicalPattern(pattern); err != nil {
			return nil, err
		}
	}
	return canonical, nil
}

func insertUser(ctx context.Context, tx pgx.Tx, name, hash string, senders []string) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		insert into app_user (name) values ($1) returning id`, name).Scan(&id)
	if err != nil {
		return 0, err
	}
	if err := insertSenders(ctx, tx, id, senders); err != nil || hash == "" {
		return id, err
	}
	return id, insertPassword(ctx, tx, id, hash)
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
	users, err := s.query(ctx, selectPage, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return users, nil
}

// The columns of a user are found by indexes, once for each user returned.
const (
	selectUsers = `
		select u.id, u.name, u.enabled, u.disabled_reason, u.no_limit_defaults, u.in_doubt, u.created_at, u.updated_at,
		       c.password, c.live, c.used_at,
		       array(select p.pattern from sender_pattern p where p.user_id = u.id order by p.pattern),
		       nullif(array(select p.pattern from sender_pattern p where p.user_id = u.id and p.resend order by p.pattern), '{}')
		from app_user u
		cross join lateral (
			select coalesce(bool_or(c.kind = 'password' and c.revoked_at is null), false) as password,
			       count(*) filter (where c.revoked_at is null and (c.expires_at is null or c.expires_at > now())) as live,
			       max(c.last_used_at) as used_at
			from credential c where c.user_id = u.id) c`
	selectPage = selectUsers + ` where u.name > $1 order by u.name limit $2`
)

func (s *Store) query(ctx context.Context, sql string, args ...any) ([]User, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (u User, err error) {
		var used *time.Time
		err = row.Scan(&u.ID, &u.Name, &u.Enabled, &u.DisabledReason, &u.NoDefaults, &u.InDoubt, &u.CreatedAt, &u.UpdatedAt,
			&u.HasPassword, &u.Credentials, &used, &u.Senders, &u.Resend)
		u.LastUsedAt = timeOf(used)
		return u, err
	})
}

// timeOf is a time that may be null, as the zero time.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// SetPassword gives a user a new password in place of the old one, which ends
// immediately. The error is ErrName, ErrNotFound or ErrPassword, or of the database.
func (s *Store) SetPassword(ctx context.Context, name, password string) error {
	hash, err := s.hash(password)
	if err != nil {
		return err
	}
	return s.change(ctx, name, audit.Deed{Action: "user passwd"}, func(ctx context.Context, tx pgx.Tx, id int64) error {
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
	d := audit.Deed{Action: "user disable", Detail: map[string]any{"reason": pg.Storable(reason)}}
	if on {
		reason, d = "", audit.Deed{Action: "user enable"}
	}
	return s.change(ctx, name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `update app_user set enabled = $2, disabled_reason = $3 where id = $1`,
			id, on, pg.Storable(reason))
		return err
	})
}

// AddSender lets a user send as the addresses of pattern. Adding it again changes nothing.
func (s *Store) AddSender(ctx context.Context, name, pattern string) error {
	pattern, err := CanonicalPattern(pattern)
	if err != nil {
		return err
	}
	d := audit.Deed{Action: "sender allow", Detail: map[string]any{"pattern": pattern}}
	return s.change(ctx, name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		return insertSenders(ctx, tx, id, []string{pattern})
	})
}

// SetResend is AddSender that also sets whether the user may resend others' mail as the
// addresses of pattern. The error is ErrPattern for the null sender, or as AddSender's.
func (s *Store) SetResend(ctx context.Context, name, pattern string, on bool) error {
	pattern, err := resendPattern(pattern)
	if err != nil {
		return err
	}
	d := audit.Deed{Action: "sender allow", Detail: map[string]any{"pattern": pattern, "resend": on}}
	return s.change(ctx, name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `
			insert into sender_pattern (user_id, pattern, resend) values ($1, $2, $3)
			on conflict (user_id, pattern) do update set resend = excluded.resend`, id, pattern, on)
		return err
	})
}

// RemoveSender removes a pattern. The error is ErrNotFound if there is none.
func (s *Store) RemoveSender(ctx context.Context, name, pattern string) error {
	pattern, err := CanonicalPattern(pattern)
	if err != nil {
		return err
	}
	d := audit.Deed{Action: "sender deny", Detail: map[string]any{"pattern": pattern}}
	return s.change(ctx, name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		tag, err := tx.Exec(ctx, `delete from sender_pattern where user_id = $1 and pattern = $2`, id, pattern)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("no sender pattern " + pattern)
		}
		return err
	})
}

// sqlRememberUser keeps the names that events of the user's mail show.
const sqlRememberUser = `
	insert into former_user (user_id, name, credentials)
	select u.id, u.name, (select coalesce(jsonb_object_agg(c.id, c.label), '{}') from credential c where c.user_id = u.id)
	from app_user u where u.id = $1`

// RemoveUser deletes a user with all credentials, patterns and limits; mail is not
// touched. The error is ErrName or ErrNotFound, or of the database.
func (s *Store) RemoveUser(ctx context.Context, name string) error {
	return s.change(ctx, name, audit.Deed{Action: "user remove"}, func(ctx context.Context, tx pgx.Tx, id int64) error {
		if _, err := tx.Exec(ctx, sqlRememberUser, id); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from app_user where id = $1`, id); err != nil {
			return err
		}
		return touchEverybody(ctx, tx)
	})
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

// hash refuses passwords that no client could log in with.
func (s *Store) hash(password string) (string, error) {
	if err := checkPassword(password); err != nil {
		return "", err
	}
	return hashPassword(password, s.cost), nil
}

func checkPassword(password string) error {
	switch {
	case password == "":
		return fmt.Errorf("%w: empty", ErrPassword)
	case len(password) > maxPassword:
		return fmt.Errorf("%w: longer than %d octets", ErrPassword, maxPassword)
	case isSecret(password):
		return fmt.Errorf("%w: it has the form of a generated secret", ErrPassword)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return fmt.Errorf("%w: it holds control characters or is not UTF-8", ErrPassword)
	}
	return nil
}
