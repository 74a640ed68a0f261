package queue

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/logtest"
	"postern/internal/pg"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// errCut is what a caller sees of a connection that broke.
var errCut = errors.New("the connection is cut")

// once lets f happen at the first call only.
func once(f func(*pgx.Conn) error) func(*pgx.Conn) error {
	var done atomic.Bool
	return func(c *pgx.Conn) error {
		if done.Swap(true) {
			return nil
		}
		return f(c)
	}
}

func cut(c *pgx.Conn) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // without a farewell
	_ = c.Close(ctx)
	return errCut
}

func terminate(c *pgx.Conn) error {
	pid := c.PgConn().PID()
	killer, err := pgx.ConnectConfig(context.Background(), c.Config().Copy())
	if err != nil {
		return err
	}
	defer killer.Close(context.Background())
	_, err = killer.Exec(context.Background(), `select pg_terminate_backend($1, 60000)`, pid)
	return err
}

// Enqueue in two flavours: not persisted, and persisted but answered with an error;
// and the backend killed under it. In each the message is there exactly once.
func TestEnqueueFaults(t *testing.T) {
	t.Parallel()
	small, large := content.New([]byte("small")), content.New(make([]byte, 2<<20))
	for name, fault := range map[string]faults{
		"not persisted":         {commit: pg.Faults{Before: once(cut)}},
		"persisted but error":   {commit: pg.Faults{After: once(cut)}},
		"backend killed before": {commit: pg.Faults{Before: once(terminate)}},
		"rejected": {commit: pg.Faults{Before: once(func(*pgx.Conn) error {
			return &pgconn.PgError{SeverityUnlocalized: "ERROR", Code: "40001"}
		})}},
	} {
		for size, body := range map[string]content.Body{"small": small, "large": large} {
			t.Run(name+" "+size, func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				q := start(t, calmConfig(db), func(q *Queue) { q.faults = fault })
				m := message()
				d, err := taken(q.Enqueue(ctxOf(t), m, rcpts("a@example.net", "b@example.net"), body, true))
				if err != nil {
					t.Fatal(err)
				}
				if got := rows(t, db, m.ID); got != "0 waiting owned;1 waiting owned" {
					t.Fatalf("rows %q", got)
				}
				q.Settle(outcome(d, 0, Delivered), outcome(d, 1, Delivered))
				becomes(t, db, m.ID, "")
			})
		}
	}
}

// A message that was committed, delivered and settled while its commit was in doubt
// (by another node, after a reap) does not come back by the rerun.
func TestRerunDoesNotResurrect(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), func(q *Queue) {
		q.faults.commit.After = once(func(c *pgx.Conn) error {
			_, err := c.Exec(context.Background(), `delete from recipient; `, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				return err
			}
			return cut(c)
		})
	})
	m, _ := put(t, q, true, "a@example.net")
	if got := rows(t, db, m.ID); got != "" {
		t.Fatalf("rows %q", got)
	}
}

// While the fate stays unknown the client hears 451, and the message goes as soon as
// the database answers.
func TestUnknownIsVoided(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.Budget = 300 * time.Millisecond
	q := start(t, cfg, func(q *Queue) {
		q.faults.commit.After = func(c *pgx.Conn) error { return cut(c) }
	})
	m := message()
	_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true)
	var refused *smtp.Error
	if !errors.As(err, &refused) || refused.Reply.Code != 451 {
		t.Fatalf("want 451, got %v", err)
	}
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from message where id = $1 and voided_at is not null`, m.ID); n != 1 {
		t.Fatal("the message is not marked void")
	}
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 0 {
		t.Fatal("the body is left")
	}
	if got := history(t, db, m.ID); got != "0 void" {
		t.Fatalf("history %q", got)
	}
	eventually(t, "nothing is held", func() bool { return !q.inHand.has(m.ID) })
}

// Settle in two flavours. Applied twice is applied once.
func TestSettleFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faults{
		"not persisted":       {settle: pg.Faults{Before: once(cut)}},
		"persisted but error": {settle: pg.Faults{After: once(cut)}},
		"backend killed":      {settle: pg.Faults{Before: once(terminate)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			out := &logtest.Lines{}
			cfg := calmConfig(db)
			cfg.Log = slog.New(slog.NewTextHandler(out, nil))
			q := start(t, cfg, func(q *Queue) { q.faults = fault })
			m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.net")
			deferred := outcome(d, 1, Deferred)
			deferred.RetryIn = time.Hour
			q.Settle(outcome(d, 0, Delivered), deferred, outcome(d, 2, Failed))
			becomes(t, db, m.ID, "1 waiting;2 failed")
			eventually(t, "all is settled", func() bool { return !q.inHand.has(m.ID) })
			if got := history(t, db, m.ID); got != "0 delivered;1 deferred;2 failed" && got != "0 delivered;2 failed;1 deferred" {
				if strings.Count(got, ";") != 2 || strings.Contains(got, "fenced") {
					t.Fatalf("history %q", got)
				}
			}
			if n := count(t, db, `select attempts from recipient where message_id = $1 and n = 1`, m.ID); n != 1 {
				t.Fatalf("%d attempts counted", n)
			}
			if strings.Contains(out.String(), "fenced") {
				t.Fatalf("taken for fenced:\n%s", out.String())
			}
		})
	}
}

// Outcomes that cannot be written, as on a disk that stays full, do not keep the queue standing
// still in silence: the heartbeat is well.
func TestSettleTellsOfLongTrouble(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	out := &logtest.Lines{}
	cfg := calmConfig(db)
	cfg.Log = out.Logger()
	var full atomic.Bool
	full.Store(true)
	q := start(t, cfg, func(q *Queue) {
		q.waits.tell = 0
		q.faults.settle.Before = func(*pgx.Conn) error {
			if full.Load() {
				return &pgconn.PgError{Code: "53100", Severity: "ERROR", SeverityUnlocalized: "ERROR", Message: "no room"}
			}
			return nil
		}
	})
	m, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Delivered))
	eventually(t, "the log has it", func() bool { return out.Count("settle failed, will retry") > 1 })
	full.Store(false)
	eventually(t, "it is settled", func() bool { return !q.inHand.has(m.ID) })
}

// What was settled may be claimed again, by the same node and epoch, before the
// settler knows that its commit has succeeded. Settling it again must leave that claim
// alone: the recipient would wait for another claim while it is being delivered.
func TestRepeatedSettleSparesNewClaim(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Queue, *Delivery){
		"released": func(q *Queue, d *Delivery) { q.Release(d, []int{0}, 0) },
		"deferred": func(q *Queue, d *Delivery) { q.Settle(outcome(d, 0, Deferred)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			claimed := make(chan []*Delivery, 1)
			q := start(t, calmConfig(db), func(q *Queue) {
				q.faults.settle.After = once(func(c *pgx.Conn) error {
					list, err := q.Claim(context.Background(), all)
					claimed <- list
					return errors.Join(err, cut(c))
				})
			})
			m, d := put(t, q, true, "a@example.net")
			end(q, d)
			list := <-claimed
			if len(list) != 1 {
				t.Fatalf("claimed %d messages", len(list))
			}
			behind, d := put(t, q, true, "b@example.net")
			q.Settle(outcome(d, 0, Delivered))
			becomes(t, db, behind.ID, "")
			if got := rows(t, db, m.ID); got != "0 waiting owned" {
				t.Fatalf("rows %q: the second claim was undone", got)
			}
			q.Settle(outcome(list[0], 0, Delivered))
			becomes(t, db, m.ID, "")
			if got := history(t, db, m.ID); strings.Contains(got, "fenced") || strings.Count(got, "deferred") > 1 {
				t.Fatalf("history %q", got)
			}
		})
	}
}

// A claim whose commit comes back with the standby's warning is not used, and what it
// took is given back.
func TestUnconfirmedClaimIsGivenBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, _ := put(t, q, false, "a@example.net")
	failed, d := put(t, q, true, "b@example.net")
	q.Settle(outcome(d, 0, Failed))
	becomes(t, db, m.ID, "0 waiting")
	becomes(t, db, failed.ID, "0 failed")
	exec(t, db, `create function warn() returns trigger language plpgsql as $$ begin raise warning 'not confirmed'; return new; end $$`)
	exec(t, db, `create trigger warn before update on recipient for each row when (new.owner is not null) execute function warn()`)
	if list, err := q.Claim(ctxOf(t), all); !errors.Is(err, pg.ErrNotReplicated) || list != nil {
		t.Fatalf("claimed %d messages, %v", len(list), err)
	}
	if list, err := q.ClaimNotices(ctxOf(t), 10); !errors.Is(err, pg.ErrNotReplicated) || list != nil {
		t.Fatalf("claimed %d notices, %v", len(list), err)
	}
	becomes(t, db, m.ID, "0 waiting")
	becomes(t, db, failed.ID, "0 failed")
	eventually(t, "nothing is held", func() bool { return !q.inHand.has(m.ID) && !q.inHand.has(failed.ID) })
}

// awaitStandbyWaits returns when commits wait for their standby: the server follows a
// change of its settings when it comes to it.
func awaitStandbyWaits(t *testing.T, db *pgtest.DB) {
	t.Helper()
	const probe = `select pg_logical_emit_message(true, 'probe', '')` // a commit that changes nothing
	ctx, cancel := context.WithCancel(ctxOf(t))
	var probing sync.WaitGroup
	probing.Go(func() {
		for ctx.Err() == nil {
			_, _ = db.Pool.Exec(ctx, probe) // the last one is cancelled
		}
	})
	defer probing.Wait()
	defer cancel()
	eventually(t, "commits wait for the standby", func() bool {
		return count(t, db, `select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query = $1`, probe) > 0
	})
}

// pg_cancel_backend on a commit that waits for its standby makes the server answer
// success with a warning. That must never be a 250.
func TestCancelledStandbyWait(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, pgserver.Config{Settings: map[string]string{"max_connections": "60"}})
	db := pgtest.On(t, server)
	cfg := calmConfig(db)
	cfg.Budget = 5 * time.Second
	q := start(t, cfg)
	put(t, q, true, "warm@example.net")
	exec(t, db, `alter system set synchronous_standby_names = 'nobody'`)
	exec(t, db, `select pg_reload_conf()`)
	awaitStandbyWaits(t, db)
	m := message()
	result := make(chan error, 1)
	go func() {
		_, err := q.Enqueue(context.Background(), m, rcpts("a@example.net"), content.New([]byte("x")), true)
		result <- err
	}()
	cancelled := 0
	eventually(t, "the enqueue ends", func() bool {
		cancelled += count(t, db, `select count(*) from (select pg_cancel_backend(pid) from pg_stat_activity
			where wait_event = 'SyncRep' and (query like '%Inserts nothing if the epoch%' or query like '%with fence as%')) x`)
		return len(result) > 0
	})
	if err := <-result; err == nil {
		t.Fatal("accepted although no standby has confirmed")
	}
	if cancelled == 0 {
		t.Fatal("no commit was cancelled: the test has tested nothing")
	}
	exec(t, db, `alter system reset synchronous_standby_names`)
	exec(t, db, `select pg_reload_conf()`)
	eventually(t, "the message is void", func() bool {
		return count(t, db, `select count(*) from message where id = $1 and voided_at is not null`, m.ID) == 1
	})
	becomes(t, db, m.ID, "")
}

// The server is killed and started again: what was accepted is there, what waits is
// told 4yz, and the queue is back by itself.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	server := pgtest.Server(t, pgserver.Config{Dir: dir})
	db := pgtest.On(t, server)
	cfg := calmConfig(db)
	cfg.Budget = 20 * time.Second
	q := start(t, cfg)
	m, d := put(t, q, true, "a@example.net")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := q.Enqueue(ctxOf(t), message(), rcpts("a@example.net"), content.New([]byte("x")), true)
	var refused *smtp.Error
	if err != nil && (!errors.As(err, &refused) || !refused.Reply.IsTemporary()) {
		t.Fatalf("refused with %v", err)
	}
	q.Settle(outcome(d, 0, Delivered))
	again, err := pgserver.Start(ctxOf(t), pgserver.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop() })
	db.Pool.Reset() // it does not look at connections that it has just used
	becomes(t, db, m.ID, "")
	eventually(t, "the queue is back", func() bool { return q.Available() == nil })
	put(t, q, true, "b@example.net")
}

// TestR4EncodeErrorIsNotSent: in a query mode that does not know the types of parameters the
// statement is never sent, so nothing is in doubt, and the client need not wait.
func TestR4EncodeErrorIsNotSent(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := db.Pool.Config()
			pool.ConnConfig.DefaultQueryExecMode = mode
			untyped, err := pgxpool.NewWithConfig(ctxOf(t), pool)
			if err != nil {
				t.Fatal(err)
			}
			defer untyped.Close()
			cfg := calmConfig(db)
			cfg.EnqueuePool, cfg.Budget = untyped, time.Hour
			q := start(t, cfg)
			m := message()
			_, err = q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true)
			var refused *smtp.Error
			if !errors.As(err, &refused) || refused.Reply.Code != 451 {
				t.Fatalf("want 451, got %v", err)
			}
			if n := q.commits.voids.pending() + count(t, db, `select count(*) from message`); n > 0 || q.inHand.has(m.ID) {
				t.Errorf("something is left of a message that was never sent")
			}
		})
	}
}

// deafConn is a connection to the server that breaks once behind a COMMIT: the server
// has carried it out, as its answer says, and nobody hears that.
type deafConn struct {
	net.Conn
	once *atomic.Bool // of all connections
	deaf *atomic.Bool // this one
}

func (c deafConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("commit\x00")) && c.once.CompareAndSwap(false, true) {
		c.deaf.Store(true)
	}
	return c.Conn.Write(p)
}

func (c deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.deaf.Load() {
		_ = c.Close()
		return c.Conn.Read(p)
	}
	return n, err
}

// A large message whose COMMIT was carried out is accepted, although its answer is
// lost and pgx calls that error one that is safe to try again.
func TestLostAnswerToCommit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool.Config()
	var once atomic.Bool
	dial := pool.ConnConfig.DialFunc
	pool.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return deafConn{conn, &once, new(atomic.Bool)}, err
	}
	deaf, err := pgxpool.NewWithConfig(ctxOf(t), pool)
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	cfg := calmConfig(db)
	cfg.EnqueuePool = deaf
	q := start(t, cfg)
	m := message()
	d, err := taken(q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, smallBody+1)), true))
	if err != nil || d == nil || !once.Load() {
		t.Fatalf("%v, %v; the answer was lost: %v", d, err, once.Load())
	}
	if n := count(t, db, `select count(*) from stored_body where message_id = $1`, m.ID); n != (smallBody+content.ChunkSize)/content.ChunkSize {
		t.Errorf("%d rows are stored", n)
	}
}
