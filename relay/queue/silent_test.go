package queue

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
)

// mutable is a connection to a server that can fall silent: from then on it takes what is
// written and nothing that it says arrives.
type mutable struct {
	net.Conn
	mute atomic.Bool
	at   []byte       // a write that holds it mutes the connection, unless one was muted by that
	done *atomic.Bool // one was
}

func (m *mutable) Write(p []byte) (int, error) {
	if bytes.Contains(p, m.at) && !m.done.Swap(true) {
		m.mute.Store(true)
	}
	return m.Conn.Write(p)
}

func (m *mutable) Read(p []byte) (int, error) {
	for {
		if n, err := m.Conn.Read(p); err != nil || !m.mute.Load() {
			return n, err
		}
	}
}

// mutablePool has connections of which the first to write at falls silent.
func mutablePool(t *testing.T, db *pgtest.DB, at string) (pool *pgxpool.Pool, muted *atomic.Bool) {
	t.Helper()
	cfg, muted := db.Pool.Config(), new(atomic.Bool)
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &mutable{Conn: conn, at: []byte(at), done: muted}, nil
	}
	pool, err := pgxpool.NewWithConfig(ctxOf(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, muted
}

// TestSilentCommit: a commit that is not answered counts as in doubt long before its
// client's patience ends, and is asked after over another connection.
func TestSilentCommit(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small": 100, "large": 2 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cfg := calmConfig(db)
			var muted *atomic.Bool
			cfg.EnqueuePool, muted = mutablePool(t, db, "insert into message")
			cfg.Budget = patience
			q := start(t, cfg, func(q *Queue) { q.waits.try = time.Second })
			m := message()
			if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true); err != nil || !muted.Load() {
				t.Fatalf("%v, muted %v", err, muted.Load())
			}
			if n := count(t, db, `select count(*) from message where id = $1`, m.ID); n != 1 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// TestSlowCommitIsLookedAfter: a commit that takes long makes the heartbeat look whether
// the server is there, whenever its turn would be.
func TestSlowCommitIsLookedAfter(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var before time.Duration
	q := start(t, handConfig(db, "a"), func(q *Queue) {
		q.waits.slowCommit = time.Millisecond
		q.faults.commit.After = func(*pgx.Conn) error {
			for end := time.Now().Add(patience); q.epochs.current.Load().sent == before; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					return errors.New("no heartbeat beside the commit")
				}
			}
			return nil
		}
	})
	before = q.epochs.current.Load().sent
	put(t, q, true, "a@example.net")
}

// TestSilentHeartbeat: a heartbeat that is not answered is made over another connection
// soon, long before the trust ends.
func TestSilentHeartbeat(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	cfg.WorkPool, _ = mutablePool(t, db, "never written")
	q := start(t, cfg, func(q *Queue) { q.waits.beat = time.Millisecond })
	e := q.epochs
	e.mu.Lock()
	conn, err := e.s.Get(ctxOf(t))
	if err == nil {
		conn.PgConn().Conn().(interface{ NetConn() net.Conn }).NetConn().(*mutable).mute.Store(true)
	}
	e.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	sent := e.current.Load().sent
	if e.step(ctxOf(t), 0); e.down() != nil || e.current.Load().sent == sent {
		t.Errorf("after a heartbeat into silence: %v", e.down())
	}
}
