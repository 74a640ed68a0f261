package queue

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/logtest"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// unchecked takes the checks of the rows away, as a repair by hand may.
func unchecked(t *testing.T, db *pgtest.DB) {
	t.Helper()
	for _, table := range []string{"message", "recipient", "node"} {
		exec(t, db, `alter table `+table+` drop constraint `+table+`_times`)
	}
	for _, table := range []string{"message", "recipient", "body", "large_body"} {
		exec(t, db, `alter table `+table+` drop constraint `+table+`_counts`)
	}
}

// deliverAll claims until nothing more comes, and delivers what came.
func deliverAll(t *testing.T, q *Queue) (got []string) {
	t.Helper()
	for range 12 { // one bad row costs a few
		list, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 100, PerDestination: 100})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			for _, r := range d.Recipients {
				got = append(got, r.Address.String())
				q.Settle(outcome(d, r.N, Delivered))
			}
		}
		settled(t, q)
		if list == nil && len(q.claims.due) == 0 {
			break
		}
	}
	slices.Sort(got)
	return got
}

// settled waits until the queue has written what it was told.
func settled(t *testing.T, q *Queue) {
	t.Helper()
	eventually(t, "outcomes are written", func() bool { return q.Stats().InHand == 0 })
}

// badRows are what no program writes, with what is said of it. $1 is the message.
var badRows = map[string]struct{ sql, why string }{
	"a size below 0":            {`update message set size = -1 where id = $1`, "size is -1"},
	"a size beyond all":         {`update message set size = 9223372036854775807 where id = $1`, "octets of its text"},
	"a size larger than it is":  {`update message set size = 1000000 where id = $1`, "octets of its text"},
	"a row of text below 0":     {`update body set n = -1 where message_id = $1`, "octets of its text"},
	"no text":                   {`delete from body where message_id = $1`, "octets of its text"},
	"half a text":               {`update body set chunk = substr(chunk, 1, 5) where message_id = $1`, "octets of its text"},
	"no message":                {`delete from message where id = $1`, "no message has its id"},
	"accepted never":            {`update message set accepted_at = 'infinity' where id = $1`, "time of acceptance"},
	"accepted before all":       {`update message set accepted_at = '-infinity' where id = $1`, "time of acceptance"},
	"lives for ever":            {`update recipient set expires_at = 'infinity' where message_id = $1`, "lifetime"},
	"never lived":               {`update recipient set expires_at = '-infinity' where message_id = $1`, "lifetime"},
	"lives to the end of all":   {`update recipient set expires_at = '294276-12-31' where message_id = $1`, "lifetime"},
	"all times":                 {`update recipient set expires_at = 'infinity', accepted_at = 'infinity', last_attempt_at = '-infinity', notice_at = 'infinity' where message_id = $1`, "lifetime"},
	"a sender of two lines":     {`update message set sender_local = E'a\r\nb' where id = $1`, "envelope"},
	"a sender without a domain": {`update message set sender_domain = '' where id = $1`, "envelope"},
	"a body type of no kind":    {`update message set body_type = E'8BITMIME\r\n' where id = $1`, "body type"},
	"a RET of no kind":          {`update message set ret = 'PART' where id = $1`, "RET"},
	"a recipient of two lines":  {`update recipient set local = E'a\r\nb' where message_id = $1`, "address"},
	"a recipient without any":   {`update recipient set domain = '' where message_id = $1`, "address"},
}

// One bad row (M8) is held with the reason, whichever node meets it; what lies beside it in
// the claim leaves, after a restart as well. A person can look at it and throw it away.
func TestM8BadRows(t *testing.T) {
	t.Parallel()
	for name, test := range badRows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			unchecked(t, db)
			b := start(t, handConfig(db, "b"))
			put(t, b, false, "a@example.net", "b@example.org")
			bad, _ := put(t, b, false, "bad@example.net")
			put(t, b, false, "c@example.net")
			settled(t, b)
			exec(t, db, test.sql, bad.ID)
			for _, name := range []string{"a", "a"} { // before and after a restart
				q := start(t, handConfig(db, name))
				q.sweeps.slow = time.Time{}
				if err := q.sweeps.round(ctxOf(t)); err != nil {
					t.Fatal(err)
				}
				got := deliverAll(t, q)
				if want := []string{"a@example.net", "b@example.org", "c@example.net"}; !slices.Equal(got, want) {
					t.Fatalf("claimed %q, want %q", got, want)
				}
				put(t, b, false, "a@example.net", "b@example.org", "c@example.net")
				settled(t, b)
				if err := q.Close(ctxOf(t)); err != nil {
					t.Fatal(err)
				}
			}
			if got := deliverAll(t, b); len(got) != 3 {
				t.Fatalf("the other node claimed %q", got)
			}
			lookAtBad(t, db, bad.ID, test.why)
		})
	}
}

// lookAtBad wants nothing left but one message that is set aside, and throws it away. What
// people see of it is relay/queue/desk's.
func lookAtBad(t *testing.T, db *pgtest.DB, id ID, why string) {
	t.Helper()
	if n := count(t, db, `select count(*) from recipient where held_at is not null and message_id = $1 and set_aside like '%' || $2 || '%'`, id, why); n != 1 {
		t.Fatalf("%d recipients are set aside for %q", n, why)
	}
	if n := count(t, db, `select count(*) from history where message_id = $1 and reply_text like 'set aside: %'`, id); n != 1 {
		t.Fatalf("%d lines of history", n)
	}
	if n := count(t, db, `select count(*) from recipient where state <> 'waiting' or notice_at is not null and notice_at <= now() and held_at is null`); n != 0 {
		t.Error("somebody was told of a fault of ours")
	}
	exec(t, db, `delete from recipient where message_id = $1 and held_at is not null`, id)
	if n := count(t, db, `select count(*) from recipient`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// A row that was mended by the act of setting it aside goes when it is released (M8).
func TestM8Released(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	unchecked(t, db)
	q := start(t, handConfig(db, "a"))
	m, _ := put(t, q, false, "a@example.net")
	settled(t, q)
	exec(t, db, `update recipient set expires_at = 'infinity' where message_id = $1`, m.ID)
	if got := deliverAll(t, q); len(got) != 0 {
		t.Fatalf("claimed %q", got)
	}
	if n := released(t, db); n != 1 {
		t.Fatalf("released %d", n)
	}
	q.claims.resync = time.Time{}
	if got := deliverAll(t, q); len(got) != 1 {
		t.Errorf("claimed %q", got)
	}
}

// A row at which the database itself fails (M8), as at a damaged page: the claim is halved
// until it is alone.
func TestM8FailingRow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	var bad ID
	for i := range 20 {
		m, _ := put(t, q, false, "a@example.net", "b@example.org")
		if i == 7 {
			bad = m.ID
		}
	}
	settled(t, q)
	damage(t, db, bad)
	if got := deliverAll(t, q); len(got) != 39 {
		t.Errorf("claimed %d recipients, want 39", len(got))
	}
	if n := count(t, db, `select count(*) from recipient where held_at is not null and set_aside like '%invalid page%' and message_id = $1`, bad); n != 1 {
		t.Error("the bad row is not set aside")
	}
}

// damage makes claims of the first recipient of a message fail as at a damaged page.
func damage(t *testing.T, db *pgtest.DB, id ID) {
	t.Helper()
	exec(t, db, `create function damaged() returns trigger language plpgsql as $$
		begin
			if new.owner is not null and new.message_id = '`+id.String()+`' and new.n = 0 then
				raise exception 'invalid page in block 7' using errcode = 'XX001';
			end if;
			return new;
		end $$`)
	exec(t, db, `create trigger damaged before update on recipient for each row execute function damaged()`)
}

// A good row before the bad one (M8) that somebody has locked, so that the claim passes over
// it, is not taken for the bad one.
func TestM8LockedRow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	good, _ := put(t, q, false, "a@example.net")
	bad, _ := put(t, q, false, "a@example.net")
	settled(t, q)
	exec(t, db, `update recipient set next_attempt_at = next_attempt_at - interval '1 minute' where message_id = $1`, good.ID)
	damage(t, db, bad.ID)
	besideLocked(t, db, q, good.ID, bad.ID, func() (int, error) {
		list, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 10, PerDestination: 10})
		return len(list), err
	})
}

// TestM8LockedNotice is TestM8LockedRow for notices.
func TestM8LockedNotice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	var ids []ID
	for range 2 {
		m, d := put(t, q, true, "a@example.net")
		ids = append(ids, m.ID)
		q.Settle(outcome(d, 0, Failed))
	}
	settled(t, q)
	exec(t, db, `update recipient set notice_at = notice_at - interval '1 minute' where message_id = $1`, ids[0])
	damage(t, db, ids[1])
	besideLocked(t, db, q, ids[0], ids[1], func() (int, error) {
		list, err := q.ClaimNotices(ctxOf(t), 10)
		return len(list), err
	})
}

// besideLocked has a claim find nothing but a bad row, for another one is locked meanwhile.
func besideLocked(t *testing.T, db *pgtest.DB, q *Queue, good, bad ID, claim func() (int, error)) {
	t.Helper()
	locked, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := locked.Exec(ctxOf(t), `select from recipient where message_id = $1 for update`, good); err != nil {
		t.Fatal(err)
	}
	if n, err := claim(); err != nil || n != 0 {
		t.Errorf("claimed %d, %v", n, err)
	}
	if err := locked.Rollback(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	settled(t, q)
	for id, want := range map[ID]int{good: 0, bad: 1} {
		if n := count(t, db, `select count(*) from recipient where set_aside is not null and message_id = $1`, id); n != want {
			t.Errorf("%d recipients of %s are set aside, want %d", n, id, want)
		}
	}
}

// A void that the database refuses, or in which we panic (M8), is tried again, and keeps no
// other waiting.
func TestM8Voids(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	cfg.Guard = panics.New(cfg.Log)
	q := start(t, cfg)
	v := newVoids(q)
	t.Cleanup(v.s.Close)
	for range 2 {
		v.add(&submittal{m: message(), epoch: q.Epoch()})
	}
	bad := v.list[0].m.ID
	exec(t, db, `alter table message add constraint no_bad check (id <> '`+bad.String()+`')`)
	if n := v.round(struct{ context.Context }{}); n != 2 || cfg.Guard.Caught() != 2 {
		t.Errorf("%d are left after %d panics", n, cfg.Guard.Caught())
	}
	if n := v.round(ctxOf(t)); n != 1 || v.list[0].m.ID != bad {
		t.Errorf("%d are left", n)
	}
	exec(t, db, `alter table message drop constraint no_bad`)
	if n := v.round(ctxOf(t)); n != 0 {
		t.Errorf("%d are left", n)
	}
	if n := count(t, db, `select count(*) from message where voided_at is not null`); n != 2 {
		t.Errorf("%d are voided", n)
	}
}

// A row at which the database fails when its outcome is written (M8) keeps nobody else's
// outcome waiting. It may have been delivered: that is said when it goes again.
func TestM8FailingOutcome(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	unchecked(t, db)
	log := &logtest.Lines{}
	cfg := handConfig(db, "a")
	cfg.Log = log.Logger()
	q := start(t, cfg)
	_, good := put(t, q, true, "a@example.net")
	m, bad := put(t, q, true, "b@example.net")
	exec(t, db, `update recipient set attempts = 2147483647 where message_id = $1`, m.ID)
	q.Settle(outcome(bad, 0, Deferred), outcome(good, 0, Delivered))
	settled(t, q)
	if n := count(t, db, `select count(*) from recipient where message_id = $1 and held_at is not null and set_aside like '%cannot be written%'`, m.ID); n != 1 {
		t.Error("the bad row is not set aside")
	}
	if n := count(t, db, `select count(*) from recipient`); n != 1 {
		t.Errorf("%d rows, want the bad one", n)
	}
	if log.Count("recipient set aside") != 1 {
		t.Errorf("the log says %s", log)
	}
}

// A panic while outcomes are written, or mail is committed (M8), costs nothing but a try.
func TestM8Panics(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	cfg.Guard = panics.New(cfg.Log)
	faults := []bool{true, true}
	q := start(t, cfg, func(q *Queue) {
		for i, hook := range []*func(*pgx.Conn) error{&q.faults.commit.Before, &q.faults.settle.Before} {
			*hook = func(*pgx.Conn) error {
				if faults[i] {
					faults[i] = false
					panic("a defect")
				}
				return nil
			}
		}
	})
	_, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Delivered))
	settled(t, q)
	if n := count(t, db, `select count(*) from recipient`); n != 0 || cfg.Guard.Caught() != 2 {
		t.Errorf("%d rows, %d panics", n, cfg.Guard.Caught())
	}
}

// A panic while what was claimed is made into deliveries or notices (M8) leaves no row in
// hand: the sweep takes it back, and it is claimed again.
func TestM8PanicAfterClaim(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := db.Pool.Config()
	pool.ConnConfig.Tracer = &panicOnce{at: sqlToldBefore}
	cfg := handConfig(db, "a")
	var err error
	if cfg.WorkPool, err = pgxpool.NewWithConfig(ctxOf(t), pool); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cfg.WorkPool.Close)
	q := start(t, cfg)
	conn, sweep := working(t, db), newSweeps(q)
	takenBack := func(err error) {
		t.Helper()
		if caught := (*panics.Error)(nil); !errors.As(err, &caught) {
			t.Fatalf("no panic: %v", err)
		}
		for range 2 {
			if err := sweep.leftovers(ctxOf(t), conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, failed := put(t, q, true, "failed@example.net")
	q.Settle(outcome(failed, 0, Failed))
	settled(t, q)
	_, err = q.ClaimNotices(ctxOf(t), 10)
	takenBack(err)
	if list, err := q.ClaimNotices(ctxOf(t), 10); err != nil || len(list) != 1 {
		t.Errorf("%d notices, %v", len(list), err)
	} else {
		q.ReleaseNotice(list[0], time.Hour)
	}

	put(t, q, false, "a@example.net")
	late, _ := put(t, q, false, "late@example.net")
	exec(t, db, `update recipient set expires_at = now() where message_id = $1`, late.ID)
	settled(t, q)
	times := q.times.Swap(nil) // which the reply about the late one needs
	_, err = q.Claim(ctxOf(t), all)
	q.times.Store(times)
	takenBack(err)
	if got := deliverAll(t, q); !slices.Equal(got, []string{"a@example.net"}) {
		t.Errorf("claimed %q", got)
	}
}

// panicOnce panics when a statement is sent for the first time.
type panicOnce struct {
	at   string
	done atomic.Bool
}

func (p *panicOnce) TraceQueryStart(ctx context.Context, _ *pgx.Conn, query pgx.TraceQueryStartData) context.Context {
	if query.SQL == p.at && !p.done.Swap(true) {
		panic("a defect")
	}
	return ctx
}

func (p *panicOnce) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A panic behind the statement that releases rows (M8) leaves nothing to try again: whether
// they were released is not known.
func TestM8PanicAfterRelease(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	cfg.Guard = panics.New(cfg.Log)
	q := start(t, cfg)
	_, d := put(t, q, true, "a@example.net", "b@example.net")
	q.faults.settle.After = once(func(*pgx.Conn) error { panic("a defect") })
	q.Release(d, []int{0, 1}, 0)
	settled(t, q)
	q.Settle(outcome(d, 0, Delivered))
	eventually(t, "the outcome is written, though fenced", func() bool {
		return count(t, db, `select count(*) from history where message_id = $1 and result = 'delivered' and fenced`, d.Message.ID) == 1
	})
	if n := cfg.Guard.Caught(); n != 1 {
		t.Errorf("%d panics", n)
	}
}

// Times at which no claim would look (M8) are mended by the sweep.
func TestM8NeverDue(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"infinity", "-infinity", "4000-01-01 BC", "9990-01-01"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			unchecked(t, db)
			q := start(t, handConfig(db, "a"))
			m, _ := put(t, q, false, "a@example.net")
			put(t, q, false, "b@example.org")
			settled(t, q)
			exec(t, db, `update recipient set next_attempt_at = $2::text::timestamptz where message_id = $1`, m.ID, at)
			deliverAll(t, q)
			q.sweeps.slow = time.Time{}
			if err := q.sweeps.round(ctxOf(t)); err != nil {
				t.Fatal(err)
			}
			deliverAll(t, q)
			if n := count(t, db, `select count(*) from recipient`); n != 0 {
				t.Errorf("%d recipients wait", n)
			}
		})
	}
}

// A dead node's row may say anything of its last heartbeat (M8): silence alone tells.
func TestM8Beat(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"beat for ever":     `update node set beat_at = 'infinity', expires_at = expires_at - interval '1 day' where epoch = $1`,
		"lease for ever":    `update node set expires_at = 'infinity' where epoch = $1`,
		"both":              `update node set beat_at = 'infinity', expires_at = 'infinity', started_at = '-infinity' where epoch = $1`,
		"an hour too late":  `update node set beat_at = beat_at + interval '2 hours', expires_at = expires_at + interval '2 hours' where epoch = $1`,
		"in no calendar":    `update node set beat_at = '294276-12-31', expires_at = '294276-12-31' where epoch = $1`,
		"before everything": `update node set beat_at = '-infinity', expires_at = '-infinity' where epoch = $1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			unchecked(t, db)
			a := start(t, handConfig(db, "a"))
			put(t, a, true, "a@example.net")
			dead := a.Epoch()
			still(a)
			exec(t, db, sql, dead)
			c := &fakeClock{}
			b := start(t, handConfig(db, "b"), withClock(c))
			conn := working(t, db)
			for _, wait := range []time.Duration{0, b.cfg.Trust, b.cfg.Lease + b.cfg.ReapAfter} {
				if n := count(t, db, `select count(*) from node where epoch = $1 and reaped_at is null`, dead); n != 1 && wait <= b.cfg.ReapAfter {
					t.Fatal("reaped although it may live")
				}
				c.add(wait)
				if err := b.sweeps.reap(ctxOf(t), conn); err != nil {
					t.Fatal(err)
				}
			}
			if n := count(t, db, `select count(*) from recipient where owner is null`); n != 1 {
				t.Error("a dead node's mail is never taken back")
			}
		})
	}
}

// A notice whose message has lost its text is told without it; one whose sender is not valid is
// set aside (M8).
func TestM8Notices(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	unchecked(t, db)
	q := start(t, handConfig(db, "a"))
	ids := map[string]ID{}
	for _, name := range []string{"good", "textless", "nobody"} {
		m, d := put(t, q, true, name+"@example.net")
		ids[name] = m.ID
		q.Settle(outcome(d, 0, Failed))
	}
	settled(t, q)
	exec(t, db, `delete from body where message_id = $1`, ids["textless"])
	exec(t, db, `update message set sender_local = E'\r\n' where id = $1`, ids["nobody"])
	exec(t, db, `update recipient set last_attempt_at = 'infinity', expires_at = 'infinity' where message_id = $1`, ids["good"])
	list, err := q.ClaimNotices(ctxOf(t), 10)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d notices, %v", len(list), err)
	}
	for _, n := range list {
		if whole := n.Body != nil && len(n.Headers) > 0; whole != (n.Message.ID == ids["good"]) {
			t.Errorf("%s: %v, %q", n.Recipients[0].Address, n.Body, n.Headers)
		}
		m := Message{ID: NewID(), AcceptedAt: time.Now(), Listener: "notice"}
		if err := q.EnqueueNotice(ctxOf(t), n, m, Recipient{Address: n.Message.Sender, Notify: smtp.NotifyNever}, []byte("Subject: x\r\n\r\n")); err != nil {
			t.Error(err)
		}
	}
	settled(t, q)
	if n := count(t, db, `select count(*) from recipient where state = 'failed' and held_at is not null and set_aside <> '' and message_id = $1`, ids["nobody"]); n != 1 {
		t.Error("the bad notice is not set aside")
	}
	if list, err := q.ClaimNotices(ctxOf(t), 10); err != nil || len(list) != 0 {
		t.Errorf("%d notices again, %v", len(list), err)
	}
	if n := count(t, db, `select count(*) from recipient where held_at is not null`); n != 1 {
		t.Errorf("%d are held", n)
	}
}

// A large body is looked at in its last row when it is claimed, and set aside when a reader
// meets a hole in it (M8).
func TestM8LargeBodies(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	text := []byte("Subject: x\r\n\r\n" + strings.Repeat("0123456789\r\n", 1<<17))
	var messages []Message
	for range 3 {
		m := message()
		if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(text), false); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, m)
	}
	settled(t, q)
	exec(t, db, `delete from large_body where message_id = $1 and n = 1`, messages[0].ID)
	exec(t, db, `delete from large_body where message_id = $1 and n = (select max(n) from large_body)`, messages[1].ID)
	list, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 10, PerDestination: 10})
	if err != nil || len(list) != 2 {
		t.Fatalf("claimed %d, %v", len(list), err)
	}
	for _, d := range list {
		_, err := d.Body.ReadAt(make([]byte, d.Body.Size()), 0)
		if bad := d.Message.ID == messages[0].ID; errors.Is(err, content.ErrDamaged) != bad || !bad && err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", d.Message.ID, err)
		}
		q.Release(d, []int{0}, 0)
		d.Body.Drop()
	}
	settled(t, q)
	if n := count(t, db, `select count(*) from recipient where held_at is not null and set_aside like '%octets of its text%'`); n != 2 {
		t.Errorf("%d recipients are set aside, want 2", n)
	}
}

// The schema takes no such rows (M8).
func TestM8Checks(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, handConfig(db, "a"))
	put(t, q, false, "a@example.net")
	settled(t, q)
	for _, sql := range []string{
		`update message set size = -1`, `update message set accepted_at = 'infinity'`, `update message set recipients = -1`,
		`update body set n = -1`, `insert into large_body values (gen_random_uuid(), -1, 0, '')`,
		`update recipient set attempts = -1`, `update recipient set expires_at = '-infinity'`, `update recipient set accepted_at = 'infinity'`,
		`update recipient set next_attempt_at = 'infinity'`, `update recipient set notice_at = 'infinity'`, `update recipient set held_at = 'infinity'`,
		`update node set beat_at = 'infinity'`, `update node set expires_at = 'infinity'`, `update room set tried_at = 'infinity'`,
	} {
		if _, err := db.Pool.Exec(ctxOf(t), sql); pg.Class(err) != "23" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestHalved(t *testing.T) {
	t.Parallel()
	var done, bad []int
	err := halved([]int{1, 2, 3, 4, 5, 6, 7}, func(some []int) error {
		if slices.Contains(some, 3) || slices.Contains(some, 6) {
			return &panics.Error{Value: "bad"}
		}
		done = append(done, some...)
		return nil
	}, func(n int, _ error) { bad = append(bad, n) })
	if err != nil || !slices.Equal(done, []int{1, 2, 4, 5, 7}) || !slices.Equal(bad, []int{3, 6}) {
		t.Errorf("%v, %v, %v", done, bad, err)
	}
	if err := halved([]int{1, 2}, func([]int) error { return io.EOF }, nil); !errors.Is(err, io.EOF) {
		t.Errorf("trouble that is nobody's own: %v", err)
	}
}

// The connection breaks where a delivered recipient is set aside, since its outcome cannot be
// written: it stays set aside, and does not go out again.
func TestM8AsideInDoubt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var tries atomic.Int32
	q := start(t, handConfig(db, "a"), func(q *Queue) {
		q.faults.settle.Before = func(c *pgx.Conn) error {
			if tries.Add(1) == 3 {
				return cut(c)
			}
			return nil
		}
	})
	m, d := put(t, q, true, "a@example.net")
	exec(t, db, `update recipient set attempts = 2147483647, tell = 4 where message_id = $1`, m.ID)
	q.Settle(outcome(d, 0, Delivered))
	settled(t, q)
	if n := count(t, db, `select count(*) from recipient where set_aside is not null and held_at is not null`); n != 1 {
		t.Errorf("after %d tries the delivered recipient is not set aside", tries.Load())
	}
	if n := tries.Load(); n < 4 {
		t.Errorf("%d tries: the one that sets it aside was not in doubt", n)
	}
}

// The answer to setting a recipient aside is lost, and an admin releases it before the next try:
// it stays released.
func TestAsideInDoubtKeepsARelease(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var tries atomic.Int32
	var id ID
	q := start(t, handConfig(db, "a"), func(q *Queue) {
		q.faults.settle.After = func(c *pgx.Conn) error {
			if tries.Add(1) == 2 { // the first releases the message
				exec(t, db, `update recipient set held_at = null, set_aside = null where message_id = $1`, id)
				return cut(c)
			}
			return nil
		}
	})
	m, d := put(t, q, true, "a@example.net")
	q.Release(d, []int{0}, time.Hour)
	settled(t, q)
	id = m.ID
	q.setAside(id, 0, 0, "its size is -1")
	settled(t, q)
	if n := count(t, db, `select count(*) from history where result = 'hold'`); n != 1 || tries.Load() < 3 {
		t.Errorf("after %d tries it was set aside %d times", tries.Load(), n)
	}
	if n := count(t, db, `select count(*) from recipient where held_at is not null`); n != 0 {
		t.Error("an admin's release was undone")
	}
}
