package retention

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/queue/content"
)

const largeBody = 1 << 20 // above it bodies are large

// tidier is a node's care for the bodies, told to do a round when a test wants it.
func tidier(t *testing.T, db *pgtest.DB) *bodies {
	t.Helper()
	b := New(Config{Pool: db.Pool}).bodies
	t.Cleanup(b.conn.Close)
	return b
}

func randomBody(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(data)
	return data
}

func putLarge(t *testing.T, q *queue.Queue, data []byte) (queue.Message, *queue.Delivery) {
	t.Helper()
	m := queuetest.Message()
	a, err := q.Enqueue(queuetest.Context(t), m, queuetest.Recipients("a@example.net"), content.New(data), true)
	if err != nil {
		t.Fatal(err)
	}
	return m, a.Delivery
}

func turnOf(t *testing.T, db *pgtest.DB, id queue.ID) int {
	t.Helper()
	return queuetest.Count(t, db, `select coalesce(max(turn), -1) from large_body where message_id = $1`, id)
}

// emptied does rounds until nothing is stored. One may find a table in use, as autovacuum
// uses them, and leave it to the next.
func emptied(t *testing.T, db *pgtest.DB, turns *bodies) {
	t.Helper()
	queuetest.Eventually(t, "the tables of large bodies are empty", func() bool {
		if err := turns.round(queuetest.Context(t)); err != nil {
			t.Fatal(err)
		}
		return queuetest.Count(t, db, sqlTurnFiles) == 0
	})
}

const sqlTurnFiles = `select sum(pg_relation_size(('large_body_' || turn)::regclass)) from large_turn`

// A table of large bodies is truncated when nothing in it is waited for, and not before.
func TestTurnIsTruncated(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	turns := tidier(t, db)
	kept, _ := putLarge(t, q, randomBody(largeBody+1))
	m, d := putLarge(t, q, randomBody(largeBody+1))
	q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
	queuetest.Becomes(t, db, m.ID, "")
	if err := turns.round(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if n := queuetest.Count(t, db, sqlTurnFiles); n < 2*largeBody {
		t.Fatalf("%d octets are left beside a message that waits", n)
	}
	queuetest.Exec(t, db, `delete from recipient where message_id = $1`, kept.ID)
	emptied(t, db, turns)
}

// A full table is followed by the next; what waits in it for long moves, octet for
// octet, and goes from there with its last recipient.
func TestTurnMovesWhatWaits(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	turns := tidier(t, db)
	turns.bytes = largeBody
	want := randomBody(2*largeBody + 77)
	m, d := putLarge(t, q, want)
	o := queuetest.Outcome(d, 0, queue.Deferred)
	q.Settle(o)
	queuetest.Becomes(t, db, m.ID, "0 waiting")
	round := func() {
		t.Helper()
		if err := turns.round(queuetest.Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	round()
	second, _ := putLarge(t, q, want)
	if a, b := turnOf(t, db, m.ID), turnOf(t, db, second.ID); a < 0 || b < 0 || a == b {
		t.Fatalf("in tables %d and %d", a, b)
	}
	round()
	if turnOf(t, db, m.ID) < 0 {
		t.Fatal("moved immediately")
	}
	turns.age = 0
	round()
	if n := queuetest.Count(t, db, `select count(*) from body where message_id = $1`, m.ID); n == 0 || turnOf(t, db, m.ID) >= 0 {
		t.Fatalf("%d rows in body, turn %d", n, turnOf(t, db, m.ID))
	}
	got := claimAll(t, q)
	if len(got) != 1 {
		t.Fatalf("%d claimed", len(got))
	}
	data, err := io.ReadAll(io.NewSectionReader(got[0].Body, 0, got[0].Body.Size()))
	if err != nil || !bytes.Equal(data, want) {
		t.Fatalf("read %d octets, %v", len(data), err)
	}
	q.Settle(queuetest.Outcome(got[0], 0, queue.Delivered))
	queuetest.Eventually(t, "its octets go", func() bool {
		return queuetest.Count(t, db, `select count(*) from stored_body where message_id = $1`, m.ID) == 0
	})
}

// Whoever uses a table is not waited for, and keeps it.
func TestTurnInUse(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	turns := tidier(t, db)
	m, d := putLarge(t, q, randomBody(largeBody+1))
	q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
	queuetest.Becomes(t, db, m.ID, "")
	err := pgx.BeginFunc(queuetest.Context(t), db.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(queuetest.Context(t), `select count(*) from large_body`); err != nil {
			return err
		}
		return turns.round(queuetest.Context(t))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := queuetest.Count(t, db, sqlTurnFiles); n == 0 {
		t.Fatal("truncated under a reader's feet")
	}
}

// Messages come, wait and go while two nodes empty the tables as fast as they can:
// each is read as it was accepted, nobody waits for a deadlock, and in the end nothing
// is stored.
func TestTurnsUnderLoad(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	ctx, stop := context.WithCancel(queuetest.Context(t))
	var tidying sync.WaitGroup
	for range 2 {
		turns := tidier(t, db)
		turns.bytes, turns.age = 2*largeBody, 0
		tidying.Go(func() {
			for ctx.Err() == nil {
				if err := turns.round(context.WithoutCancel(ctx)); err != nil {
					t.Errorf("tidy: %v", err)
					return
				}
			}
		})
	}
	const senders, each = 3, 12
	var mu sync.Mutex
	want := make(map[queue.ID][]byte)
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			for n := range each {
				data, m := randomBody(largeBody+1+1000*(each*i+n)), queuetest.Message()
				mu.Lock()
				want[m.ID] = data
				mu.Unlock()
				a, err := q.Enqueue(ctx, m, queuetest.Recipients("a@example.net"), content.New(data), true)
				if err != nil {
					t.Errorf("enqueue: %v", err)
					stop()
					return
				}
				q.Settle(queuetest.Outcome(a.Delivery, 0, queue.Deferred))
			}
		})
	}
	for read := 0; read < senders*each && ctx.Err() == nil; {
		for _, d := range claimAll(t, q) {
			data, err := io.ReadAll(io.NewSectionReader(d.Body, 0, d.Body.Size()))
			mu.Lock()
			if err != nil || !bytes.Equal(data, want[d.Message.ID]) {
				t.Errorf("read %d octets of %d, %v", len(data), d.Body.Size(), err)
			}
			mu.Unlock()
			read++
			q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
		}
	}
	sending.Wait()
	queuetest.Eventually(t, "every recipient is gone", func() bool { return queuetest.Count(t, db, `select count(*) from recipient`) == 0 })
	queuetest.Eventually(t, "the tables are empty", func() bool { return queuetest.Count(t, db, sqlTurnFiles) == 0 })
	stop()
	tidying.Wait()
	b := tidier(t, db)
	conn, err := b.conn.Get(queuetest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.sweep(queuetest.Context(t), conn); err != nil {
		t.Fatal(err)
	}
	if n := queuetest.Count(t, db, `select count(*) from stored_body`); n != 0 {
		t.Fatalf("%d rows of bodies are left", n)
	}
}

// Two nodes that have different tables locked do not wait for each other.
func TestTurnsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	queuetest.Start(t, queuetest.Config(db))
	var clearing sync.WaitGroup
	for n := range 2 {
		turns := tidier(t, db)
		clearing.Go(func() {
			conn, err := turns.conn.Get(queuetest.Context(t))
			for range 100 {
				if err == nil {
					err = turns.clear(queuetest.Context(t), conn, &turn{Turn: int16(n), Size: 1})
				}
			}
			if err != nil {
				t.Errorf("clear: %v", err)
			}
		})
	}
	clearing.Wait()
}

// Two nodes that move one message lock its rows in the same order, whatever the order of
// the rows in the table is and whichever plan each of them has.
func TestTurnsMoveInOneOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net")
	q.Settle(queuetest.Outcome(d, 0, queue.Deferred))
	queuetest.Becomes(t, db, m.ID, "0 waiting")
	queuetest.Exec(t, db, `delete from body where message_id = $1`, m.ID)
	queuetest.Exec(t, db, `insert into large_body (message_id, n, turn, chunk) select $1, n, 0, '' from generate_series(2, 0, -1) n`, m.ID)
	hold, err := db.Pool.Begin(queuetest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(queuetest.Context(t), `select from large_body where message_id = $1 and n = 1 for update`, m.ID); err != nil {
		t.Fatal(err)
	}
	var moving sync.WaitGroup
	for _, other := range []string{"enable_indexscan", "enable_bitmapscan"} {
		turns := tidier(t, db)
		conn, err := turns.conn.Get(queuetest.Context(t))
		if err == nil {
			_, err = conn.Exec(queuetest.Context(t), `set `+other+` = off`)
		}
		if err != nil {
			t.Fatal(err)
		}
		moving.Go(func() {
			if err := turns.move(queuetest.Context(t), conn, &turn{}); err != nil {
				t.Errorf("without %s: %v", other, err)
			}
		})
	}
	queuetest.Eventually(t, "both wait", func() bool {
		return queuetest.Count(t, db, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) == 2
	})
	if err := hold.Rollback(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	moving.Wait()
	if n := queuetest.Count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 3 {
		t.Errorf("%d rows were moved", n)
	}
}

// A body that cannot be moved, on a full disk for one, keeps nothing else from being
// cleared, which would give room.
func TestTurnThatIsStuck(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	turns := tidier(t, db)
	turns.bytes = largeBody
	kept, d := putLarge(t, q, randomBody(largeBody+1))
	q.Settle(queuetest.Outcome(d, 0, queue.Deferred))
	queuetest.Becomes(t, db, kept.ID, "0 waiting")
	if err := turns.round(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	turns.age = 0
	queuetest.Exec(t, db, `create function fail() returns trigger language plpgsql as $$ begin raise exception 'no room' using errcode = '53100'; end $$`)
	queuetest.Exec(t, db, `create trigger full_disk before insert on body for each row execute function fail()`)
	for range 6 {
		m, d := putLarge(t, q, randomBody(largeBody+1))
		q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
		queuetest.Becomes(t, db, m.ID, "")
		if err := turns.round(queuetest.Context(t)); pg.Class(err) != "53" {
			t.Fatalf("the round says %v", err)
		}
	}
	if n := queuetest.Count(t, db, sqlTurnFiles); n > 2*largeBody {
		t.Errorf("%d octets are stored, one message waits", n)
	}
	queuetest.Exec(t, db, `drop trigger full_disk on body`)
	emptied(t, db, turns)
}

// Without a table that is written to, as after half a restore, the first one is.
func TestTurnsWithoutWriter(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	queuetest.Exec(t, db, `delete from large_turn`)
	putLarge(t, q, randomBody(largeBody+1))
	if err := tidier(t, db).round(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if n := queuetest.Count(t, db, `select count(*) from large_turn where writing`); n != 1 || queuetest.Count(t, db, `select count(*) from large_turn`) != 4 {
		t.Errorf("%d are written to", n)
	}
}

// The sweep deletes bodies without rows, and nothing else.
func TestSweepDeletesOrphans(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	live, orphan := queuetest.Message(), queuetest.Message()
	queuetest.Put(t, q, live, true, "a@example.net")
	queuetest.Put(t, q, orphan, true, "b@example.net")
	queuetest.Exec(t, db, `delete from recipient where message_id = $1`, orphan.ID)
	conn := working(t, db)
	b := tidier(t, db)
	for range 2 {
		if err := b.sweep(queuetest.Context(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	if n, m := queuetest.Count(t, db, `select count(*) from body`), queuetest.Count(t, db, `select count(*) from body where message_id = $1`, live.ID); n != 1 || m != 1 {
		t.Errorf("%d bodies, %d of the live message", n, m)
	}
}

// claimAll claims until a claim finds rows.
func claimAll(t *testing.T, q *queue.Queue) (list []*queue.Delivery) {
	t.Helper()
	queuetest.Eventually(t, "a claim finds work", func() (found bool) {
		var err error
		list, err = q.Claim(queuetest.Context(t), queue.ClaimRequest{Messages: 100, PerDestination: 100})
		return err == nil && len(list) > 0
	})
	return list
}

// The statements that read bodies find them by their keys.
func TestBodiesPlansUseKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for name, sql := range map[string]string{"turn_waits": sqlTurnWaits, "move_body": sqlMoveBody} {
		if plan := pgtest.GenericPlan(t, db, pg.TuneWork, sql); strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
}
