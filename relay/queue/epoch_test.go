package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// fakeClock is moved by hand.
type fakeClock struct{ now atomic.Int64 }

func (c *fakeClock) Now() time.Duration { return time.Duration(c.now.Load()) }

func (c *fakeClock) add(d time.Duration) { c.now.Add(int64(d)) }

func withClock(c clock) func(*Queue) { return func(q *Queue) { q.clock = c } }

// die has an epoch fall silent until its lease is over, and b, whose clock c is, find
// that out and take its rows back.
func die(t *testing.T, db *pgtest.DB, epoch int64, b *Queue, c *fakeClock) {
	t.Helper()
	exec(t, db, `update node set expires_at = expires_at - interval '1 hour' where epoch = $1`, epoch)
	conn := working(t, db)
	for range 2 {
		if err := b.sweeps.reap(ctxOf(t), conn); err != nil {
			t.Fatal(err)
		}
		c.add(b.cfg.ReapAfter) // of silence
	}
	if n := count(t, db, `select count(*) from node where epoch = $1 and reaped_at is not null`, epoch); n != 1 {
		t.Fatal("a silent epoch whose lease is over lives on")
	}
}

// Trust ends by a clock that counts suspended time, whatever the wall clock says (F17, F19).
func TestTrustEnds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := &fakeClock{}
	cfg := handConfig(db, "a")
	q := start(t, cfg, withClock(c))
	_, d := put(t, q, true, "a@example.net")
	c.add(cfg.withDefaults().Trust - time.Nanosecond)
	if err := q.Gate(ctxOf(t), d, []int{0}, ""); err != nil {
		t.Fatalf("within the trust: %v", err)
	}
	c.add(time.Nanosecond)
	if err := q.Gate(ctxOf(t), d, []int{0}, ""); !errors.Is(err, errEpochLost) {
		t.Fatalf("after the trust: %v", err)
	}
	if q.Available() == nil {
		t.Error("available without a trusted epoch")
	}
	if _, err := q.Enqueue(ctxOf(t), message(), rcpts("a@example.net"), content.New(nil), true); err == nil {
		t.Error("enqueued without a trusted epoch")
	}
	if _, err := q.Claim(ctxOf(t), all); err == nil {
		t.Error("claimed without a trusted epoch")
	}
	q.epochs.step(ctxOf(t), 0)
	if err := q.Gate(ctxOf(t), d, []int{0}, ""); err != nil {
		t.Fatalf("after a heartbeat: %v", err)
	}
}

// A dead node's mail goes to another node, flagged, and what the dead one still says
// is fenced off and recorded.
func TestReapAndFence(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	clockA, clockB := &fakeClock{}, &fakeClock{}
	a, b := start(t, handConfig(db, "a"), withClock(clockA)), start(t, handConfig(db, "b"), withClock(clockB))
	m, d := put(t, a, true, "x@example.net", "y@example.net")
	die(t, db, d.Epoch, b, clockB)
	if got := rows(t, db, m.ID); got != "0 waiting duplicate;1 waiting duplicate" {
		t.Fatalf("after the reap: %q", got)
	}
	clockA.add(a.cfg.Trust) // it slept meanwhile
	if got := history(t, db, m.ID); got != "0 unknown duplicate;1 unknown duplicate" {
		t.Fatalf("history after the reap: %q", got)
	}
	got := claimAll(t, b, all)
	if len(got) != 1 || !got[0].Recipients[0].PossibleDuplicate {
		t.Fatalf("claimed %+v", got)
	}
	if err := a.Gate(ctxOf(t), d, []int{0}, ""); err == nil {
		t.Fatal("the dead epoch passes the gate")
	}
	a.Settle(outcome(d, 0, Delivered), outcome(d, 1, Failed))
	eventually(t, "the dead node's outcomes are settled", func() bool { return !a.inHand.has(m.ID) })
	if got := rows(t, db, m.ID); got != "0 waiting owned duplicate;1 waiting owned duplicate" {
		t.Fatalf("after the dead epoch's outcomes: %q", got)
	}
	if n := count(t, db, `select count(*) from history where message_id = $1 and fenced`, m.ID); n != 2 {
		t.Fatalf("%d fenced attempts", n)
	}
	b.Settle(outcome(got[0], 0, Delivered), outcome(got[0], 1, Delivered))
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from history where message_id = $1 and possible_duplicate and not fenced and result = 'delivered'`, m.ID); n != 2 {
		t.Fatal("the second deliveries are not flagged")
	}
	a.epochs.lookNow()
	eventually(t, "the node that was dead has a new epoch", func() bool { return a.Available() == nil })
	if a.Valid(d.Epoch) {
		t.Fatal("the dead epoch is valid again")
	}
	put(t, a, true, "z@example.net")
}

// In strict mode only what has passed the gate is flagged; what was parked never is.
func TestReapFlagsWhatMayBeSent(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	cfg.StrictGate = true
	clock := &fakeClock{}
	a, b := start(t, cfg), start(t, handConfig(db, "b"), withClock(clock))
	m, d := put(t, a, true, "x@example.net", "y@example.net")
	if err := a.Gate(ctxOf(t), d, []int{1}, ""); err != nil {
		t.Fatal(err)
	}
	die(t, db, d.Epoch, b, clock)
	if got := rows(t, db, m.ID); got != "0 waiting;1 waiting duplicate" {
		t.Fatalf("after the reap: %q", got)
	}
}

// A jump of the database's clock kills nobody who still beats (F18).
func TestClockJumpKillsNobody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := &fakeClock{}
	q, other := start(t, handConfig(db, "a"), withClock(c)), start(t, handConfig(db, "b"), withClock(c))
	exec(t, db, `update node set expires_at = expires_at - interval '1 hour', beat_at = beat_at - interval '1 hour'`)
	conn := working(t, db)
	if err := q.sweeps.bury(ctxOf(t), conn); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from node where reaped_at is not null`); n != 0 {
		t.Fatalf("%d epochs are dead at the first sight of the jump", n)
	}
	if n := q.Nodes(); n != 2 {
		t.Errorf("%d nodes, want 2", n)
	}
	other.epochs.step(ctxOf(t), 0) // it lives and beats
	c.add(3 * time.Hour)
	if err := q.sweeps.bury(ctxOf(t), conn); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from node where reaped_at is not null and name = 'b'`); n != 0 {
		t.Fatal("an epoch that beats was killed")
	}
	if n := count(t, db, `select count(*) from node where reaped_at is not null and name = 'a'`); n != 1 {
		t.Fatal("a silent epoch lives on")
	}
}

// The silence of a dead node is counted while its lease runs out: its mail waits for
// the longer of the two and not for both.
func TestSilenceCountsDuringTheLease(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	c := &fakeClock{}
	q := start(t, handConfig(db, "a"), withClock(c))
	start(t, handConfig(db, "b"), withClock(c))
	conn := working(t, db)
	dead := func() int {
		t.Helper()
		if err := q.sweeps.bury(ctxOf(t), conn); err != nil {
			t.Fatal(err)
		}
		return count(t, db, `select count(*) from node where reaped_at is not null`)
	}
	if n := dead(); n != 0 {
		t.Fatalf("%d of two living epochs are dead", n)
	}
	c.add(q.cfg.ReapAfter)
	if n := dead(); n != 0 {
		t.Fatalf("%d epochs are dead before their lease is over", n)
	}
	exec(t, db, `update node set expires_at = expires_at - interval '1 hour' where name = 'b'`)
	if n := dead(); n != 1 {
		t.Fatalf("%d epochs are dead, want the one that was silent for its whole lease", n)
	}
}

// A later process of the same name stops the older one (F27), which does not fight
// for the name, and its mail comes back.
func TestSameNameTwice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	clock := &fakeClock{}
	older := start(t, handConfig(db, "a"))
	m, d := put(t, older, true, "x@example.net")
	newer := start(t, handConfig(db, "a"), withClock(clock))
	older.epochs.lookNow()
	eventually(t, "the older process stops", func() bool { return older.Available() != nil && !older.Valid(d.Epoch) })
	if got := rows(t, db, m.ID); got != "0 waiting owned" {
		t.Fatalf("before its lease is over: %q", got)
	}
	die(t, db, d.Epoch, newer, clock)
	if got := rows(t, db, m.ID); got != "0 waiting duplicate" {
		t.Fatalf("after the reap: %q", got)
	}
	if newer.Available() != nil {
		t.Fatalf("the newer process: %v", newer.Available())
	}
	if err := newer.Close(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the older process goes on when the newer has ended", func() bool { return older.Available() == nil })
}

// An answer to a claim that was lost leaves rows that nobody holds: they come back. The
// database cannot tell them from rows whose delivery it has forgotten.
func TestLostClaimComesBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	conn := working(t, db)
	sweep := func() {
		t.Helper()
		fresh := newSweeps(q)
		for range 2 {
			if err := fresh.leftovers(ctxOf(t), conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, _ := put(t, q, false, "x@example.net")
	got := claimAll(t, q, all)
	q.inHand.remove(m.ID, len(got[0].Recipients))
	sweep()
	if got := rows(t, db, m.ID); got != "0 waiting duplicate" {
		t.Fatalf("after two sweeps: %q", got)
	}
	kept, d := put(t, q, true, "y@example.net")
	sweep()
	if got := rows(t, db, kept.ID); got != "0 waiting owned" {
		t.Fatalf("what is held was released: %q", got)
	}
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, kept.ID, "")
}

// TestR6LostOutcomeIsFlagged: after a failover that lost the end of an attempt, the row is
// owned by an epoch that has nothing in hand. The second copy is flagged.
func TestR6LostOutcomeIsFlagged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	m, _ := put(t, q, true, "x@example.net")
	q.inHand.remove(m.ID, 1) // it was delivered, and the database has forgotten it
	conn, sweep := working(t, db), newSweeps(q)
	for range 2 {
		if err := sweep.leftovers(ctxOf(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	if got := rows(t, db, m.ID); got != "0 waiting duplicate" {
		t.Errorf("rows %q", got)
	}
	if got := history(t, db, m.ID); got != "0 unknown duplicate" {
		t.Errorf("history %q", got)
	}
	got := claimAll(t, q, all)
	if !got[0].Recipients[0].PossibleDuplicate {
		t.Error("the next attempt is not flagged")
	}
	q.Settle(outcome(got[0], 0, Delivered))
	becomes(t, db, m.ID, "")
}

// TestR6LostClaimIsFlagged: after a failover that lost a claim the row waits, while its
// message is delivered. The outcome is fenced, and the second copy is flagged.
func TestR6LostClaimIsFlagged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for result, want := range map[Result]string{Delivered: "0 waiting duplicate", Deferred: "0 waiting"} {
		m, _ := put(t, q, false, "x@example.net")
		got := claimAll(t, q, all)
		exec(t, db, `update recipient set owner = null, dot_possible = false where message_id = $1`, m.ID)
		q.Settle(outcome(got[0], 0, result))
		eventually(t, "the outcome is written", func() bool { return !q.inHand.has(m.ID) })
		if got := rows(t, db, m.ID); got != want {
			t.Errorf("%s: rows %q, want %q", result, got, want)
		}
		exec(t, db, `delete from recipient`)
	}
}

// The heartbeat is not the sender's: an epoch whose row is gone refuses to store.
func TestEnqueueIsFenced(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small": 1, "large": 2 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := start(t, handConfig(db, "a"))
			exec(t, db, `update node set reaped_at = now()`)
			m := message()
			_, err := q.Enqueue(context.Background(), m, rcpts("a@example.net"), content.New(make([]byte, size)), true)
			var refused *smtp.Error
			if !errors.As(err, &refused) || !refused.Reply.IsTemporary() {
				t.Fatalf("stored under a dead epoch: %v", err)
			}
			if n := count(t, db, `select count(*) from message where id = $1`, m.ID); n != 0 {
				t.Fatal("the message is there")
			}
			// It was told so by the database and takes a new epoch immediately.
			eventually(t, "the node stores mail again", func() bool { return q.Available() == nil })
		})
	}
}

// A connection that a restart of the database left broken is no sign that the
// database is away: nobody is refused for it.
func TestBrokenConnectionIsNoOutage(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	put(t, q, false, "a@example.net") // every committer has come to life
	exec(t, db, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
	for range 10 { // over the broken connections and then over new ones
		put(t, q, false, "b@example.net")
		if err := q.Available(); err != nil {
			t.Fatalf("refused for a broken connection: %v", err)
		}
	}
}

// TestR1MovedToAnotherServer: when another server answers the heartbeat than before, the
// node is told from when on its connections are good. The same server over a new
// connection is no news.
func TestR1MovedToAnotherServer(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	moved := make(chan time.Time, 2)
	cfg.Moved = func(before time.Time) { moved <- before }
	q := start(t, cfg)
	again := func(change func()) (begun time.Time) {
		q.epochs.mu.Lock()
		was := q.epochs.s.Begun
		q.epochs.s.Drop()
		change()
		q.epochs.mu.Unlock()
		q.epochs.lookNow()
		eventually(t, "a heartbeat over a new connection", func() bool {
			q.epochs.mu.Lock()
			defer q.epochs.mu.Unlock()
			begun = q.epochs.s.Begun
			return !begun.Equal(was)
		})
		return begun
	}
	again(func() {})
	begun := again(func() { q.epochs.server = q.epochs.server.Add(-time.Hour) })
	if got := <-moved; !got.Equal(begun) {
		t.Errorf("connections are good from %v on, the heartbeat's was begun at %v", got, begun)
	}
	if len(moved) > 0 {
		t.Error("told twice")
	}
}
