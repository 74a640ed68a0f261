package queue

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

func dueNotices(t *testing.T, q *Queue, want int) []*Notice {
	t.Helper()
	var list []*Notice
	eventually(t, "notices are due", func() bool {
		got, err := q.ClaimNotices(ctxOf(t), 10)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, got...)
		return len(list) >= want
	})
	if len(list) != want {
		t.Fatalf("%d notices, want %d", len(list), want)
	}
	return list
}

func noticeMessage() (Message, Recipient, []byte) {
	m := message()
	m.UserID, m.Sender = 0, smtp.Address{}
	return m, Recipient{Address: address("alice@example.com"), Notify: smtp.NotifyNever}, []byte("Subject: failed\r\n\r\n")
}

// A failure is told once, of all recipients of a message that failed, and the body
// is there until it is.
func TestFailureNotice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	q.Settle(outcome(d, 0, Failed), outcome(d, 1, Failed))
	becomes(t, db, m.ID, "0 failed;1 failed")
	n := dueNotices(t, q, 1)[0]
	if n.Kind != NoticeFailure || len(n.Recipients) != 2 || n.Message.Sender != m.Sender {
		t.Fatalf("notice %+v", n)
	}
	if string(n.Headers) != "Subject: x\r\n" || n.Body == nil || n.Body.Size() != 20 {
		t.Fatalf("headers %q, body %v", n.Headers, n.Body)
	}
	r := n.Recipients[0]
	if r.Reply != outcome(d, 0, Failed).Reply || r.RemoteMTA != "mx.example.net" || time.Since(r.LastAttempt) > time.Minute {
		t.Fatalf("recipient %+v", r)
	}
	if again, err := q.ClaimNotices(ctxOf(t), 10); err != nil || len(again) != 0 {
		t.Fatalf("claimed twice: %v, %v", again, err)
	}
	q.ReleaseNotice(n, 0)
	n = dueNotices(t, q, 1)[0]
	nm, rcpt, body := noticeMessage()
	if err := q.EnqueueNotice(ctxOf(t), n, nm, rcpt, body); err != nil {
		t.Fatal(err)
	}
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from body where message_id = $1`, m.ID); n != 0 {
		t.Fatal("the body is left")
	}
	if got := history(t, db, m.ID); got != "0 failed;1 failed;0 noticed;1 noticed" {
		t.Fatalf("history %q", got)
	}
	got := claimAll(t, q, all)
	if len(got) != 1 || got[0].Message.ID != nm.ID || !got[0].Message.Sender.IsNull() {
		t.Fatalf("claimed %+v", got)
	}
	q.Settle(outcome(got[0], 0, Failed))
	becomes(t, db, nm.ID, "")
	if again, err := q.ClaimNotices(ctxOf(t), 10); err != nil || len(again) != 0 {
		t.Fatal("a notice of a notice")
	}
}

// A notice without a message marks its recipients as told.
func TestNoticeNotWanted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Failed))
	n := dueNotices(t, q, 1)[0]
	if err := q.EnqueueNotice(ctxOf(t), n, Message{}, Recipient{}, nil); err != nil {
		t.Fatal(err)
	}
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from message`); n != 1 {
		t.Fatalf("%d messages", n)
	}
}

// TestRFC3464OurWords: a notice names the host that said a reply. The words of the relay
// itself, of a host's silence, are not put into its mouth. At the end of a lifetime the host is that
// of the reply which is quoted; the history has the host of each attempt.
func TestRFC3464OurWords(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "said@example.net", "ours@example.net", "late@example.net", "expired@example.net")
	exec(t, db, `update recipient set expires_at = now() where message_id = $1 and n = 2`, m.ID)
	ours, late, waits := outcome(d, 1, Failed), outcome(d, 2, Deferred), outcome(d, 3, Deferred)
	ours.Ours, waits.RetryIn = true, time.Hour
	late.Upstream, waits.Upstream = "mx", "out"
	q.Settle(outcome(d, 0, Failed), ours, late, waits)
	becomes(t, db, m.ID, "0 failed;1 failed;2 failed;3 waiting")
	exec(t, db, `update recipient set expires_at = now(), next_attempt_at = now() where message_id = $1 and n = 3`, m.ID)
	eventually(t, "the last one expires", func() bool {
		if _, err := q.Claim(ctxOf(t), all); err != nil {
			t.Fatal(err)
		}
		return count(t, db, `select count(*) from recipient where state = 'failed'`) == 4
	})
	const host = "mx.example.net"
	got := dueNotices(t, q, 1)[0].Recipients
	for i, want := range []struct{ host, text string }{
		{host, "no such user"}, {"", "no such user"}, {host, "last reply: 450 4.2.1 later (said by " + host + ")"}, {host, "last reply: 450 4.2.1 later (said by " + host + ")"},
	} {
		if r := got[i]; r.RemoteMTA != want.host || r.Upstream != (i == 3) || !strings.HasSuffix(r.Reply.Text, want.text) {
			t.Errorf("recipient %d: %+v, want %+v", i, r, want)
		}
	}
	if n := count(t, db, `select count(*) from history where message_id = $1 and remote_mta = $2`, m.ID, host); n != 4 {
		t.Errorf("%d attempts name the host, want 4", n)
	}
}

// The host of an earlier reply has not said why mail waits without an attempt.
func TestDelayNoticeOurWords(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.DelayNotice = time.Millisecond
	q := start(t, cfg)
	_, d := put(t, q, true, "a@example.net")
	o := outcome(d, 0, Deferred)
	q.Settle(o)
	eventually(t, "the first attempt is recorded", func() bool { return count(t, db, `select count(*) from recipient where owner is null`) == 1 })
	exec(t, db, `update recipient set next_attempt_at = now(), notice_at = null`)
	d = claimAll(t, q, all)[0]
	o = outcome(d, 0, Deferred)
	o.Reply, o.NotAnAttempt, o.Ours, o.RemoteMTA, o.Upstream, o.RetryIn = smtp.Temporary(451, 3, 2, "upstream out is paused"), true, true, "", "out", time.Hour
	q.Settle(o)
	if r := dueNotices(t, q, 1)[0].Recipients[0]; r.RemoteMTA != "" || !r.Upstream || r.Reply.Text != "upstream out is paused" {
		t.Errorf("%+v", r)
	}
}

// A delay is told once, when its time has come, and the recipient waits on.
func TestDelayNotice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.DelayNotice = time.Millisecond
	q := start(t, cfg)
	m, d := put(t, q, true, "a@example.net")
	o := outcome(d, 0, Deferred)
	o.RetryIn = time.Hour
	q.Settle(o)
	n := dueNotices(t, q, 1)[0]
	if n.Kind != NoticeDelay || n.Recipients[0].Reply.Text != "later" || time.Until(n.Recipients[0].WillRetryTo) < 100*time.Hour {
		t.Fatalf("notice %+v", n)
	}
	nm, rcpt, body := noticeMessage()
	if err := q.EnqueueNotice(ctxOf(t), n, nm, rcpt, body); err != nil {
		t.Fatal(err)
	}
	becomes(t, db, m.ID, "0 waiting")
	exec(t, db, `update recipient set next_attempt_at = now() where message_id = $1`, m.ID)
	var again *Delivery
	eventually(t, "the delayed message is claimed", func() bool {
		got, err := q.Claim(ctxOf(t), all)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range got {
			if d.Message.ID == m.ID {
				again = d
			}
		}
		return again != nil
	})
	if !again.Recipients[0].DelayNoticed {
		t.Fatal("not marked as told")
	}
	o = outcome(again, 0, Deferred)
	o.RetryIn = time.Hour
	q.Settle(o)
	becomes(t, db, m.ID, "0 waiting")
	if more, err := q.ClaimNotices(ctxOf(t), 10); err != nil || len(more) != 0 {
		t.Fatalf("told twice: %v, %v", more, err)
	}
}

// NOTIFY decides who is told of what; a success only where the next hop does not tell.
func TestWhoIsTold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.DelayNotice = time.Millisecond
	q := start(t, cfg)
	for _, c := range []struct {
		notify smtp.Notify
		result Result
		passed bool
		want   NoticeKind
	}{
		{0, Delivered, false, ""},
		{0, Failed, false, NoticeFailure},
		{0, Deferred, false, NoticeDelay},
		{smtp.NotifyNever, Failed, false, ""},
		{smtp.NotifyNever, Deferred, false, ""},
		{smtp.NotifySuccess, Delivered, false, NoticeSuccess},
		{smtp.NotifySuccess, Delivered, true, ""},
		{smtp.NotifySuccess, Failed, false, ""},
		{smtp.NotifyFailure, Failed, false, NoticeFailure},
		{smtp.NotifyFailure, Deferred, false, ""},
		{smtp.NotifyDelay, Deferred, false, NoticeDelay},
		{smtp.NotifyDelay | smtp.NotifySuccess | smtp.NotifyFailure, Delivered, false, NoticeSuccess},
	} {
		m := message()
		list := rcpts("a@example.net")
		list[0].Notify = c.notify
		d, err := taken(q.Enqueue(ctxOf(t), m, list, content.New([]byte("Subject: x\r\n\r\n")), true))
		if err != nil {
			t.Fatal(err)
		}
		o := outcome(d, 0, c.result)
		o.DSNPassed, o.RetryIn = c.passed, time.Hour
		q.Settle(o)
		eventually(t, "the outcome is settled", func() bool { return !q.inHand.has(m.ID) })
		if c.want == "" {
			got, err := q.ClaimNotices(ctxOf(t), 10)
			if err != nil || len(got) != 0 {
				t.Fatalf("%+v: told %v, %v", c, got, err)
			}
			continue
		}
		n := dueNotices(t, q, 1)[0]
		if n.Kind != c.want {
			t.Fatalf("%+v: told of %s", c, n.Kind)
		}
		if got, err := q.Claim(ctxOf(t), all); err != nil || len(got) != 0 {
			t.Fatalf("%+v: a row that is being told of was claimed", c)
		}
		if err := q.EnqueueNotice(ctxOf(t), n, Message{}, Recipient{}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// A notice whose epoch has lost its rows is not sent.
func TestNoticeIsFenced(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	q.Settle(outcome(d, 0, Failed), outcome(d, 1, Failed))
	becomes(t, db, m.ID, "0 failed;1 failed")
	n := dueNotices(t, q, 1)[0]
	exec(t, db, `update recipient set owner = owner + 1000 where n = 1`)
	nm, rcpt, body := noticeMessage()
	if err := q.EnqueueNotice(ctxOf(t), n, nm, rcpt, body); err == nil {
		t.Fatal("a notice of rows that are not ours")
	}
	if n := count(t, db, `select count(*) from message where id = $1`, nm.ID); n != 0 {
		t.Fatal("the notice is in the queue")
	}
}

func TestHeadersOf(t *testing.T) {
	t.Parallel()
	long := "Subject: " + strings.Repeat("x", noticeHeaders)
	for body, want := range map[string]string{
		"A: b\r\n\r\nbody":        "A: b\r\n",
		"A: b\r\nC: d\r\n":        "A: b\r\nC: d\r\n",
		"A: b\r\n" + long:         "A: b\r\n",
		"":                        "",
		"no end":                  "no end",
		"A: b\r\n\r\nx\r\n\r\n\n": "A: b\r\n",
	} {
		if got := headersOf([]byte(body)); !bytes.Equal(got, []byte(want)) {
			t.Errorf("%.20q: %q", body, got)
		}
	}
}

// A notice whose commit was answered with an error is committed once.
func TestNoticeCommitInDoubt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db), func(q *Queue) {
		skipped := false // the fault is for the notice, not for the mail before it
		q.faults.commit.After = func(c *pgx.Conn) error {
			if count(t, db, `select count(*) from message`) < 2 || skipped {
				return nil
			}
			skipped = true
			return cut(c)
		}
	})
	m, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Failed))
	becomes(t, db, m.ID, "0 failed")
	n := dueNotices(t, q, 1)[0]
	nm, rcpt, body := noticeMessage()
	if err := q.EnqueueNotice(ctxOf(t), n, nm, rcpt, body); err != nil {
		t.Fatal(err)
	}
	becomes(t, db, m.ID, "")
	becomes(t, db, nm.ID, "0 waiting")
}
