package queue

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/logtest"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/queue/reserve"
	"postern/relay/smtp"
)

// roomyConfig is a node with a reserve, which the test looks after by hand.
func roomyConfig(db *pgtest.DB, node string, size int64, again time.Duration) (Config, func(*Queue)) {
	cfg := handConfig(db, node)
	cfg.Reserve = size
	return cfg, func(q *Queue) {
		q.room = reserve.New(reserve.Config{Pool: db.Pool, Log: q.log, Size: size, DiskFree: q.cfg.DiskFree,
			Announce: q.announceFull, Look: time.Hour, First: 1, Again: again})
	}
}

// sqlFull is how a node notes that the disk is full.
const sqlFull = `update room set full_at = clock_timestamp(), tried_at = clock_timestamp()`

// full makes every insert into a table fail as on a full disk, when a condition holds.
func full(t *testing.T, db *pgtest.DB, table, when string) {
	t.Helper()
	exec(t, db, fmt.Sprintf(`create or replace function full_%[1]s() returns trigger language plpgsql as $$ begin
		if %[2]s then raise exception 'could not extend file' using errcode = '53100'; end if; return new; end $$`, table, when))
	exec(t, db, fmt.Sprintf(`create or replace trigger full_disk before insert on %[1]s for each row execute function full_%[1]s()`, table))
}

// reserveStep is by how much the reserve grows.
const reserveStep = 1 << 20

func reserved(t *testing.T, db *pgtest.DB) int {
	t.Helper()
	return count(t, db, `select pg_relation_size('reserve')`)
}

func lookAtRoom(t *testing.T, queues ...*Queue) {
	t.Helper()
	for _, q := range queues {
		if err := q.room.Look(ctxOf(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantFull tries to enqueue, and MAIL.
func wantFull(t *testing.T, q *Queue) {
	t.Helper()
	_, err := q.Enqueue(ctxOf(t), message(), rcpts("x@example.net"), content.New([]byte("x")), true)
	for _, err := range []error{err, q.Available()} {
		var refused *smtp.Error
		if !errors.As(err, &refused) || refused.Reply.Code != 452 {
			t.Errorf("want 452, got %v", err)
		}
	}
}

// TestR5ReserveIsGivenBack: when a commit finds the disk full no node accepts, the reserve
// goes to what has to be written, and is made anew when there is room.
func TestR5ReserveIsGivenBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const size = 3 << 20
	cfg, byHand := roomyConfig(db, "a", size, 1)
	a := start(t, cfg, byHand)
	cfg.Node = "b"
	b := start(t, cfg, byHand)
	lookAtRoom(t, a, b)
	if n := reserved(t, db); n < size || n > size+2*reserveStep {
		t.Fatalf("%d octets are in reserve, want %d", n, size)
	}
	if n := count(t, db, `select count(*) from reserve`); n != 0 {
		t.Errorf("dumps would have %d rows of it", n)
	}
	m, d := put(t, a, true, "x@example.net")

	full(t, db, "message", "true")
	full(t, db, "reserve", "true")
	wantFull(t, a)
	eventually(t, "the reserve is given back", func() bool { return reserved(t, db) == 0 })
	eventually(t, "the other node knows", func() bool { return errors.Is(b.Available(), reserve.ErrFull) }) // by NOTIFY
	b.room.Tell(false)
	lookAtRoom(t, b)
	wantFull(t, b)
	a.Settle(outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "")

	lookAtRoom(t, a, b) // still
	wantFull(t, a)
	full(t, db, "reserve", "false")
	lookAtRoom(t, b, a)
	full(t, db, "message", "false")
	for _, q := range []*Queue{a, b} {
		eventually(t, "mail is accepted again", func() bool {
			lookAtRoom(t, q) // the NOTIFY of the full disk may have come late
			_, err := q.Enqueue(ctxOf(t), message(), rcpts("x@example.net"), content.New([]byte("x")), true)
			return err == nil
		})
	}
	if n := reserved(t, db); n < size {
		t.Errorf("%d octets are in reserve again, want %d", n, size)
	}
}

// TestR5LittleRoomIsShared: where there is room for half of a reserve it and mail get half
// of that each; with less there is no mail.
func TestR5LittleRoomIsShared(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	for _, test := range []struct{ room, want int }{{12 << 20, 6 << 20}, {4 << 20, 0}} {
		db := pgtest.New(t)
		cfg, byHand := roomyConfig(db, "a", size, 1)
		q := start(t, cfg, byHand)
		exec(t, db, sqlFull)
		full(t, db, "reserve", fmt.Sprintf("pg_relation_size('reserve') > %d", test.room))
		exec(t, db, `update room set tried_at = 'epoch'`)
		lookAtRoom(t, q)
		got := reserved(t, db)
		if d := got - test.want; d < -reserveStep || d > 2*reserveStep {
			t.Errorf("with room for %d there are %d octets in reserve, want %d", test.room, got, test.want)
		}
		if test.want == 0 {
			wantFull(t, q)
		} else {
			put(t, q, true, "x@example.net")
		}
	}
}

// TestR5FloorWhereTheDiskCanBeAsked: mail ends before the disk is full.
func TestR5FloorWhereTheDiskCanBeAsked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var free atomic.Int64
	cfg, byHand := roomyConfig(db, "a", 1<<20, 1)
	cfg.DiskFree = func() (octets int64, err error) {
		if octets = free.Load(); octets < 0 {
			err = errors.New("gone")
		}
		return octets, err
	}
	said := &logtest.Lines{}
	cfg.Log = said.Logger()
	q := start(t, cfg, byHand)
	free.Store(1<<20 - 1)
	wantFull(t, q)
	lookAtRoom(t, q)
	free.Store(1 << 20)
	lookAtRoom(t, q) // nobody sends, and the log has the end
	if n, end := said.Count("is nearly full"), said.Count("has room again"); n != 1 || end != 1 {
		t.Errorf("the log has %d beginnings and %d ends:\n%s", n, end, said)
	}
	if n := reserved(t, db); n > 0 {
		t.Errorf("a reserve of %d octets is made where there is no room", n)
	}
	free.Store(math.MaxInt64 / 2)
	put(t, q, true, "x@example.net")
	lookAtRoom(t, q)
	if n := reserved(t, db); n < 1<<20 {
		t.Errorf("%d octets are in reserve", n)
	}
	free.Store(-1)
	put(t, q, true, "x@example.net")
}

// TestR5LostReserve: a reserve that is gone while its server lives was emptied by a
// recovery. No mail is accepted until it is there again, even if that cannot be written down
// immediately.
func TestR5LostReserve(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg, byHand := roomyConfig(db, "a", 1<<20, time.Hour)
	q := start(t, cfg, byHand)
	lookAtRoom(t, q, q) // the second finds what the first has made
	full(t, db, "reserve", "true")
	exec(t, db, `truncate reserve`)
	exec(t, db, `create function away() returns trigger language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$`)
	exec(t, db, `create trigger away before update on room for each row execute function away()`)
	if err := q.room.Look(ctxOf(t)); err == nil {
		t.Fatal("the row was written")
	}
	wantFull(t, q)
	exec(t, db, `drop trigger away on room`)
	lookAtRoom(t, q)
	wantFull(t, q)
	if n := count(t, db, `select count(*) from room where full_at is not null`); n != 1 {
		t.Error("other nodes do not know")
	}
}
