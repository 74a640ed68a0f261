package pg

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/pgtest"
)

func said(code string) *pgconn.PgError {
	return &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: code}
}

// What an error says about the commit: in doubt, uncertain.
func TestCertainty(t *testing.T) {
	t.Parallel()
	fatal := said("57P01")
	fatal.SeverityUnlocalized = "FATAL"
	for _, c := range []struct {
		err  error
		want Certainty
	}{
		{said("23505"), Rejected}, {said("53100"), Rejected}, {said("40001"), Rejected}, {pgx.ErrTxCommitRollback, Rejected},
		{said("57014"), Uncertain}, {said("08007"), Uncertain}, {said("40003"), Uncertain}, {fatal, Uncertain},
		{ErrNotReplicated, Uncertain}, {errors.New("read: connection reset"), Uncertain}, {context.DeadlineExceeded, Uncertain},
		{&ConnectError{Err: errors.New("refused")}, NotSent}, {&ConnectError{Err: fatal}, NotSent},
		{&RowError{Err: errors.New("disk")}, Rejected}, {&UnsentError{Err: &RowError{Err: errors.New("disk")}}, Rejected},
		{&UnsentError{Err: errors.New("failed to encode args[3]")}, NotSent},
	} {
		if got := CertaintyOf(fmt.Errorf("insert: %w", c.err)); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestStorable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "plain": "plain", "é": "é", "a\x00b": "a\uFFFDb", "\xff": "\uFFFD", "\xed\xa0\x80": "\uFFFD"} {
		if got := Storable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := Storable(strings.Repeat("é", maxStoredText)); len(got) > maxStoredText+3 {
		t.Errorf("%d octets", len(got))
	}
}

// Trouble with one message is not taken for trouble with the database.
func TestIsDown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&ConnectError{Err: errors.New("refused")}, true}, {errors.New("unexpected EOF"), true}, {said("25006"), true}, {said("53100"), true}, {said("57P01"), true},
		{&RowError{Err: errors.New("disk")}, false}, {said("22021"), false}, {said("23505"), false}, {said("40001"), false}, {said("55P03"), false},
	} {
		if got := IsDown(fmt.Errorf("insert: %w", c.err)); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

// A connection that the server closed while nobody used it puts no message in doubt:
// it is refused, or stored over another one, immediately.
func TestIdleConnectionIsLookedAt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	s := NewDedicated(db.Pool, TuneCommit)
	defer s.Close()
	conn, err := s.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Pool.Exec(ctx, `select pg_terminate_backend($1, 60000)`, conn.PgConn().PID()); err != nil {
		t.Fatal(err)
	}
	s.used = time.Now().Add(-time.Minute)
	again, err := s.Get(ctx)
	if err != nil || again == conn {
		t.Fatalf("the same connection, %v", err)
	}
	if err := again.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}

// A role's synchronous_commit is made as strong as a commit needs it, and never weaker.
func TestDedicatedIsDurable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for had, want := range map[string]string{"off": "on", "local": "on", "on": "on", "remote_apply": "remote_apply"} {
		for _, tune := range []string{TuneWork, TuneCommit} {
			s := NewDedicated(db.Pool, tune)
			s.pool.ConnConfig.RuntimeParams["synchronous_commit"] = had
			conn, err := s.Get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got string
			if err := conn.QueryRow(t.Context(), `show synchronous_commit`).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s, %v, want %s", had, got, err, want)
			}
			s.Close()
		}
	}
}
