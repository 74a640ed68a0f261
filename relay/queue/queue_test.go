package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/logtest"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

var all = ClaimRequest{Messages: 100, PerDestination: 100}

func TestEnqueueDeliver(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "bob@example.net", "carol@example.org")
	if d.Epoch == 0 || len(d.Recipients) != 2 || d.Message.ID != m.ID || d.Message.Size != 20 {
		t.Fatalf("delivery %+v", d)
	}
	if got := rows(t, db, m.ID); got != "0 waiting owned;1 waiting owned" {
		t.Fatalf("after the enqueue: %q", got)
	}
	if err := q.Gate(ctxOf(t), d, []int{0, 1}, ""); err != nil {
		t.Fatal(err)
	}
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "1 waiting owned")
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 1 {
		t.Fatalf("body rows while a recipient is left: %d", n)
	}
	q.Settle(outcome(d, 1, Delivered))
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 0 {
		t.Fatalf("body rows at the end: %d", n)
	}
	if got := history(t, db, m.ID); got != "0 delivered;1 delivered" {
		t.Fatalf("history %q", got)
	}
	if q.inHand.has(m.ID) {
		t.Fatal("still held")
	}
}

func TestWaitingIsClaimed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, false, "bob@example.net", "carol@example.org", "dave@example.net")
	if d != nil {
		t.Fatal("a delivery of a message that is not owned")
	}
	got := claimAll(t, q, all)
	if len(got) != 1 || len(got[0].Recipients) != 3 {
		t.Fatalf("claimed %d deliveries", len(got))
	}
	body := make([]byte, 20)
	if _, err := got[0].Body.ReadAt(body, 0); err != nil || string(body) != "Subject: x\r\n\r\nbody\r\n" {
		t.Fatalf("body %q, %v", body, err)
	}
	g := got[0].Message
	if g.Sender != m.Sender || g.MessageID != m.MessageID || g.Listener != m.Listener || g.TLS != m.TLS || g.UserID != 1 {
		t.Fatalf("message %+v", g)
	}
	if x := got[0].Recipients[0].Expires; x < 4*24*time.Hour || x > 5*24*time.Hour {
		t.Fatalf("expires in %v", x)
	}
	q.Release(got[0], []int{0, 1, 2}, time.Hour)
	becomes(t, db, m.ID, "0 waiting;1 waiting;2 waiting")
	if again, err := q.Claim(ctxOf(t), all); err != nil || len(again) != 0 {
		t.Fatalf("claimed %d rows that are not due, %v", len(again), err)
	}
	exec(t, db, `update recipient set next_attempt_at = now() where message_id = $1`, m.ID) // as an operator's retry does
	if got := claimAll(t, q, all); len(got[0].Recipients) != 3 || got[0].Recipients[1].Attempts != 0 {
		t.Fatalf("after retry: %+v", got[0].Recipients)
	}
}

// TestP01NeedsAreKept: what a message needs comes back as it was stored, whoever takes it.
func TestP01NeedsAreKept(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for _, change := range []func(*Message){
		func(*Message) {},
		func(m *Message) { m.UTF8 = true },
		func(m *Message) { m.EightBit = true },
		func(m *Message) { m.EightBit, m.BodyType = true, smtp.Body8BitMIME },
		func(m *Message) { m.BodyHash = bytes.Repeat([]byte{0, 1, 2, 255}, 8) },
		func(m *Message) { m.TLSNeed = smtp.TLSRequired },
		func(m *Message) { m.TLSNeed = smtp.TLSOptional },
	} {
		want := message()
		change(&want)
		if _, err := q.Enqueue(ctxOf(t), want, rcpts("bob@example.net"), content.New([]byte("x")), false); err != nil {
			t.Fatal(err)
		}
		got := claimAll(t, q, all)[0].Message
		if got.UTF8 != want.UTF8 || got.EightBit != want.EightBit || got.BodyType != want.BodyType || !bytes.Equal(got.BodyHash, want.BodyHash) || (got.BodyHash == nil) != (want.BodyHash == nil) || got.TLSNeed != want.TLSNeed {
			t.Errorf("stored %+v, got %+v", want, got)
		}
	}
}

func TestDeferFailExpire(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.net")
	deferred := outcome(d, 0, Deferred)
	deferred.RetryIn, deferred.Unknown = time.Hour, true
	q.Settle(deferred, outcome(d, 1, Failed), outcome(d, 2, Delivered))
	becomes(t, db, m.ID, "0 waiting duplicate;1 failed")
	if n := count(t, db, `select count(*) from recipient where message_id = $1 and n = 0 and attempts = 1 and reply_text = 'later'
		and next_attempt_at > now() + interval '59 minutes' and notice_at > now() + interval '3 hours'`, m.ID); n != 1 {
		t.Fatal("the deferred row is not as it should be")
	}
	exec(t, db, `update recipient set expires_at = now(), next_attempt_at = now() where message_id = $1 and n = 0`, m.ID)
	eventually(t, "the expired recipient fails", func() bool {
		list, err := q.Claim(ctxOf(t), all)
		if err != nil || len(list) > 0 {
			t.Fatalf("claim gave %v, %v", list, err)
		}
		return rows(t, db, m.ID) == "0 failed duplicate;1 failed"
	})
	notices, err := q.ClaimNotices(ctxOf(t), 10)
	if err != nil || len(notices) != 2 || notices[0].Kind != NoticeDoubt || notices[1].Kind != NoticeFailure {
		t.Fatalf("notices %v, %v", notices, err)
	}
	r := notices[0].Recipients[0]
	if r.Reply.Enhanced != (smtp.EnhancedCode{Class: 4, Subject: 4, Detail: 7}) || !bytes.Contains([]byte(r.Reply.Text), []byte("last reply: 450 4.2.1 later")) {
		t.Fatalf("expired with %v", r.Reply)
	}
}

// A deferral that comes when the lifetime is over is a failure.
func TestDeferredTooLate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.Lifetime = time.Millisecond
	q := start(t, cfg)
	m, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Deferred))
	becomes(t, db, m.ID, "0 failed")
	if got := history(t, db, m.ID); got != "0 expired" { // and not that it waits
		t.Errorf("history %q", got)
	}
}

// Nobody is told when nobody wants to be.
func TestSilentFailures(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m := message()
	list := rcpts("a@example.net")
	list[0].Notify = smtp.NotifyNever
	d, err := taken(q.Enqueue(ctxOf(t), m, list, content.New([]byte("x")), true))
	if err != nil {
		t.Fatal(err)
	}
	null := message()
	null.Sender = smtp.Address{}
	e, err := taken(q.Enqueue(ctxOf(t), null, rcpts("b@example.net"), content.New(nil), true))
	if err != nil {
		t.Fatal(err)
	}
	q.Settle(outcome(d, 0, Failed), outcome(e, 0, Failed))
	becomes(t, db, m.ID, "")
	becomes(t, db, null.ID, "")
	if n := count(t, db, `select count(*) from body`); n != 0 {
		t.Fatalf("%d bodies are left", n)
	}
}

func TestLargeBody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	data := make([]byte, 3<<20+17)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	m := message()
	if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(data), false); err != nil {
		t.Fatal(err)
	}
	d := claimAll(t, q, all)[0]
	got, err := io.ReadAll(io.NewSectionReader(d.Body, 0, d.Body.Size()))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d octets, %v", len(got), err)
	}
	d.Body.Drop()
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "") // its octets go later: TestTurnIsTruncated in relay/retention
}

// Texts of peers that Postgres cannot store (A15) are made storable, and the outcome is
// recorded the first time.
func TestPoisonText(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	out := &logtest.Lines{}
	cfg := calmConfig(db)
	cfg.Log = slog.New(slog.NewTextHandler(out, nil))
	q := start(t, cfg)
	for _, text := range []string{"ok \x00", "\xff\xfe", "\xed\xa0\x80", string(bytes.Repeat([]byte("é"), 1<<19)), "\x00"} {
		for _, result := range []Result{Delivered, Deferred, Failed} {
			m, d := put(t, q, true, "a@example.net")
			o := outcome(d, 0, result)
			o.Reply.Text, o.RemoteMTA, o.Upstream, o.TLS = text, text, text, text
			o.RetryIn = time.Hour
			q.Settle(o)
			becomes(t, db, m.ID, map[Result]string{Delivered: "", Deferred: "0 waiting", Failed: "0 failed"}[result])
		}
	}
	if strings.Contains(out.String(), "tried again") || strings.Contains(out.String(), "cannot be written") {
		t.Fatalf("not at the first time:\n%s", out.String())
	}
}

// A message that the database refuses does not take its neighbours along.
func TestBadRowAlone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	type result struct {
		bad bool
		err error
	}
	results := make(chan result)
	for i := range 40 {
		go func() {
			m := message()
			if i == 7 {
				m.Sender.Local = "nul\x00"
			}
			_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true)
			results <- result{i == 7, err}
		}()
	}
	for range 40 {
		r := <-results
		if (r.err != nil) != r.bad {
			t.Errorf("bad %v: %v", r.bad, r.err)
		}
		var refused *smtp.Error
		if r.err != nil && (!errors.As(r.err, &refused) || !refused.Reply.IsTemporary()) {
			t.Errorf("refused with %v", r.err)
		}
	}
	if n := count(t, db, `select count(*) from recipient`); n != 39 {
		t.Fatalf("%d rows", n)
	}
}

// A body that cannot be read refuses its message alone.
func TestBadBodyAlone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for _, size := range []int64{10, 2 << 20} {
		m := message()
		_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), brokenBody{size}, true)
		if err == nil {
			t.Fatal("accepted a body that cannot be read")
		}
		if n := count(t, db, `select count(*) from message where id = $1`, m.ID); n != 0 {
			t.Fatal("in the queue after its refusal")
		}
	}
	put(t, q, true, "a@example.net")
}

type brokenBody struct{ size int64 }

func (b brokenBody) Size() int64                       { return b.size }
func (b brokenBody) Retain()                           {}
func (b brokenBody) Drop()                             {}
func (b brokenBody) ReadAt([]byte, int64) (int, error) { return 0, errors.New("disk trouble") }

func TestCloseHandsBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	q.Settle(outcome(d, 0, Delivered))
	if err := q.Close(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, db, m.ID); got != "1 waiting duplicate" { // nobody has said that it was not sent
		t.Fatalf("after close: %q", got)
	}
	if n := count(t, db, `select count(*) from node where reaped_at is null`); n != 0 {
		t.Fatalf("%d epochs live", n)
	}
	if _, err := q.Enqueue(context.Background(), message(), rcpts("a@example.net"), content.New(nil), true); err == nil {
		t.Fatal("enqueued after close")
	}
}

func TestStrictGate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.StrictGate = true
	q := start(t, cfg)
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	if n := count(t, db, `select count(*) from recipient where dot_possible`); n != 0 {
		t.Fatal("marked before the gate")
	}
	if err := q.Gate(ctxOf(t), d, []int{1}, ""); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from recipient where dot_possible and n = 1`); n != 1 {
		t.Fatal("not marked by the gate")
	}
	exec(t, db, `update recipient set owner = owner + 1000 where message_id = $1 and n = 0`, m.ID)
	if err := q.Gate(ctxOf(t), d, []int{0, 1}, ""); err == nil {
		t.Fatal("the gate let a row pass that is not ours")
	}
}

// Columns that all recipients of a group leave empty are not sent: nothing is lost when one
// of them has it.
func TestRecipientColumns(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for _, c := range []struct {
		domain, orcpt, want string
	}{
		{"example.net", "", "example.net example.net  "},
		{"Example.NET", "", "example.net Example.NET  "},
		{"example.net", "x@example.org", "example.net example.net rfc822 x@example.org"},
	} {
		m := message()
		list := rcpts("a@example.com", "b@"+c.domain)
		if c.orcpt != "" {
			list[1].ORcptType, list[1].ORcpt = "rfc822", c.orcpt
		}
		if _, err := q.Enqueue(ctxOf(t), m, list, content.New([]byte("x\r\n")), true); err != nil {
			t.Fatal(err)
		}
		got := read(t, db, `select string_agg(concat_ws(' ', n, user_id, domain_key, domain, orcpt_type, orcpt), ';' order by n) from recipient where message_id = $1`, m.ID)
		if want := "0 1 example.com example.com  ;1 1 " + c.want; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Messages of one group have their hashes and needs of TLS, and others none.
func TestNeedsOfAGroup(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	want := map[ID]Message{}
	var done sync.WaitGroup
	for n := range 20 {
		m := message()
		if n%2 == 0 {
			m.BodyHash = bytes.Repeat([]byte{byte(n + 1)}, 32)
		}
		if n%3 == 0 {
			m.TLSNeed = smtp.TLSRequired
		}
		want[m.ID] = m
		done.Go(func() {
			if _, err := q.Enqueue(ctxOf(t), m, rcpts("bob@example.net"), content.New([]byte("x")), false); err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	for len(want) > 0 {
		for _, d := range claimAll(t, q, all) {
			if got, m := d.Message, want[d.Message.ID]; !bytes.Equal(got.BodyHash, m.BodyHash) || got.TLSNeed != m.TLSNeed {
				t.Errorf("%+v, want %+v", got, m)
			}
			delete(want, d.Message.ID)
		}
	}
}
