package refused

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/smtp"
)

var no = smtp.Permanent(550, 5, 1, "no")

func newCounter(db pg.DB) *Counter { return NewCounter(db, slog.New(slog.DiscardHandler)) }

// told are the events in the table.
func told(t *testing.T, db *pgtest.DB) []string {
	t.Helper()
	rows, err := db.Pool.Query(t.Context(), `select user_id || ' ' || object || ' ' || (detail->>'count') || ' ' || (detail->>'reply') ||
		case when (detail->>'since')::timestamptz <= at then '' else ' since later' end from event where kind = 'refused' order by user_id, object`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func to(n int) smtp.Address { return smtp.Address{Local: fmt.Sprint("b", n), Domain: "example.net"} }

// One event for each user and address, with the count, and none for what was written before.
func TestCounts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := newCounter(db.Pool)
	for range 3 {
		c.Add(1, to(1), no)
	}
	c.Add(2, to(1), smtp.Permanent(550, 7, 1, "other"))
	for range 2 {
		c.write(t.Context())
		if got, want := fmt.Sprintf("%q", told(t, db)), fmt.Sprintf("%q", []string{"1 b1@example.net 3 550 5.5.1 no", "2 b1@example.net 1 550 5.7.1 other"}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Many addresses take bounded memory, and all refusals are counted.
func TestBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := newCounter(db.Pool)
	for i := range 5000 {
		c.Add(1, to(i), no)
	}
	c.Add(2, to(1), no)
	for i := range int64(3 * most) {
		c.Add(10+i, to(1), no)
	}
	if len(c.counts) != most {
		t.Errorf("%d are kept", len(c.counts))
	}
	c.write(t.Context())
	if got := told(t, db); len(got) != most || got[0] != "1  4000 550 5.5.1 no" {
		t.Errorf("%d events: %s", len(got), got[0])
	}
}

// Counts that the database does not take are written later.
func TestWritesLater(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := newCounter(db.Pool)
	away, cancel := context.WithCancel(t.Context())
	cancel()
	c.Add(1, to(1), no)
	c.write(away)
	c.Add(1, to(1), no)
	c.write(t.Context())
	if got := told(t, db); len(got) != 1 || got[0] != "1 b1@example.net 2 550 5.5.1 no" {
		t.Errorf("%q", got)
	}
}

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}
