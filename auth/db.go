package auth

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"postern/auth/audit"
	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
)

// Channel is where Store notifies that a user changed; the payload is the user's
// id, or 0 for everybody. Listening makes a change act immediately, polling within a second.
const Channel = "postern_auth"

// storeTimeout bounds each call of Store.
const storeTimeout = 10 * time.Second

// Store keeps users, their credentials and their limits. Each change is one
// transaction, which raises the user's version and writes a row of the table audit, and
// is then announced on Channel. In a transaction of the caller, a failed change is undone
// alone, and the caller announces it after the commit.
type Store struct {
	db    pg.DB
	cost  Cost
	actor string
}

// NewStore returns a Store on a pool or a transaction. The audit records "postern" as the
// actor of its changes unless As names another.
func NewStore(db pg.DB) *Store { return &Store{db: db, cost: defaultCost, actor: "postern"} }

// As returns a Store whose changes the audit attributes to actor, the operating system's
// user.
func (s *Store) As(actor string) *Store {
	as := *s
	as.actor = pg.Storable(actor)
	return &as
}

// Announce tells every node that a user changed, 0 for everybody. It is for the pool,
// after the commit: in a transaction NOTIFY makes all commits wait for each other. A
// failure is harmless: polling finds the change too.
func (s *Store) Announce(ctx context.Context, userID int64) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if _, err := s.db.Exec(ctx, `select pg_notify($1, $2)`, Channel, strconv.FormatInt(userID, 10)); err != nil {
		return fmt.Errorf("announce user %d: %w", userID, err)
	}
	return nil
}

// inTx runs fn in a transaction and announces the user that it returns.
func (s *Store) inTx(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) (id int64, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var id int64
	err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) (err error) {
		id, err = fn(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if _, theirs := s.db.(pgx.Tx); !theirs {
		_ = s.Announce(ctx, id)
	}
	return nil
}

// change runs fn for an existing user, whose row is locked and whose version is
// raised, and records the deed, whose object is the user's name.
func (s *Store) change(ctx context.Context, name string, d audit.Deed, fn func(ctx context.Context, tx pgx.Tx, id int64) error) error {
	name, err := CanonicalName(name)
	if err != nil {
		return err
	}
	d.Object = name
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
		if id, err = touchUser(ctx, tx, name); err != nil {
			return 0, err
		}
		if err := fn(ctx, tx, id); err != nil {
			return 0, err
		}
		return id, audit.Record(ctx, tx, s.actor, d)
	})
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	return nil
}

// touchUser locks a user and raises the version. It uses the statement's clock, for Watch
// looks for recent changes.
func touchUser(ctx context.Context, tx pgx.Tx, name string) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		update app_user set version = version + 1, updated_at = clock_timestamp()
		where name = $1 returning id`, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrNotFound
	}
	return id, err
}

// touchEverybody tells Watch to look at all users again.
func touchEverybody(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `update auth_state set defaults_changed_at = clock_timestamp()`)
	return err
}

// notFound is an ErrNotFound with its own text.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == ErrNotFound }
