package queue

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
)

// TestSetTimes: spans that are given hold from then on, the others stay.
func TestSetTimes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	expires := func(m Message) time.Duration {
		t.Helper()
		left := count(t, db, `select extract(epoch from expires_at - accepted_at)::int from recipient where message_id = $1`, m.ID)
		return time.Duration(left) * time.Second
	}
	before, d := put(t, q, true, "a@one.test")
	q.SetTimes(Times{Lifetime: 3 * time.Hour, DelayNotice: 20 * time.Minute})
	after, _ := put(t, q, true, "a@one.test")
	if b, a := expires(before), expires(after); b != 120*time.Hour || a != 3*time.Hour {
		t.Errorf("lifetimes %v and then %v, want 120h and 3h", b, a)
	}
	o := outcome(d, 0, Deferred)
	o.RetryIn = time.Minute
	q.Settle(o)
	becomes(t, db, before.ID, "0 waiting")
	if n := count(t, db, `select count(*) from recipient where notice_at = accepted_at + interval '20 minutes'`); n != 1 {
		t.Error("the delay is not told of after the new span")
	}
	if q.SetTimes(Times{DelayNotice: time.Hour}); q.times.Load().Lifetime != 3*time.Hour {
		t.Errorf("lifetime %v, want what it was", q.times.Load().Lifetime)
	}
}

// TestTurnedWithoutDatabase: the heartbeat's loop comes round however long the database
// says nothing and its URL lets a connection take, for a process is not to be ended for that.
func TestTurnedWithoutDatabase(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var away atomic.Bool
	pool := poolOf(t, db, func(ctx context.Context, network, addr string) (net.Conn, error) {
		if away.Load() { // it does not even refuse
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	})
	cfg := calmConfig(db)
	cfg.WorkPool, cfg.Heartbeat, cfg.Trust = pool, 50*time.Millisecond, 300*time.Millisecond
	q := start(t, cfg)
	away.Store(true)
	q.epochs.mu.Lock()
	q.epochs.s.Drop()
	q.epochs.mu.Unlock()
	eventually(t, "it notices", func() bool { return q.Available() != nil })
	for range 3 {
		turned := q.epochs.turned.Load()
		eventually(t, "it comes round", func() bool { return q.epochs.turned.Load() != turned })
	}
	last := time.Duration(q.epochs.turned.Load())
	if turn := q.Turned(); turn < 0 || turn > q.clock.Now()-last {
		t.Errorf("it says that it came round %v ago", turn)
	}
	away.Store(false)
}

func poolOf(t *testing.T, db *pgtest.DB, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *pgxpool.Pool {
	t.Helper()
	cfg := db.Pool.Config()
	cfg.ConnConfig.DialFunc, cfg.ConnConfig.ConnectTimeout = dial, time.Hour
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// shortAtFirst is a context that says, when first asked, that it ends in two seconds,
// and then the truth: the first wait of half of its time is short, and whatever comes
// after it on a slow machine has its time.
type shortAtFirst struct {
	context.Context
	asked *atomic.Bool
}

func (c shortAtFirst) Deadline() (time.Time, bool) {
	if c.asked.CompareAndSwap(false, true) {
		return time.Now().Add(2 * time.Second), true
	}
	return c.Context.Deadline()
}

// TestCloseWithPendingCommit: a commit that hangs takes half of the time, and not the
// outcomes of other mail with it.
func TestCloseWithPendingCommit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	hangs, release := make(chan struct{}), make(chan struct{})
	var hang sync.Once
	hung := false
	q := New(calmConfig(db))
	q.faults.commit.Before = func(*pgx.Conn) error {
		if hung {
			hang.Do(func() {
				close(hangs)
				<-release
			})
		}
		return nil
	}
	if err := q.Start(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	sent, d := put(t, q, true, "a@one.test")
	waits, _ := put(t, q, true, "b@one.test")
	hung = true
	done := make(chan error, 1)
	go func() {
		_, err := q.Enqueue(ctxOf(t), message(), rcpts("c@one.test"), content.New([]byte("Subject: x\r\n\r\n")), true)
		done <- err
	}()
	<-hangs
	q.Settle(outcome(d, 0, Delivered))
	ctx := shortAtFirst{ctxOf(t), new(atomic.Bool)}
	if err := q.Close(ctx); !errors.Is(err, errPending) {
		t.Errorf("Close says %v, want that a commit is pending", err)
	}
	if ctx.Err() != nil {
		t.Error("the pending commit took all of the time")
	}
	if got := history(t, db, sent.ID); got != "0 delivered" {
		t.Errorf("history of what was delivered: %q", got)
	}
	if got := rows(t, db, waits.ID); got != "0 waiting duplicate" { // nobody has said that it was not sent
		t.Errorf("rows of what was not: %q", got)
	}
	if n := count(t, db, `select count(*) from node where reaped_at is null`); n != 0 {
		t.Errorf("%d epochs live", n)
	}
	close(release)
	if err := <-done; err == nil {
		t.Error("a message was accepted under an epoch that has ended")
	}
}
