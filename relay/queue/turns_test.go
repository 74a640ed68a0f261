package queue

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// tidier is a node's care for the large bodies, told to do a round when a test
// wants it.
func tidier(t *testing.T, q *Queue) *turns {
	t.Helper()
	turns := newTurns(q)
	t.Cleanup(turns.s.Close)
	return turns
}

// quiet keeps the queue's own rounds away.
func quiet(q *Queue) { q.turns.grown, q.turns.every = nil, time.Hour }

func randomBody(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(data)
	return data
}

func putLarge(t *testing.T, q *Queue, data []byte) (Message, *Delivery) {
	t.Helper()
	m := message()
	d, err := taken(q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), NewBody(data), true))
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

func turnOf(t *testing.T, db *pgtest.DB, id ID) int {
	t.Helper()
	return count(t, db, `select coalesce(max(turn), -1) from large_body where message_id = $1`, id)
}

// emptied does rounds until nothing is stored. One may find a table in use, as autovacuum
// uses them, and leave it to the next.
func emptied(t *testing.T, db *pgtest.DB, turns *turns) {
	t.Helper()
	eventually(t, "the tables of large bodies are empty", func() bool {
		if err := turns.round(ctxOf(t)); err != nil {
			t.Fatal(err)
		}
		return count(t, db, sqlTurnFiles) == 0
	})
}

const sqlTurnFiles = `select sum(pg_relation_size(('large_body_' || turn)::regclass)) from large_turn`

// A table of large bodies is truncated when nothing in it is waited for, and not before.
func TestTurnIsTruncated(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	turns := tidier(t, q)
	kept, _ := putLarge(t, q, randomBody(smallBody+1))
	m, d := putLarge(t, q, randomBody(smallBody+1))
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "")
	if err := turns.round(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, sqlTurnFiles); n < 2*smallBody {
		t.Fatalf("%d octets are left beside a message that waits", n)
	}
	exec(t, db, `delete from recipient where message_id = $1`, kept.ID)
	emptied(t, db, turns)
}

// A full table is followed by the next; what waits in it for long moves, octet for
// octet, and goes from there with its last recipient.
func TestTurnMovesWhatWaits(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	turns := tidier(t, q)
	turns.bytes = smallBody
	want := randomBody(2*smallBody + 77)
	m, d := putLarge(t, q, want)
	o := outcome(d, 0, Deferred)
	q.Settle(o)
	becomes(t, db, m.ID, "0 queued")
	round := func() {
		t.Helper()
		if err := turns.round(ctxOf(t)); err != nil {
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
		t.Fatal("moved at once")
	}
	turns.age = 0
	round()
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n == 0 || turnOf(t, db, m.ID) >= 0 {
		t.Fatalf("%d rows in body, turn %d", n, turnOf(t, db, m.ID))
	}
	got := claimAll(t, q, all)
	if len(got) != 1 {
		t.Fatalf("%d claimed", len(got))
	}
	data, err := io.ReadAll(io.NewSectionReader(got[0].Body, 0, got[0].Body.Size()))
	if err != nil || !bytes.Equal(data, want) {
		t.Fatalf("read %d octets, %v", len(data), err)
	}
	q.Settle(outcome(got[0], 0, Delivered))
	eventually(t, "its octets go", func() bool {
		return count(t, db, `select count(*) from stored_body where message_id = $1`, m.ID) == 0
	})
}

// Whoever uses a table is not waited for, and keeps it.
func TestTurnInUse(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	turns := tidier(t, q)
	m, d := putLarge(t, q, randomBody(smallBody+1))
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "")
	err := pgx.BeginFunc(ctxOf(t), db.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctxOf(t), `select count(*) from large_body`); err != nil {
			return err
		}
		return turns.round(ctxOf(t))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, sqlTurnFiles); n == 0 {
		t.Fatal("truncated under a reader's feet")
	}
}

// Messages come, wait and go while two nodes empty the tables as fast as they can:
// each is read as it was accepted, nobody waits for a deadlock, and in the end nothing
// is stored.
func TestTurnsUnderLoad(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	ctx, stop := context.WithCancel(ctxOf(t))
	var tidying sync.WaitGroup
	for range 2 {
		turns := tidier(t, q)
		turns.bytes, turns.age = 2*smallBody, 0
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
	want := make(map[ID][]byte)
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			for n := range each {
				data, m := randomBody(smallBody+1+1000*(each*i+n)), message()
				mu.Lock()
				want[m.ID] = data
				mu.Unlock()
				d, err := taken(q.Enqueue(ctx, m, rcpts("a@example.net"), NewBody(data), true))
				if err != nil {
					t.Errorf("enqueue: %v", err)
					stop()
					return
				}
				q.Settle(outcome(d, 0, Deferred))
			}
		})
	}
	for read := 0; read < senders*each && ctx.Err() == nil; {
		for _, d := range claimAll(t, q, all) {
			data, err := io.ReadAll(io.NewSectionReader(d.Body, 0, d.Body.Size()))
			mu.Lock()
			if err != nil || !bytes.Equal(data, want[d.Message.ID]) {
				t.Errorf("read %d octets of %d, %v", len(data), d.Body.Size(), err)
			}
			mu.Unlock()
			read++
			q.Settle(outcome(d, 0, Delivered))
		}
	}
	sending.Wait()
	eventually(t, "every recipient is gone", func() bool { return count(t, db, `select count(*) from recipient`) == 0 })
	eventually(t, "the tables are empty", func() bool { return count(t, db, sqlTurnFiles) == 0 })
	stop()
	tidying.Wait()
	sweep := newSweeps(q)
	conn, err := sweep.s.Get(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer sweep.s.Close()
	if err := sweep.orphans(ctxOf(t), conn); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from stored_body`); n != 0 {
		t.Fatalf("%d rows of bodies are left", n)
	}
}

// Two nodes that have different tables locked do not wait for each other.
func TestTurnsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	var clearing sync.WaitGroup
	for n := range 2 {
		turns := tidier(t, q)
		clearing.Go(func() {
			conn, err := turns.s.Get(ctxOf(t))
			for range 100 {
				if err == nil {
					err = turns.clear(ctxOf(t), conn, &turn{Turn: int16(n), Size: 1})
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
	q := start(t, calmConfig(db), quiet)
	m, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Deferred))
	becomes(t, db, m.ID, "0 queued")
	exec(t, db, `delete from body where message_id = $1`, m.ID)
	exec(t, db, `insert into large_body (message_id, n, turn, chunk) select $1, n, 0, '' from generate_series(2, 0, -1) n`, m.ID)
	hold, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(ctxOf(t), `select from large_body where message_id = $1 and n = 1 for update`, m.ID); err != nil {
		t.Fatal(err)
	}
	var moving sync.WaitGroup
	for _, other := range []string{"enable_indexscan", "enable_bitmapscan"} {
		turns := tidier(t, q)
		conn, err := turns.s.Get(ctxOf(t))
		if err == nil {
			_, err = conn.Exec(ctxOf(t), `set `+other+` = off`)
		}
		if err != nil {
			t.Fatal(err)
		}
		moving.Go(func() {
			if err := turns.move(ctxOf(t), conn, &turn{}); err != nil {
				t.Errorf("without %s: %v", other, err)
			}
		})
	}
	eventually(t, "both wait", func() bool {
		return count(t, db, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) == 2
	})
	if err := hold.Rollback(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	moving.Wait()
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 3 {
		t.Errorf("%d rows were moved", n)
	}
}

// A body that cannot be moved, on a full disk for one, keeps nothing else from being
// cleared, which would give room.
func TestTurnThatIsStuck(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	turns := tidier(t, q)
	turns.bytes = smallBody
	kept, d := putLarge(t, q, randomBody(smallBody+1))
	q.Settle(outcome(d, 0, Deferred))
	becomes(t, db, kept.ID, "0 queued")
	if err := turns.round(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	turns.age = 0
	exec(t, db, `create function fail() returns trigger language plpgsql as $$ begin raise exception 'no room' using errcode = '53100'; end $$`)
	exec(t, db, `create trigger full_disk before insert on body for each row execute function fail()`)
	for range 6 {
		m, d := putLarge(t, q, randomBody(smallBody+1))
		q.Settle(outcome(d, 0, Delivered))
		becomes(t, db, m.ID, "")
		if err := turns.round(ctxOf(t)); pg.Class(err) != "53" {
			t.Fatalf("the round says %v", err)
		}
	}
	if n := count(t, db, sqlTurnFiles); n > 2*smallBody {
		t.Errorf("%d octets are stored, one message waits", n)
	}
	exec(t, db, `drop trigger full_disk on body`)
	emptied(t, db, turns)
}

// Without a table that is written to, as after half a restore, the first one is.
func TestTurnsWithoutWriter(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), quiet)
	exec(t, db, `delete from large_turn`)
	putLarge(t, q, randomBody(smallBody+1))
	if err := tidier(t, q).round(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from large_turn where writing`); n != 1 || count(t, db, `select count(*) from large_turn`) != 4 {
		t.Errorf("%d are written to", n)
	}
}
