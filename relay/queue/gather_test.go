package queue

import (
	"fmt"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// gatherConfig is calmConfig whose notices are gathered for longer than any test runs.
func gatherConfig(db *pgtest.DB) Config {
	cfg := calmConfig(db)
	cfg.Gather = time.Hour
	return cfg
}

// fails ends recipient n of d and waits until that is written.
func fails(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery, n int) {
	t.Helper()
	q.Settle(outcome(d, n, Failed))
	eventually(t, "the failure is settled", func() bool {
		return count(t, db, `select count(*) from recipient where message_id = $1 and n = $2 and state = 'failed' and owner is null`, d.Message.ID, n) == 1
	})
}

// told commits notices for what is due and returns how many recipients each had.
func told(t *testing.T, q *Queue) (recipients []int) {
	t.Helper()
	list, err := q.ClaimNotices(ctxOf(t), 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		m, rcpt, body := noticeMessage()
		if err := q.EnqueueNotice(ctxOf(t), n, m, rcpt, body); err != nil {
			t.Fatal(err)
		}
		recipients = append(recipients, len(n.Recipients))
	}
	return recipients
}

// due makes the gathered notices of a message due, as time does.
func due(t *testing.T, db *pgtest.DB, id ID) {
	t.Helper()
	exec(t, db, `update recipient set notice_at = now() where message_id = $1 and state <> 'waiting' and owner is null`, id)
}

func addresses(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("r%d@example.net", i))
	}
	return list
}

// wants compares how many recipients the notices had.
func wants(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s: notices with %v recipients, want %v", what, got, want)
	}
}

// TestL2NoticesGathered: what is told of one message while it is under way is told
// together, and immediately when it is not; another node does it as well.
func TestL2NoticesGathered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, gatherConfig(db))
	_, d := put(t, q, true, addresses(3)...)
	fails(t, db, q, d, 0)
	wants(t, "one of three", told(t, q))
	fails(t, db, q, d, 1)
	wants(t, "two of three", told(t, q))
	other := gatherConfig(db)
	other.Node = "b"
	b := start(t, other)
	fails(t, db, q, d, 2)
	wants(t, "all", told(t, b), 3)

	_, d = put(t, q, true, addresses(2)...) // those of one batch
	q.Settle(outcome(d, 0, Failed), outcome(d, 1, Failed))
	eventually(t, "both are settled", func() bool { return !q.inHand.has(d.Message.ID) })
	wants(t, "both", told(t, q), 2)

	list := rcpts(addresses(2)...)
	for i := range list {
		list[i].Notify = smtp.NotifySuccess
	}
	d, err := taken(q.Enqueue(ctxOf(t), message(), list, content.New([]byte("Subject: x\r\n\r\n")), true))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		wants(t, "successes under way", told(t, q))
		q.Settle(outcome(d, n, Delivered))
		eventually(t, "it is settled", func() bool {
			return count(t, db, `select count(*) from recipient where message_id = $1 and state = 'delivered' and owner is null`, d.Message.ID) == n+1
		})
	}
	wants(t, "successes", told(t, q), 2)
}

// TestL2NoticesOfOneMessage: sixty recipients that fail one after the other make as many
// notices as the time between them allows, twice as long each time, and one at the end.
func TestL2NoticesOfOneMessage(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, gatherConfig(db))
	const all = 60
	_, d := put(t, q, true, addresses(all)...)
	var got []int
	for n := range all {
		fails(t, db, q, d, n)
		due(t, db, d.Message.ID)
		got = append(got, told(t, q)...)
		switch n {
		case 1: // the last recipient may be delivered, and then it need not wait longer
			if n := count(t, db, `select count(*) from recipient where state = 'failed' and notice_at < now() + interval '11 minutes'`); n != 1 {
				t.Error("what waits is looked at too late")
			}
		case 20: // the next one may come when Gather is over
			exec(t, db, `update notice set message_id = $1`, FirstID(time.Now().Add(-time.Hour)))
		case 30: // and another one twice as long after that
			exec(t, db, `update notice set message_id = $1 where not again`, FirstID(time.Now().Add(-24*time.Hour)))
			exec(t, db, `update notice set message_id = $1 where again`, FirstID(time.Now().Add(-time.Hour)))
			due(t, db, d.Message.ID)
			wants(t, "half of the time is over", told(t, q))
		case 40:
			exec(t, db, `update notice set message_id = $1 where again`, FirstID(time.Now().Add(-2*time.Hour)))
		}
	}
	wants(t, "in all", got, 1, 21, 20, 18)
	if n := count(t, db, `select count(*) from recipient where message_id = $1`, d.Message.ID); n != 0 {
		t.Errorf("%d recipients are left", n)
	}
	if n := count(t, db, `select count(*) from notice where again and user_id = $1`, d.Message.UserID); n != 3 {
		t.Errorf("%d notices count, want 3", n)
	}
}

// TestL2NoticesOfOneUser: what a user's messages make of notices beyond the first of each
// is bounded for an hour, and nothing else waits for that.
func TestL2NoticesOfOneUser(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, gatherConfig(db))
	_, d := put(t, q, true, addresses(3)...)
	fails(t, db, q, d, 0)
	due(t, db, d.Message.ID)
	wants(t, "the first", told(t, q), 1)
	exec(t, db, `update notice set message_id = $1`, FirstID(time.Now().Add(-24*time.Hour)))
	for range againAnHour {
		exec(t, db, `insert into notice (message_id, about, kind, user_id, again) values ($1, $1, 'failure', $2, true)`, NewID(), d.Message.UserID)
	}
	fails(t, db, q, d, 1)
	due(t, db, d.Message.ID)
	wants(t, "over the bound", told(t, q))
	if n := count(t, db, `select count(*) from recipient where message_id = $1 and state = 'failed' and notice_at > now() + interval '9 minutes'`, d.Message.ID); n != 1 {
		t.Errorf("%d recipients wait, want 1", n)
	}
	_, another := put(t, q, true, addresses(2)...)
	fails(t, db, q, another, 0)
	due(t, db, another.Message.ID)
	wants(t, "the first of another message", told(t, q), 1)
	exec(t, db, `delete from notice where again`) // the hour is over
	due(t, db, d.Message.ID)
	wants(t, "an hour later", told(t, q), 1)
	fails(t, db, q, d, 2)
	wants(t, "the last", told(t, q), 1)
}
