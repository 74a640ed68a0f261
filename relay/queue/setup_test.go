package queue

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

// ctxOf bounds a test's use of the database.
func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// calmConfig has leases that no test outlives, however slow it is: an epoch dies when
// the test says so, see die.
func calmConfig(db *pgtest.DB) Config {
	return Config{EnqueuePool: db.Pool, WorkPool: db.Pool, Node: "a", Log: slog.New(slog.DiscardHandler), Poll: 100 * time.Millisecond,
		Lease: 30 * time.Minute, Trust: 20 * time.Minute}
}

// handConfig is calmConfig for a node whose heartbeats and sweeps the test makes by hand.
func handConfig(db *pgtest.DB, node string) Config {
	cfg := calmConfig(db)
	cfg.Node, cfg.Heartbeat = node, time.Hour
	return cfg
}

func start(t testing.TB, cfg Config, change ...func(*Queue)) *Queue {
	t.Helper()
	q := New(cfg)
	for _, f := range change {
		f(q)
	}
	if err := q.Start(ctxOf(t)); err != nil {
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

// still ends a node's background work, whose rounds would otherwise come between those
// that the test makes by hand. Its epoch lives and its rows stay; mail is accepted,
// but what becomes of it is no longer written.
func still(q *Queue) {
	q.stop()
	q.loops.Wait()
}

func address(s string) smtp.Address {
	a, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

func message() Message {
	return Message{ID: NewID(), UserID: 1, Sender: address("alice@example.com"), AcceptedAt: time.Now(), MessageID: "<m@example.com>",
		Listener: "127.0.0.1:587", TLS: "TLS1.3"}
}

func rcpts(addresses ...string) []Recipient {
	list := make([]Recipient, len(addresses))
	for i, a := range addresses {
		list[i] = Recipient{N: i, Address: address(a)}
	}
	return list
}

// taken is what the node has in hand of what Enqueue has accepted.
func taken(a Accepted, err error) (*Delivery, error) { return a.Delivery, err }

// put enqueues a message for addresses and returns it.
func put(t testing.TB, q *Queue, owned bool, addresses ...string) (Message, *Delivery) {
	t.Helper()
	m := message()
	d, err := taken(q.Enqueue(ctxOf(t), m, rcpts(addresses...), content.New([]byte("Subject: x\r\n\r\nbody\r\n")), owned))
	if err != nil {
		t.Fatalf("enqueue: %v", err)
	}
	return m, d
}

// outcome is the end of an attempt for recipient n of d.
func outcome(d *Delivery, n int, result Result) Outcome {
	o := Outcome{Message: d.Message.ID, N: n, Epoch: d.Epoch, Result: result, StartedAt: time.Now(), At: time.Now(), RemoteMTA: "mx.example.net"}
	for _, r := range d.Recipients {
		if r.N == n {
			o.Recipient = r.Address
		}
	}
	switch result {
	case Delivered:
		o.Reply = smtp.OK(250, 0, 0, "taken")
	case Deferred:
		o.Reply = smtp.Temporary(450, 2, 1, "later")
	case Failed:
		o.Reply = smtp.Permanent(550, 1, 1, "no such user")
	}
	return o
}

// eventually polls what other goroutines bring about in the database.
func eventually(t testing.TB, what string, f func() bool) {
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

func count(t testing.TB, db *pgtest.DB, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := db.Pool.QueryRow(ctxOf(t), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func read(t testing.TB, db *pgtest.DB, sql string, args ...any) (text string) {
	t.Helper()
	if err := db.Pool.QueryRow(ctxOf(t), sql, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func exec(t testing.TB, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(ctxOf(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// working is a connection with the settings of the queue's sessions.
func working(t testing.TB, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(ctxOf(t), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(ctxOf(t), pg.TuneWork, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	return conn
}

// rows describes the live rows of a message, "0 waiting owned;1 failed".
func rows(t testing.TB, db *pgtest.DB, id ID) string {
	t.Helper()
	var s string
	err := db.Pool.QueryRow(ctxOf(t), `select coalesce(string_agg(n || ' ' || state || case when owner is null then '' else ' owned' end
		|| case when possible_duplicate then ' duplicate' else '' end, ';' order by n), '') from recipient where message_id = $1`, id).Scan(&s)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func becomes(t testing.TB, db *pgtest.DB, id ID, want string) {
	t.Helper()
	got := ""
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if got = rows(t, db, id); got == want {
			return
		}
	}
	t.Fatalf("rows of the message are %q after %v, want %q", got, patience, want)
}

// history lists a message's attempts, "0 delivered;1 deferred fenced".
func history(t testing.TB, db *pgtest.DB, id ID) string {
	t.Helper()
	return read(t, db, `select coalesce(string_agg(n || ' ' || result || case when possible_duplicate then ' duplicate' else '' end
		|| case when fenced then ' fenced' else '' end, ';' order by at, n), '') from history where message_id = $1`, id)
}

// claimAll claims until a claim finds rows.
func claimAll(t testing.TB, q *Queue, want ClaimRequest) []*Delivery {
	t.Helper()
	var list []*Delivery
	eventually(t, "a claim finds work", func() bool {
		got, err := q.Claim(ctxOf(t), want)
		if err != nil {
			t.Logf("claim: %v", err)
		}
		list = got
		return len(list) > 0
	})
	return list
}
