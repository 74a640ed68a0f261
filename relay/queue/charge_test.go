package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// limitOf is a limit of user 1.
func limitOf(kind quota.Kind, most int64, window time.Duration) quota.Limit {
	return quota.Limit{Scope: quota.User, Subject: "1", Kind: kind, Window: window, Max: most}
}

// charged enqueues a small message that counts against limits.
func charged(t *testing.T, q *Queue, addresses []string, limits ...quota.Limit) (*Delivery, error) {
	t.Helper()
	m := message()
	m.Charges = limits
	return taken(q.Enqueue(ctxOf(t), m, rcpts(addresses...), content.New([]byte("0123456789")), true))
}

// used is what counts in a user's window, as the table has it.
func used(t *testing.T, db *pgtest.DB, c quota.Limit) int {
	t.Helper()
	return count(t, db, `select coalesce((select sum(u.n) from usage_window x, unnest(x.n) u(n) where x.scope = $1 and x.subject = $2 and x.kind = $3 and x.window_s = $4), 0)`,
		c.Scope, c.Subject, c.Kind, int(c.Window/time.Second))
}

func isOver(err error) *quota.Over {
	var over *quota.Over
	errors.As(err, &over)
	return over
}

// P9: as many as are allowed get in, across all nodes, and not one more.
func TestLimitIsExact(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	nodes := []*Queue{start(t, calmConfig(db)), start(t, func() Config { c := calmConfig(db); c.Node = "b"; return c }())}
	limit := limitOf(quota.Messages, 50, time.Hour)
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted, refused := 0, 0
	for i := range 120 {
		wg.Go(func() {
			_, err := charged(t, nodes[i%2], []string{"a@example.net"}, limit)
			over := isOver(err)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				accepted++
			case over == nil || over.Used != 50 || over.Amount != 1 || time.Until(over.RetryAt) < 59*time.Minute || time.Until(over.RetryAt) > 63*time.Minute:
				t.Errorf("refused with %v, %+v", err, over)
			default:
				refused++
			}
		})
	}
	wg.Wait()
	if accepted != 50 || refused != 70 {
		t.Errorf("%d accepted, %d refused", accepted, refused)
	}
	if n := count(t, db, `select count(*) from recipient`); n != 50 {
		t.Errorf("%d rows", n)
	}
	if n := used(t, db, limit); n != 50 {
		t.Errorf("%d are charged", n)
	}
}

// In no window of the limit's length is more accepted than it says, measured by those
// who hear the answers; and what leaves the window makes room.
func TestLimitRolls(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	const most = 10
	limit := limitOf(quota.Messages, most, time.Second)
	var sent, heard []time.Time // a message was charged between the two
	ctx := ctxOf(t)
	for len(heard) < 3*most && ctx.Err() == nil {
		begin := time.Now()
		if _, err := charged(t, q, []string{"a@example.net"}, limit); err == nil {
			sent, heard = append(sent, begin), append(heard, time.Now())
		} else if isOver(err) == nil {
			t.Fatal(err)
		}
	}
	for i := most; i < len(heard); i++ {
		if d := heard[i].Sub(sent[i-most]); d < time.Second {
			t.Errorf("%d messages within %v", most+1, d)
		}
	}
	if len(heard) < 3*most {
		t.Errorf("only %d were accepted in %v", len(heard), patience)
	}
}

// A message is charged against all its limits or against none, and one that can
// never fit is told so.
func TestChargeAllOrNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	messages, recipients := limitOf(quota.Messages, 10, time.Hour), limitOf(quota.Recipients, 3, 24*time.Hour)
	octets := quota.Limit{Scope: quota.Credential, Subject: "7", Kind: quota.Bytes, Window: time.Minute, Max: 25}
	all := []quota.Limit{recipients, messages, octets}
	if _, err := charged(t, q, []string{"a@example.net", "b@example.net"}, all...); err != nil {
		t.Fatal(err)
	}
	over := func(limit quota.Limit, used, amount int64, addresses ...string) *quota.Over {
		t.Helper()
		_, err := charged(t, q, addresses, all...)
		got := isOver(err)
		if got == nil || got.Limit != limit || got.Used != used || got.Amount != amount {
			t.Fatalf("%v: %+v", err, got)
		}
		var refused *smtp.Error
		if !errors.As(err, &refused) || refused.Reply.Code != 452 {
			t.Fatalf("refused with %v", err)
		}
		return got
	}
	if o := over(recipients, 2, 2, "a@example.net", "b@example.net"); o.RetryAt.IsZero() {
		t.Error("it would fit tomorrow")
	}
	if o := over(recipients, 2, 4, "a@example.net", "b@example.net", "c@example.net", "d@example.net"); !o.RetryAt.IsZero() {
		t.Errorf("it would fit at %v", o.RetryAt)
	}
	if _, err := charged(t, q, []string{"a@example.net"}, all...); err != nil {
		t.Fatal(err)
	}
	over(recipients, 3, 1, "a@example.net")
	if a, b, c := used(t, db, messages), used(t, db, recipients), used(t, db, octets); a != 2 || b != 3 || c != 20 {
		t.Errorf("%d messages, %d recipients, %d octets are charged", a, b, c)
	}
	over2, err := charged(t, q, []string{"a@example.net"}, octets)
	if o := isOver(err); over2 != nil || o == nil || o.Used != 20 || o.Amount != 10 || time.Until(o.RetryAt) > 63*time.Second {
		t.Errorf("%v: %+v", err, o)
	}
}

// A charge is there if its message is, whatever happens to the connection.
func TestChargeOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faults{
		"not persisted":       {commit: pg.Faults{Before: once(cut)}},
		"persisted but error": {commit: pg.Faults{After: once(cut)}},
	} {
		for _, size := range []int{10, 2 << 20} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				q := start(t, calmConfig(db), func(q *Queue) { q.faults = fault })
				m := message()
				limit := limitOf(quota.Messages, 1, time.Hour)
				m.Charges = []quota.Limit{limit}
				if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true); err != nil {
					t.Fatal(err)
				}
				if n := used(t, db, limit); n != 1 {
					t.Errorf("%d are charged", n)
				}
				if n := count(t, db, `select count(*) from message where usage = '[{"kind": "messages", "used": 1, "max": 1, "window_s": 3600}]'`); n != 1 {
					t.Errorf("%d messages say what they used", n)
				}
				m.ID = NewID()
				_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true)
				if isOver(err) == nil {
					t.Errorf("a second one: %v", err)
				}
				if n := count(t, db, `select count(*) from message where id = $1`, m.ID); n != 0 {
					t.Error("a refused message is stored")
				}
			})
		}
	}
}

// A message that the database refuses costs nothing, nor its neighbours.
func TestRefusedIsNotCharged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	limit := limitOf(quota.Messages, 100, time.Hour)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			m := message()
			m.Charges = []quota.Limit{limit}
			if i%3 == 0 {
				m.Sender.Local = "nul\x00"
			}
			_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true)
			if (err != nil) != (i%3 == 0) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := used(t, db, limit); n != 20 {
		t.Errorf("%d are charged, 20 were accepted", n)
	}
}

// Four fifths of a limit are told of once in each window.
func TestNearLimit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	near := make(chan quota.Near, 100)
	cfg.Near = func(n quota.Near) { near <- n }
	q := start(t, cfg)
	limit := limitOf(quota.Messages, 10, time.Hour)
	for range 10 {
		if _, err := charged(t, q, []string{"a@example.net"}, limit); err != nil {
			t.Fatal(err)
		}
	}
	if n := <-near; n != (quota.Near{Limit: limit, Used: 8}) || len(near) != 0 {
		t.Errorf("told %+v, and %d more", n, len(near))
	}
	if told := read(t, db, `select string_agg(kind || ' ' || object || ' ' || user_id || ' ' || (detail->>'used'), ', ') from event`); told != "limit.near messages 1 8" {
		t.Errorf("events: %s", told)
	}
}

// Mail of a user or a credential on hold is accepted and stays; what is in hand is
// held when it comes back.
func TestHoldMeetsNewMail(t *testing.T) {
	t.Parallel()
	for _, credential := range []int64{0, 9} {
		t.Run(fmt.Sprint(credential), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := start(t, calmConfig(db))
			enqueue := func(credential int64) (Message, Accepted) {
				m := message()
				m.CredentialID = credential
				a, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net", "b@example.net"), content.New([]byte("x")), true)
				if err != nil {
					t.Fatal(err)
				}
				return m, a
			}
			before, first := enqueue(9)
			d := first.Delivery
			exec(t, db, `insert into hold (user_id, credential_id, reason, made_by) values (1, $1, 'test', 'test')`, credential)
			q.Settle(outcome(d, 0, Delivered), outcome(d, 1, Deferred))
			becomes(t, db, before.ID, "1 waiting")
			held := func(id ID) int {
				return count(t, db, `select count(*) from recipient where message_id = $1 and owner is null and held_at is not null`, id)
			}
			if held(before.ID) != 1 {
				t.Error("what was in hand is not held")
			}
			m, a := enqueue(9)
			if !a.Held || a.Delivery != nil {
				t.Fatal("handed to delivery")
			}
			becomes(t, db, m.ID, "0 waiting;1 waiting")
			if held(m.ID) != 2 {
				t.Error("new mail is not held")
			}
			told := read(t, db, `select string_agg(n || ' ' || local || ' ' || reply_text, ', ' order by message_id, n) from history where result = 'hold'`)
			who := map[int64]string{0: "user", 9: "credential"}[credential]
			if want := strings.ReplaceAll("1 b the WHO is on hold: test, 0 a the WHO is on hold: test, 1 b the WHO is on hold: test", "WHO", who); told != want {
				t.Errorf("the history has %s, want %s", told, want)
			}
			if _, a := enqueue(10); a.Held != (credential == 0) {
				t.Errorf("mail by another credential: %v", a)
			}
			exec(t, db, `update recipient set next_attempt_at = now()`)
			if got, err := q.Claim(ctxOf(t), all); err != nil || slices.ContainsFunc(got, func(d *Delivery) bool { return d.Message.ID == m.ID }) {
				t.Errorf("claimed %v, %v", got, err)
			}
		})
	}
}

// A node that dies between its statement and its client keeps no other waiting:
// the locks of the limits end with the statement.
func TestChargeLocksAreShort(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	reached, leave := make(chan bool, 1), make(chan bool)
	slow := start(t, calmConfig(db), func(q *Queue) {
		q.faults.commit.After = func(*pgx.Conn) error {
			reached <- true
			<-leave
			return nil
		}
	})
	other := start(t, func() Config { c := calmConfig(db); c.Node = "b"; return c }())
	limit := limitOf(quota.Messages, 10, time.Hour)
	done := make(chan error, 1)
	go func() {
		_, err := charged(t, slow, []string{"a@example.net"}, limit)
		done <- err
	}()
	<-reached
	m := message()
	m.Charges = []quota.Limit{limit}
	if _, err := other.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true); err != nil {
		t.Error(err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A window that was forgotten as empty while a charge waited for it is made again, and
// no other limit is taken for it.
func TestLimitRowForgotten(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	limits := []quota.Limit{limitOf(quota.Messages, 1, time.Hour), {Scope: quota.User, Subject: "2", Kind: quota.Messages, Window: time.Hour, Max: 1}}
	for _, l := range limits {
		if _, err := charged(t, q, []string{"a@example.net"}, l); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctxOf(t), `delete from usage_window where subject = '1'`); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := charged(t, q, []string{"a@example.net"}, limits...)
		result <- err
	}()
	eventually(t, "the charge waits", func() bool {
		return count(t, db, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) > 0
	})
	if err := tx.Commit(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if over := isOver(<-result); over == nil || over.Subject != "2" {
		t.Errorf("the limit of user 2 is used up, and it says %+v", over)
	}
	if a, b := used(t, db, limits[0]), used(t, db, limits[1]); a != 0 || b != 1 {
		t.Errorf("%d and %d are charged", a, b)
	}
}

// A hold that ends before the mail that it met was handed back keeps none of it.
func TestHoldEndsBeforeMailIsParked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	settle := make(chan bool)
	q := start(t, calmConfig(db), func(q *Queue) {
		q.faults.settle.Before = func(*pgx.Conn) error { <-settle; return nil }
	})
	exec(t, db, `insert into hold (user_id, reason, made_by) values (1, 'test', '')`)
	m := message()
	if a, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true); err != nil || !a.Held {
		t.Fatal("it is not held")
	}
	exec(t, db, `delete from hold`)
	close(settle)
	becomes(t, db, m.ID, "0 waiting")
	if n := count(t, db, `select count(*) from recipient where held_at is not null`); n != 0 {
		t.Error("it is held although nobody is on hold")
	}
}

// The largest limit is one like others.
func TestLargestLimit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for range 2 {
		if _, err := charged(t, q, []string{"a@example.net"}, limitOf(quota.Bytes, 1<<63-1, time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever has the row of somebody's limit keeps only that user's mail waiting, and not
// for long; and the connection is as good as before.
func TestLimitRowLocked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	mine, other := limitOf(quota.Messages, 10, time.Hour), quota.Limit{Scope: quota.User, Subject: "2", Kind: quota.Messages, Window: time.Hour, Max: 10}
	send := func(limit quota.Limit, size int) error {
		m := message()
		m.Charges = []quota.Limit{limit}
		m.UserID, _ = strconv.ParseInt(limit.Subject, 10, 64)
		_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true)
		return err
	}
	if err := send(mine, 10); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(ctxOf(t), `select from usage_window where subject = '1' for update`); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, smallBody + 1} {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if i%2 == 0 {
					if err := send(other, 10); err != nil {
						t.Errorf("another user's mail: %v", err)
					}
					return
				}
				var refused *smtp.Error
				if err := send(mine, size); !errors.As(err, &refused) || refused.Reply.Code != 451 {
					t.Errorf("%d octets: %v", size, err)
				}
			})
		}
		all.Wait()
	}
	if err := tx.Rollback(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := send(mine, smallBody+1); err != nil {
			t.Error(err)
		}
	}
}

// A lock is waited for once more: its holder may have been a group with this user's mail in it, which
// itself waited for another user's lock, and gives way about as late as this one gives up.
func TestLimitRowLockedForShort(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m := message()
	m.Charges = []quota.Limit{limitOf(quota.Messages, 10, time.Hour)}
	for _, size := range []int{10, smallBody + 1} {
		if _, err := charged(t, q, []string{"a@example.net"}, m.Charges...); err != nil {
			t.Fatal(err)
		}
		tx, err := db.Pool.Begin(ctxOf(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctxOf(t), `select from usage_window where subject = '1' for update`); err != nil {
			t.Fatal(err)
		}
		var release sync.WaitGroup
		release.Go(func() {
			time.Sleep(1200 * time.Millisecond) // longer than the first wait, shorter than two
			_ = tx.Rollback(context.Background())
		})
		if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, size)), true); err != nil {
			t.Errorf("%d octets: %v", size, err)
		}
		release.Wait()
	}
}

// A large message that is over a limit is refused before its octets are stored.
func TestRefusedLargeIsNotStored(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m := message()
	m.Charges = []quota.Limit{limitOf(quota.Bytes, 100, time.Hour)}
	_, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New(make([]byte, smallBody+1)), true)
	if over := isOver(err); over == nil || over.Amount != smallBody+1 || !over.RetryAt.IsZero() {
		t.Errorf("%v: %+v", err, over)
	}
	if n := count(t, db, `select sum(pg_relation_size(('large_body_' || turn)::regclass)) from large_turn`); n != 0 {
		t.Errorf("%d octets are stored", n)
	}
}

// A limit of a domain counts what all its users send, across all nodes, once for each message;
// each limit that a message is under is charged, and the one that refuses is named.
func TestDomainLimit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	nodes := []*Queue{start(t, calmConfig(db)), start(t, func() Config { c := calmConfig(db); c.Node = "b"; return c }())}
	together := quota.Limit{Kind: quota.Messages, Window: time.Hour, Max: 30, Scope: quota.Domain, Subject: "example.com"}
	limits := func(user int64) []quota.Limit {
		return []quota.Limit{
			{Kind: quota.Messages, Window: time.Hour, Max: 100, Scope: quota.Default, Subject: quota.ID(user)}, together,
			{Kind: quota.Messages, Window: time.Hour, Max: 100, Scope: quota.Credential, Subject: quota.ID(10 + user)},
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := map[int64]int{}
	for i := range 80 {
		wg.Go(func() {
			m, user := message(), int64(i%5+1)
			m.UserID, m.CredentialID, m.Charges = user, 10+user, limits(user)
			_, err := nodes[i%2].Enqueue(ctxOf(t), m, rcpts("a@example.net"), content.New([]byte("x")), true)
			mu.Lock()
			defer mu.Unlock()
			if over := isOver(err); err == nil {
				accepted[user]++
			} else if over == nil || over.Limit != together || over.Used != 30 {
				t.Errorf("refused with %v, %+v", err, over)
			}
		})
	}
	wg.Wait()
	sum := 0
	for user, n := range accepted {
		sum += n
		of := limits(user)
		of[0].Scope = quota.User // a default counts with what is set for the user
		if a, b := used(t, db, of[0]), used(t, db, of[2]); a != n || b != n {
			t.Errorf("user %d has sent %d, and %d and %d are charged", user, n, a, b)
		}
	}
	if n := used(t, db, together); sum != 30 || n != 30 {
		t.Errorf("%d are accepted, and %d charged", sum, n)
	}
	if n := count(t, db, `select count(*) from message where jsonb_array_length(usage) = 3
		and usage -> 0 @> '{"kind": "messages", "max": 100, "window_s": 3600}' and not usage -> 0 ? 'scope'
		and usage -> 1 @> '{"max": 30, "scope": "domain", "subject": "example.com"}' and usage -> 2 @> '{"max": 100, "scope": "credential"}'`); n != 30 {
		t.Errorf("%d messages say what they used", n)
	}
}

// Of a user that moves to another domain, what was sent stays charged where it was sent.
func TestUserMovesBetweenDomains(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	user := limitOf(quota.Messages, 3, time.Hour)
	of := func(domain string) quota.Limit {
		return quota.Limit{Kind: quota.Messages, Window: time.Hour, Max: 2, Scope: quota.Domain, Subject: domain}
	}
	send := func(domain string, refusedBy quota.Scope) {
		t.Helper()
		_, err := charged(t, q, []string{"a@example.net"}, user, of(domain))
		if over := isOver(err); refusedBy == "" && err != nil || refusedBy != "" && (over == nil || over.Scope != refusedBy) {
			t.Errorf("from %s: %v, %+v", domain, err, over)
		}
	}
	send("old.example", "")
	send("old.example", "")
	send("old.example", quota.Domain)
	send("new.example", "")
	send("new.example", quota.User)
	if a, b, c := used(t, db, of("old.example")), used(t, db, of("new.example")), used(t, db, user); a != 2 || b != 1 || c != 3 {
		t.Errorf("%d, %d and %d are charged", a, b, c)
	}
}

// Four fifths of a domain's limit are told of once, whoever sends.
func TestNearDomainLimit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	near := make(chan quota.Near, 100)
	cfg.Near = func(n quota.Near) { near <- n }
	q := start(t, cfg)
	together := quota.Limit{Kind: quota.Recipients, Window: time.Hour, Max: 10, Scope: quota.Domain, Subject: "example.com"}
	for user := range 5 {
		own := quota.Limit{Kind: quota.Recipients, Window: time.Hour, Max: 10, Scope: quota.User, Subject: quota.ID(int64(user))}
		if _, err := charged(t, q, []string{"a@example.net", "b@example.net"}, own, together); err != nil {
			t.Fatal(err)
		}
	}
	if n := <-near; n != (quota.Near{Limit: together, Used: 8}) || len(near) != 0 {
		t.Errorf("told %+v, and %d more", n, len(near))
	}
}

// A transaction that holds the row of a domain's limit delays its users together, not one
// after the other, and nobody else.
func TestGroupIsPartedBySubject(t *testing.T) {
	t.Parallel()
	of := func(user int64, limits ...quota.Limit) *submittal {
		return &submittal{m: Message{UserID: user, Charges: limits}}
	}
	own := func(user int64) quota.Limit { return quota.Limit{Scope: quota.User, Subject: quota.ID(user)} }
	together := quota.Limit{Scope: quota.Domain, Subject: "example.com"}
	list := []*submittal{of(1, own(1)), of(2), of(3, own(3), together), of(4, together), of(1, own(1)), of(5, own(5))}
	var got []string
	for _, part := range bySubject(list) {
		users := ""
		for _, j := range part {
			users += quota.ID(j.m.UserID)
		}
		got = append(got, users)
	}
	if want := []string{"2", "34", "11", "5"}; !slices.Equal(got, want) {
		t.Errorf("parts %q, want %q", got, want)
	}
}

// Another transaction is making the row of a limit: nobody waits long for it.
func TestChargeWaitsShortlyForANewRow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const call = `select * from charge_usage(array[gen_random_uuid()], false, '{domain}', '{example.com}', '{messages}', '{3600}', '{1}', '{1}', '{1}', '{10}')`
	tx, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(ctxOf(t), call); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Pool.Acquire(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctxOf(t), "set lock_timeout = 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctxOf(t), call); pg.Code(err) != "55P03" {
		t.Errorf("%v, want lock_not_available", err)
	}
}
