// Package queuetest gives a queue to tests of packages that work beside it or on its tables.
package queuetest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

// Context bounds a test's use of the database.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Config has leases that no test outlives, however slow it is.
func Config(db *pgtest.DB) queue.Config {
	return queue.Config{EnqueuePool: db.Pool, WorkPool: db.Pool, Node: "a", Log: slog.New(slog.DiscardHandler), Poll: 100 * time.Millisecond,
		Lease: 30 * time.Minute, Trust: 20 * time.Minute}
}

// HandConfig is Config for a node whose heartbeats and sweeps do not come.
func HandConfig(db *pgtest.DB) queue.Config {
	cfg := Config(db)
	cfg.Heartbeat = time.Hour
	return cfg
}

// Start starts a queue for as long as the test runs.
func Start(t testing.TB, cfg queue.Config) *queue.Queue {
	t.Helper()
	q := queue.New(cfg)
	if err := q.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return q
}

// Address parses an address.
func Address(s string) smtp.Address {
	a, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

// Message is a message of user 1.
func Message() queue.Message {
	return queue.Message{ID: queue.NewID(), UserID: 1, Sender: Address("alice@example.com"), AcceptedAt: time.Now(), MessageID: "<m@example.com>",
		Listener: "127.0.0.1:587", TLS: "TLS1.3"}
}

// Recipients are recipients with these addresses.
func Recipients(addresses ...string) []queue.Recipient {
	list := make([]queue.Recipient, len(addresses))
	for i, a := range addresses {
		list[i] = queue.Recipient{N: i, Address: Address(a)}
	}
	return list
}

// Put enqueues m for addresses. Its Delivery is nil unless it is owned and its user is not
// on hold.
func Put(t testing.TB, q *queue.Queue, m queue.Message, owned bool, addresses ...string) *queue.Delivery {
	t.Helper()
	accepted, err := q.Enqueue(Context(t), m, Recipients(addresses...), content.New([]byte("Subject: x\r\n\r\nbody\r\n")), owned)
	if err != nil {
		t.Fatalf("enqueue: %v", err)
	}
	return accepted.Delivery
}

// Outcome is the end of an attempt for recipient n of d.
func Outcome(d *queue.Delivery, n int, result queue.Result) queue.Outcome {
	o := queue.Outcome{Message: d.Message.ID, N: n, Epoch: d.Epoch, Result: result, StartedAt: time.Now(), At: time.Now(), RemoteMTA: "mx.example.net"}
	for _, r := range d.Recipients {
		if r.N == n {
			o.Recipient = r.Address
		}
	}
	switch result {
	case queue.Delivered:
		o.Reply = smtp.OK(250, 0, 0, "taken")
	case queue.Deferred:
		o.Reply = smtp.Temporary(450, 2, 1, "later")
	case queue.Failed:
		o.Reply = smtp.Permanent(550, 1, 1, "no such user")
	}
	return o
}

// Eventually polls what other goroutines bring about.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("did not come about within %v: %s", patience, what)
}

// Exec runs a statement.
func Exec(t testing.TB, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(Context(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Count reads a number.
func Count(t testing.TB, db *pgtest.DB, sql string, args ...any) int {
	t.Helper()
	return read[int](t, db, sql, args...)
}

// Read reads a text.
func Read(t testing.TB, db *pgtest.DB, sql string, args ...any) string {
	t.Helper()
	return read[string](t, db, sql, args...)
}

func read[T any](t testing.TB, db *pgtest.DB, sql string, args ...any) (value T) {
	t.Helper()
	if err := db.Pool.QueryRow(Context(t), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// Becomes waits until the live rows of a message are want: "0 waiting owned;1 failed".
func Becomes(t testing.TB, db *pgtest.DB, id queue.ID, want string) {
	t.Helper()
	Eventually(t, "the rows of the message are "+want, func() bool {
		return Read(t, db, `select coalesce(string_agg(n || ' ' || state || case when owner is null then '' else ' owned' end
			|| case when possible_duplicate then ' duplicate' else '' end, ';' order by n), '') from recipient where message_id = $1`, id) == want
	})
}
