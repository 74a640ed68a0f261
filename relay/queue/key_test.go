package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/longtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/queue/insert"
	"postern/relay/smtp"
)

// again is message with the key of its content, as the user sends it each time.
func again(user int64) Message {
	m := message()
	m.UserID = user
	m.Key = insert.ContentKey(user, m.Sender, m.MessageID, []byte("octets"), time.Hour)
	m.Charges = []quota.Limit{{Scope: quota.User, Subject: quota.ID(user), Kind: quota.Messages, Window: time.Hour, Max: 1000},
		{Scope: quota.User, Subject: quota.ID(user), Kind: quota.Recipients, Window: time.Hour, Max: 1000}}
	return m
}

// limitless is again without limits: its keys are put in without looking, and not by admit.
func limitless(user int64) Message {
	m := again(user)
	m.Charges = nil
	return m
}

// bothWays runs a test with mail that has limits and with mail that has none.
func bothWays(t *testing.T, test func(t *testing.T, again func(user int64) Message)) {
	t.Helper()
	t.Run("limits", func(t *testing.T) { t.Parallel(); test(t, again) })
	t.Run("no limits", func(t *testing.T) { t.Parallel(); test(t, limitless) })
}

// ifLimited is n if m counts against limits, else 0.
func ifLimited(m Message, n string) string {
	if len(m.Charges) == 0 {
		return "0"
	}
	return n
}

var text = content.New([]byte("Subject: x\r\n\r\nbody\r\n"))

// submit enqueues m and says how it ended: "stored 1", "duplicate 1 of FIRST", or both; or the reply.
func submit(t testing.TB, q *Queue, m Message, addresses ...string) string {
	t.Helper()
	return submitted(q.Enqueue(ctxOf(t), m, rcpts(addresses...), text, true))
}

func submitted(a Accepted, err error) string {
	var refused *smtp.Error
	if errors.As(err, &refused) {
		return refused.Reply.String()
	}
	var said []string
	if a.Stored > 0 {
		said = append(said, fmt.Sprintf("stored %d", a.Stored))
	}
	if a.Duplicates > 0 {
		said = append(said, fmt.Sprintf("%d of %s", a.Duplicates, a.First))
	}
	if a.Delivery != nil && len(a.Delivery.Recipients) != a.Stored || a.Delivery == nil && a.Stored > 0 && !a.Held {
		said = append(said, "and another delivery")
	}
	return strings.Join(said, ", ")
}

func isText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// state is all that the database has: messages and recipients, keys, what user 1 was charged, and
// what the histories say of duplicates.
func state(t *testing.T, db *pgtest.DB) string {
	t.Helper()
	return fmt.Sprintf("%s messages, %s charged", read(t, db, `select (select count(*) from message where voided_at is null) || '/' || (select count(*) from recipient) || '/' || (select count(*) from duplicate)`),
		read(t, db, `select coalesce(string_agg(s, '/' order by kind desc), '0') from (select kind, (select sum(u) from unnest(n) u)::text s from usage_window where kind in ('messages', 'recipients') order by kind) x`)) +
		read(t, db, `select ', ' || count(*) || ' told' from history where result = 'duplicate'`)
}

// The rules of docs/duplicates.md for what is the same, by what it was when the second came.
func TestDuplicate(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		first := again(1)
		isText(t, submit(t, q, first, "a@example.net", "b@example.net"), "stored 2")
		for _, c := range []struct {
			name   string
			change func(*Message)
			to     []string
			want   string
		}{
			{"the same", func(*Message) {}, []string{"a@example.net", "b@example.net"}, "2 of " + first.ID.String()},
			{"another order, another case of the domain", func(*Message) {}, []string{"b@Example.NET", "a@example.net"}, "2 of " + first.ID.String()},
			{"fewer recipients", func(*Message) {}, []string{"b@example.net"}, "1 of " + first.ID.String()},
			{"one new recipient", func(*Message) {}, []string{"a@example.net", "c@example.net", "b@example.net"}, "stored 1, 2 of " + first.ID.String()},
			{"another case of the local part", func(*Message) {}, []string{"A@example.net"}, "stored 1"},
			{"another user", func(m *Message) { m.UserID, m.Key, m.Charges = 2, again(2).Key, again(2).Charges }, []string{"a@example.net"}, "stored 1"},
			{"another sender", func(m *Message) {
				m.Key = insert.ContentKey(1, address("other@example.com"), m.MessageID, []byte("octets"), time.Hour)
			}, []string{"a@example.net"}, "stored 1"},
			{"another Message-ID", func(m *Message) {
				m.Key = insert.ContentKey(1, m.Sender, "<n@example.com>", []byte("octets"), time.Hour)
			}, []string{"a@example.net"}, "stored 1"},
			{"other content", func(m *Message) { m.Key = insert.ContentKey(1, m.Sender, m.MessageID, []byte("others"), time.Hour) }, []string{"a@example.net"}, "stored 1"},
			{"no key", func(m *Message) { m.Key = insert.Key{} }, []string{"a@example.net"}, "stored 1"},
		} {
			m := again(1)
			c.change(&m)
			if got := submit(t, q, m, c.to...); got != c.want {
				t.Errorf("%s: %q, want %q", c.name, got, c.want)
			}
			if n := count(t, db, `select coalesce((select recipients from message where id = $1), 0) - (select count(*) from recipient where message_id = $1)`, m.ID); n != 0 {
				t.Errorf("%s: the message counts %d recipients too many", c.name, n)
			}
		}
		// What was charged is what was stored.
		if got := read(t, db, `select count(*) || ' ' || sum(recipients) from message where user_id = 1`); got != "7 8" {
			t.Fatalf("user 1 has %s", got)
		}
		for kind, want := range map[quota.Kind]int{quota.Messages: 7, quota.Recipients: 8} {
			if got := fmt.Sprint(used(t, db, limitOf(kind, 0, time.Hour))); got != ifLimited(again(1), fmt.Sprint(want)) {
				t.Errorf("%s %s are charged, want %d", got, kind, want)
			}
		}
		if got := history(t, db, first.ID); strings.Count(got, "duplicate") != 7 {
			t.Errorf("history %q", got)
		}
		if got := count(t, db, `select count(*) from duplicate where message_id in (select id from message)`); got != count(t, db, `select count(*) from duplicate`) {
			t.Error("a key is of no message")
		}
	})
}

// After the window, or when the first did not arrive, the second is a message of its own.
func TestDuplicateNoMore(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		for name, end := range map[string]func(*testing.T, *pgtest.DB, *Queue, *Delivery){
			"after the window": func(t *testing.T, db *pgtest.DB, _ *Queue, _ *Delivery) {
				exec(t, db, `update duplicate set until = clock_timestamp()`)
			},
			"failed": func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
				q.Settle(outcome(d, 0, Failed))
				eventually(t, "it failed", func() bool { return count(t, db, `select count(*) from recipient where state = 'failed'`) == 1 })
			},
			"cancelled": func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
				exec(t, db, `with gone as (delete from recipient returning *)
					insert into history (message_id, n, at, epoch, result) select message_id, n, now(), 0, 'cancel' from gone`)
			},
			"expired": func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
				exec(t, db, `update recipient set expires_at = now(), tell = 0`)
				q.Settle(outcome(d, 0, Deferred))
				eventually(t, "it expired", func() bool { return count(t, db, `select count(*) from recipient`) == 0 })
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				q := start(t, calmConfig(db))
				first := again(1)
				a, err := q.Enqueue(ctxOf(t), first, rcpts("a@example.net"), text, true)
				isText(t, submitted(a, err), "stored 1")
				end(t, db, q, a.Delivery)
				second := again(1)
				isText(t, submit(t, q, second, "a@example.net"), "stored 1")
				isText(t, submit(t, q, again(1), "a@example.net"), "1 of "+second.ID.String())
				if got := fmt.Sprint(used(t, db, limitOf(quota.Messages, 0, time.Hour))); got != ifLimited(second, "2") {
					t.Errorf("%s are charged", got)
				}
			})
		}
		// What was delivered, or waits, or is held, is not sent again.
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		first := again(1)
		a, err := q.Enqueue(ctxOf(t), first, rcpts("a@example.net", "b@example.net", "c@example.net"), text, true)
		isText(t, submitted(a, err), "stored 3")
		q.Settle(outcome(a.Delivery, 0, Delivered), outcome(a.Delivery, 1, Deferred))
		eventually(t, "they ended", func() bool { return count(t, db, `select count(*) from recipient where owner is null`) == 1 })
		exec(t, db, `update recipient set held_at = now() where n = 1`)
		isText(t, submit(t, q, again(1), "a@example.net", "b@example.net", "c@example.net"), "3 of "+first.ID.String())
	})
}

// A message over a limit leaves no key: neither its own copy nor anybody else's is a duplicate of it.
func TestDuplicateOfARefusal(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	over := func() Message {
		m := again(1)
		m.Charges[0].Max = 0
		return m
	}
	for range 2 {
		if got := submit(t, q, over(), "a@example.net"); !strings.HasPrefix(got, "452") {
			t.Errorf("refused with %q", got)
		}
	}
	isText(t, state(t, db), "0/0/0 messages, 0 charged, 0 told")
	first := again(1)
	isText(t, submit(t, q, first, "a@example.net"), "stored 1")
	// A duplicate costs nothing, so a spent limit refuses none; what is partly one is refused whole.
	isText(t, submit(t, q, over(), "a@example.net"), "1 of "+first.ID.String())
	if got := submit(t, q, over(), "a@example.net", "b@example.net"); !strings.HasPrefix(got, "452") {
		t.Errorf("refused with %q", got)
	}
	isText(t, state(t, db), "1/1/1 messages, 1/1 charged, 1 told")
}

// Two equal messages in one group: the second waits for the first, and so do two at a time over
// several sessions and nodes. One is stored, each of the others hears of it.
func TestDuplicateAtTheSameMoment(t *testing.T) {
	t.Parallel()
	rounds := 30
	if longtest.Run() {
		rounds = 1000
	}
	db := pgtest.New(t)
	var nodes []*Queue
	for _, name := range []string{"a", "b"} {
		cfg := calmConfig(db)
		cfg.Node = name
		nodes = append(nodes, start(t, cfg))
	}
	charged := 0
	for round := range rounds {
		m := again(1)
		body := text
		if round%10 == 9 && round < 100 {
			body = content.New(make([]byte, 2<<20))
		}
		m.Key = insert.ContentKey(1, m.Sender, m.MessageID, fmt.Append(nil, round), time.Hour)
		var wg sync.WaitGroup
		got := make([]Accepted, 6)
		for i := range got {
			m := m
			m.ID = NewID()
			if m.Charges = nil; i < 2 {
				m.Charges = []quota.Limit{limitOf(quota.Messages, 1<<40, time.Hour)}
			}
			wg.Go(func() {
				a, err := nodes[i%2].Enqueue(ctxOf(t), m, rcpts("a@example.net", "b@example.net"), body, true)
				if err != nil {
					t.Error(err)
				}
				if a.Stored > 0 {
					a.First = m.ID
				}
				got[i] = a
			})
		}
		wg.Wait()
		stored := 0
		for i, a := range got {
			stored += a.Stored
			if a.Stored > 0 && i < 2 {
				charged++
			}
			if a.First != got[0].First || a.Stored+a.Duplicates != 2 {
				t.Fatalf("round %d: %+v", round, got)
			}
		}
		if stored != 2 {
			t.Fatalf("round %d: %d recipients are stored", round, stored)
		}
	}
	if got := count(t, db, `select count(*) from recipient`); got != 2*rounds {
		t.Errorf("%d recipients", got)
	}
	if got := used(t, db, limitOf(quota.Messages, 0, time.Hour)); got != charged {
		t.Errorf("%d are charged, want %d", got, charged)
	}
}

// Equal messages are never in one group, or the second could be a duplicate of a refusal.
func TestEqualOnesInOneGroup(t *testing.T) {
	t.Parallel()
	var mail []*submittal
	for _, to := range [][]string{{"a@example.net"}, {"a@example.net"}, {"b@example.net"}, {"c@example.net", "b@example.net"}, {"c@example.net"}} {
		m := again(1)
		j := &submittal{m: m, rcpts: rcpts(to...), done: make(chan result, 1)}
		j.keys = m.Key.Each(j.rcpts)
		mail = append(mail, j)
	}
	list := append([]*submittal{}, mail...)
	if got := (&committer{}).distinct(list); len(got) != 3 || got[0] != mail[0] || got[1] != mail[2] || got[2] != mail[4] {
		t.Errorf("%d are in the group", len(got))
	}
	for _, j := range []*submittal{mail[1], mail[3]} {
		if r := <-j.done; !r.again {
			t.Error("a copy has ended")
		}
	}
}

// A lost reply: the commit whose answer is lost is asked about, finds its own keys, and is no
// duplicate of itself; one of which some recipients were duplicates keeps the others only.
func TestDuplicateInDoubt(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		for size, body := range map[string]content.Body{"small": text, "large": content.New(make([]byte, 2<<20))} {
			t.Run(size, func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				var lose atomic.Bool
				lose.Store(true)
				q := start(t, calmConfig(db), func(q *Queue) {
					q.faults.commit.After = func(c *pgx.Conn) error {
						if lose.Swap(false) {
							return cut(c)
						}
						return nil
					}
				})
				send := func(m Message, to ...string) string {
					return submitted(q.Enqueue(ctxOf(t), m, rcpts(to...), body, true))
				}
				first, second := again(1), again(1)
				isText(t, send(first, "a@example.net"), "stored 1")
				lose.Store(true)
				isText(t, send(again(1), "a@example.net"), "1 of "+first.ID.String())
				lose.Store(true)
				isText(t, send(second, "a@example.net", "b@example.net"), "stored 1, 1 of "+first.ID.String())
				isText(t, rows(t, db, second.ID), "1 waiting owned")
				isText(t, send(again(1), "a@example.net", "b@example.net"), "2 of "+first.ID.String())
				isText(t, state(t, db), "2/2/2 messages, "+ifLimited(again(1), "2/2")+" charged, 4 told")
			})
		}
	})
}

// The first is in doubt until its client has heard 451, and is voided; the second came meanwhile
// and was told that the first is queued: so that is sent, but only to those whom the second names.
func TestDuplicateOfOneInDoubt(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		cfg := calmConfig(db)
		cfg.Budget = 300 * time.Millisecond
		q := start(t, cfg, func(q *Queue) {
			q.faults.commit.After = func(c *pgx.Conn) error { return cut(c) }
		})
		first := again(1)
		other := start(t, func() Config { c := calmConfig(db); c.Node = "b"; return c }())
		second := ""
		q.faults.commit.After = func(c *pgx.Conn) error {
			if second == "" {
				second = submit(t, other, again(1), "b@example.net")
			}
			return cut(c)
		}
		if got := submit(t, q, first, "a@example.net", "b@example.net"); !strings.HasPrefix(got, "451") {
			t.Errorf("the first heard %q", got)
		}
		isText(t, second, "1 of "+first.ID.String())
		becomes(t, db, first.ID, "1 waiting")
		eventually(t, "nothing is in hand", func() bool { return !q.inHand.has(first.ID) })
		isText(t, history(t, db, first.ID), "1 duplicate;0 void")
		if got := count(t, db, `select count(*) from message where voided_at is null`); got != 1 {
			t.Errorf("%d messages are not voided", got)
		}
		if got := count(t, db, `select count(*) from body where message_id = $1`, first.ID); got != 1 {
			t.Errorf("%d rows of its body", got)
		}
		// The one that was voided is wanted again.
		third := again(1)
		isText(t, submit(t, other, third, "a@example.net", "b@example.net"), "stored 1, 1 of "+first.ID.String())
		isText(t, rows(t, db, third.ID), "0 waiting owned")
	})
}

// A void goes first: then the second is no duplicate.
func TestNoDuplicateOfAVoid(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		cfg := calmConfig(db)
		cfg.Budget = 300 * time.Millisecond
		q := start(t, cfg, func(q *Queue) {
			q.faults.commit.After = func(c *pgx.Conn) error { return cut(c) }
		})
		other := start(t, func() Config { c := calmConfig(db); c.Node = "b"; return c }())
		first := again(1)
		if got := submit(t, q, first, "a@example.net"); !strings.HasPrefix(got, "451") {
			t.Errorf("the first heard %q", got)
		}
		eventually(t, "it is voided", func() bool { return count(t, db, `select count(*) from message where voided_at is not null`) == 1 })
		becomes(t, db, first.ID, "")
		isText(t, submit(t, other, again(1), "a@example.net"), "stored 1")
		isText(t, state(t, db), "1/1/1 messages, "+ifLimited(again(1), "2/2")+" charged, 0 told")
	})
}

// A late try of a message that was voided finds its id taken, and promises nothing in the name of
// the copy that was stored meanwhile.
func TestLateTryOfAVoid(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		stored, late := again(1), again(1)
		isText(t, submit(t, q, stored, "a@example.net"), "stored 1")
		exec(t, db, `insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at, client_addr, client_hello, listener, tls, node, recipients, voided_at)
			select $1, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at, client_addr, client_hello, listener, tls, node, recipients, now() from message`, late.ID)
		submit(t, q, late, "a@example.net")
		isText(t, history(t, db, stored.ID), "")
	})
}

// Another transaction has a key: only the copy waits, and in the end hears that it may try again.
// Others' mail, and the same user's other mail, is accepted meanwhile.
func TestKeyInAnothersHand(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hold string // takes the key $1
		then string // what the copy hears when that is undone; of a key that is there
	}{
		"looked at": {`select from duplicate where key = $1 for update`, "1 of "},
		"put in":    {`insert into duplicate (key, message_id, until, n) values ($1, gen_random_uuid(), now() + interval '1 hour', 0)`, "stored 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := start(t, calmConfig(db))
			first := again(1)
			if c.then != "stored 1" {
				isText(t, submit(t, q, first, "a@example.net"), "stored 1")
				c.then += first.ID.String()
			}
			tx, err := db.Pool.Begin(ctxOf(t))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(ctxOf(t), c.hold, first.Key.Each(rcpts("a@example.net"))[0].Key); err != nil {
				t.Fatal(err)
			}
			mail := []*submittal{}
			for i, to := range []string{"c@example.net", "a@example.net", "d@example.net", "e@example.net"} {
				m := limitless(int64(1 + i/3))
				j := &submittal{m: m, rcpts: rcpts(to), body: text, epoch: q.epochs.valid(), until: time.Now().Add(patience), done: make(chan result, 1)}
				j.keys = m.Key.Each(j.rcpts)
				q.inHand.add(m.ID, 1)
				mail = append(mail, j)
			}
			com := &committer{q: q, limit: groupMessages, voids: q.commits.voids, s: dedicated(q.cfg.EnqueuePool, pg.TuneCommit, &q.faults.commit)}
			defer com.s.Close()
			com.commit(mail)
			for i, j := range mail {
				r := <-j.done
				if (r.Err != nil) != (i == 1) {
					t.Errorf("message %d: %v", i, r.Err)
				}
			}
			_ = tx.Rollback(ctxOf(t))
			isText(t, submit(t, q, limitless(1), "a@example.net"), c.then)
		})
	}
}

// A client's own key stands for one content; a copy of that is a duplicate, by recipients.
func TestClientKey(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		with := func(octets string) Message {
			m := again(1)
			m.Key = insert.ClientKey(1, "order-1", m.Sender, []byte(octets), 24*time.Hour)
			return m
		}
		first := with("one")
		a, err := q.Enqueue(ctxOf(t), first, rcpts("a@example.net"), text, true)
		isText(t, submitted(a, err), "stored 1")
		isText(t, submit(t, q, with("one"), "a@example.net"), "1 of "+first.ID.String())
		second := with("one")
		isText(t, submit(t, q, second, "a@example.net", "b@example.net"), "stored 1, 1 of "+first.ID.String())
		refusal := "554 5.6.0 The idempotency key was used for other content, queued as " + first.ID.String() + "; use a new key for each message"
		for _, to := range []string{"a@example.net", "c@example.net"} {
			isText(t, submit(t, q, with("two"), to), refusal)
		}
		isText(t, submitted(q.Enqueue(ctxOf(t), with("two"), rcpts("d@example.net"), content.New(bytes.Repeat([]byte("x"), 2<<20)), true)), refusal)
		isText(t, state(t, db), "2/2/3 messages, "+ifLimited(again(1), "2/2")+" charged, 2 told")
		m := with("two")
		m.UserID, m.Key = 2, insert.ClientKey(2, "order-1", m.Sender, []byte("two"), time.Hour)
		isText(t, submit(t, q, m, "a@example.net"), "stored 1")
		// Once nothing of the first is delivered its key is free.
		q.Settle(outcome(a.Delivery, 0, Failed))
		eventually(t, "it failed", func() bool { return count(t, db, `select count(*) from recipient where state = 'failed'`) == 1 })
		isText(t, submit(t, q, with("two"), "a@example.net"), "stored 1")
	})
}

// A client that sends the same in a loop fills no table.
func TestDuplicatesInALoop(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, again func(int64) Message) {
		db := pgtest.New(t)
		cfg := calmConfig(db)
		var undone atomic.Int64
		cfg.Observer.Commit = func(c Commit) {
			if c.Work == WorkEnqueue && c.Fate == Undone {
				undone.Add(1)
			}
		}
		q := start(t, cfg)
		first := again(1)
		isText(t, submit(t, q, first, "a@example.net"), "stored 1")
		for range 30 {
			isText(t, submit(t, q, again(1), "a@example.net"), "1 of "+first.ID.String())
		}
		isText(t, state(t, db), "1/1/1 messages, "+ifLimited(again(1), "1/1")+" charged, 20 told")
		// Each error is a line in PostgreSQL's log.
		if n := undone.Load(); n > smallCommitters || (n > 0) != (len(first.Charges) == 0) {
			t.Errorf("%d statements failed", n)
		}
	})
}

// The keys of a group go in before all else, in their order.
func TestKeysComeFirst(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	exec(t, db, `create table seen (at serial, what text, key uuid);
		create function see() returns trigger language plpgsql as $$ begin
			insert into seen (what, key) values (tg_table_name, case when tg_table_name = 'duplicate' then (to_jsonb(new) ->> 'key')::uuid end);
			return new;
		end $$`)
	for _, table := range []string{"duplicate", "message", "body", "recipient"} {
		exec(t, db, `create trigger see before insert on `+table+` for each row execute function see()`)
	}
	m := message()
	m.Key = insert.ContentKey(1, m.Sender, m.MessageID, m.ID[:], time.Hour)
	if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net", "b@example.net", "c@example.net", "d@example.net"), content.New([]byte("x")), true); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from (select what, key, lag(key) over (order by at) as last from seen order by at limit 4) s
		where what = 'duplicate' and (last is null or last < key)`); n != 4 {
		t.Errorf("%d of 4 keys came first, in their order", n)
	}
}

// A table that somebody changes is waited for longer than another's key is.
func TestTableLocked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	tx, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(ctxOf(t), `lock table message in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, size := range []int{10, 10, 10, smallBody + 1} {
		all.Go(func() {
			m := message()
			m.Key = insert.ContentKey(1, m.Sender, m.MessageID, m.ID[:], time.Hour)
			if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true); err != nil {
				t.Errorf("%d octets: %v", size, err)
			}
		})
	}
	time.Sleep(2500 * time.Millisecond) // longer than two waits
	if err := tx.Rollback(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	all.Wait()
}
