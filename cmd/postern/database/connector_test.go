package database

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// TestR1CommandEndsWithItsServer: a command does not wait for a server whose processes
// stand still, though its kernel acknowledges all that is sent.
func TestR1CommandEndsWithItsServer(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{})
	t.Cleanup(func() { _ = server.Kill() })
	c := Connector{look: 10 * time.Millisecond}
	err := c.Watched(t.Context(), server.URL()+"&connect_timeout=5", func(conn *pgx.Conn) error {
		server.Pause()
		_, err := conn.Exec(t.Context(), `select $1::int`, 1)
		return err
	})
	if !errors.Is(err, pg.ErrAbandoned) {
		t.Errorf("the command ended with %v", err)
	}
}

// TestR1CommandGoesOn: a statement that takes long is not taken for a server that is gone.
func TestR1CommandGoesOn(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	c := Connector{look: 10 * time.Millisecond}
	err := c.Watched(t.Context(), db.URL, func(conn *pgx.Conn) error {
		_, err := conn.Exec(t.Context(), `select pg_sleep($1)`, 0.5)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestR1CommandGoesOnWithoutMoreConnections: a server that takes no further connection has
// answered, and goes on with what it has begun.
func TestR1CommandGoesOnWithoutMoreConnections(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{})
	c := Connector{look: 10 * time.Millisecond}
	err := c.Watched(t.Context(), server.URL(), func(conn *pgx.Conn) error {
		if _, err := conn.Exec(t.Context(), `alter role current_user nologin`); err != nil {
			return err
		}
		_, err := conn.Exec(t.Context(), `select pg_sleep($1)`, 1)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
