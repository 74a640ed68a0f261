package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/feed"
	"postern/relay/seal"
)

// Every statement of the package is one that the schema understands.
func TestStatements(t *testing.T) {
	t.Parallel()
	statements := pgtest.Statements(t, texts.Bound)
	statements["sealed"] = Sealed().Read
	statements["reseal"] = Sealed().Write
	pgtest.Prepare(t, statements)
}

// During a rotation requests have the signatures of both secrets, then of the new one.
func TestRotate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	former := b.add("a", r.URL+"/", feed.Accepted)
	b.run()
	secret, until1, err := b.store.Rotate(t.Context(), "a")
	must(t, err)
	if left := time.Until(until1); left < 23*time.Hour || left > 25*time.Hour {
		t.Errorf("the former one signs until %s", until1)
	}
	if _, _, err := b.store.Rotate(t.Context(), "a"); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a third secret: %v", err)
	}
	signed := func(s Secret) bool {
		all := r.requests()
		q := all[len(all)-1]
		return Verify([]Secret{s}, q.Get, []byte(q.body), time.Now()) == nil
	}
	b.happen(1, 1)
	until(t, "it is sent", func() bool { return len(r.requests()) == 1 })
	if !signed(secret) || !signed(former) {
		t.Error("a signature is missing")
	}
	b.exec(`update webhook set old_until = now()`)
	until(t, "only the new one signs", func() bool {
		b.happen(1, 1)
		n := len(r.requests())
		until(t, "it is sent", func() bool { return len(r.requests()) > n })
		return signed(secret) && !signed(former)
	})
	if n := b.int(`select count(*) from audit where detail::text like '%whsec%' or detail::text like '%secret%'`); n != 0 {
		t.Error("the audit has a secret")
	}
	b.exec(`update webhook set name = 'b'`)
	if _, _, err := b.store.Secrets(t.Context(), "b"); !errors.Is(err, seal.ErrSeal) {
		t.Errorf("a secret opens in another place: %v", err)
	}
}

// A user's webhook is sent events of the user's mail, without the relay's names.
func TestOfUser(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.exec(`insert into app_user (name) values ('alice@example.com'), ('bob@example.com')`)
	alice := int64(b.int(`select id from app_user where name = 'alice@example.com'`))
	n := New{Name: "a", URL: r.URL + "/", UserID: alice, Limits: Limits{Concurrency: 1}}
	_, err := b.store.Add(t.Context(), n)
	must(t, err)
	b.happen(3, alice)
	b.happen(3, alice+1)
	b.exec(`insert into history (message_id, n, at, epoch, result, local, domain, upstream, remote_mta, remote_addr, node)
		values (id_of(1), 0, clock_timestamp(), 1, 'delivered', 'carol', 'example.net', 'smarthost', 'secret.example', '192.0.2.1', 'node-a')`)
	b.exec(`insert into history (message_id, n, at, epoch, result, local, domain, upstream, reply_code, reply_enhanced, reply_text)
		values (id_of(1), 0, clock_timestamp(), 1, 'deferred', 'carol', 'example.net', 'smarthost', 451, '4.4.1', 'upstream smarthost at secret.example:587: connection refused')`)
	b.exec(`insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
		values (id_of(2), 0, clock_timestamp(), 0, 'hold', 'carol', 'example.net', 'by admin7')`)
	b.run()
	until(t, "they are sent", func() bool { return len(r.ids("/")) == 6 })
	if !slices.ContainsFunc(r.requests(), func(q request) bool { return strings.Contains(q.body, `"text":"the next server: connection refused"`) }) {
		t.Error("a reply of Postern's own has no text")
	}
	for _, q := range r.requests() {
		if strings.Contains(q.body, `"kind":"audit"`) || !strings.Contains(q.body, `"user":"alice@example.com"`) {
			t.Errorf("it was sent %s", q.body)
		}
		for _, hidden := range []string{"smarthost", "secret.example", "node-a", `"node"`, "admin7"} {
			if strings.Contains(q.body, hidden) {
				t.Errorf("%s is in %s", hidden, q.body)
			}
		}
	}
	n.Kinds = []feed.Kind{feed.Failed, feed.Audit}
	if _, err := b.store.Add(t.Context(), n); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("audit: %v", err)
	}
	n.Kinds = nil
	for i := 2; i <= MostOfUser+1; i++ {
		n.Name = fmt.Sprintf("a%d", i)
		if _, err := b.store.Add(t.Context(), n); (err == nil) != (i <= MostOfUser) {
			t.Errorf("the %dth: %v", i, err)
		}
	}
	b.exec(`delete from app_user where id = $1`, alice)
	if n := b.int(`select count(*) from webhook`); n != 0 {
		t.Errorf("%d webhooks are left", n)
	}
}

// Add refuses bad names, bounds and kinds; commands refuse unknown webhooks and wrong states.
func TestAddRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.add("a", "https://example.com/")
	for _, n := range []New{{Name: "A", Limits: Limits{Concurrency: 1}}, {Name: "", Limits: Limits{Concurrency: 1}}, {Name: "x", Limits: Limits{Concurrency: 0}}, {Name: "x", Limits: Limits{Concurrency: MostConcurrency + 1}}, {Name: "x", Limits: Limits{Concurrency: 1, PerMinute: -1}}, {Name: "x", Limits: Limits{Concurrency: 1, PerMinute: MostPerMinute + 1}}, {Name: "x", Limits: Limits{Concurrency: 1}, Kinds: []feed.Kind{"nothing"}}} {
		n.URL = "https://example.com/"
		if _, err := b.store.Add(t.Context(), n); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%+v: %v", n, err)
		}
	}
	if _, err := b.store.Add(t.Context(), New{Name: "a", URL: "https://example.com/", Limits: Limits{Concurrency: 1}}); !errors.Is(err, refusal.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	for name, do := range map[string]error{
		"pause": b.store.Pause(t.Context(), "x"), "resume": b.store.Resume(t.Context(), "x"), "remove": b.store.Remove(t.Context(), "x"),
	} {
		if !errors.Is(do, refusal.ErrNotFound) {
			t.Errorf("%s: %v", name, do)
		}
	}
	if err := b.store.Resume(t.Context(), "a"); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("resume of an active one: %v", err)
	}
}

// After its last try an event is given up; so is one that has waited for 96 hours.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, status(http.StatusInternalServerError))
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(2, 1)
	_, stop := b.run()
	until(t, "both have failed", func() bool { return b.int(`select count(*) from webhook_retry where tries > 0`) == 2 })
	stop()
	b.exec(`update webhook_retry set tries = $1, next_at = now() where event_id = (select min(event_id::text)::uuid from webhook_retry)`, len(schedule))
	b.exec(`update webhook_retry set first_at = now() - interval '97 hours', next_at = now() + interval '1 day' where tries = 1`)
	b.exec(`update webhook set wait_until = null, failures = 0`)
	s, _ := b.run()
	until(t, "they are given up", func() bool { return b.show("a").GivenUp == 2 && b.show("a").Waiting == 0 })
	until(t, "they are counted", func() bool { return s.Count()[Tries{"a", GivenUp}] == 2 })
}

// When no further event can wait, new ones are not read.
func TestRetriesAreBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.add("a", r.URL+"/", feed.Accepted)
	b.add("b", r.URL+"/b", feed.Accepted)
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select w.id, gen_random_uuid(), 1, now() + interval '1 day', 'accepted', '{}' from webhook w, generate_series(1, $1) where w.name = 'a'`, MostRetries)
	b.happen(3, 1)
	b.run()
	until(t, "another is sent them", func() bool { return len(r.ids("/b")) == 3 })
	if n := len(r.ids("/")); n != 0 {
		t.Errorf("%d were sent", n)
	}
	b.exec(`delete from webhook_retry`)
	until(t, "it is sent them", func() bool { return len(r.ids("/")) == 3 })
}

// The questions that are asked each second read little, however many webhooks there are and events wait.
func TestQuestionsAreCheap(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	owner := uuid.New()
	b.exec(`insert into webhook (name, url, at_once, cursor, secret, owner, lease_until)
		select 'w' || n, 'https://example.com/', 1, '', '', $1, now() + interval '1 hour' from generate_series(1, $2) n`, owner, Most)
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select w.id, gen_random_uuid(), 1, now() + interval '1 day' * n, 'accepted', repeat('x', 500) from webhook w, generate_series(1, 1000) n`)
	b.exec(`vacuum analyze webhook_retry`)
	conn, err := b.db.Pool.Acquire(t.Context())
	must(t, err)
	defer conn.Release()
	pgtest.Cost(t, conn.Conn(), "leased", 5*Most, sqlLeased, owner)
	id := int64(b.int(`select min(id) from webhook`))
	pgtest.Cost(t, conn.Conn(), "look", 20, sqlLook, id, owner, longest)
	pgtest.Cost(t, conn.Conn(), "due", 20, sqlDue, id, batch, batchOctets)
}

// A webhook whose place retention has deleted says so, and goes on with what is left.
func TestGoneByRetention(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.add("a", r.URL+"/", feed.Accepted)
	must(t, b.store.Pause(t.Context(), "a"))
	b.happen(1, 1)
	b.exec(`update feed_state set gone = (select max(feed_at) + 1 from message), gone_at = now()`)
	b.happen(3, 1)
	must(t, b.store.Resume(t.Context(), "a"))
	b.run()
	until(t, "it is sent what is left", func() bool { return len(r.ids("/")) == 4 })
	if w := b.show("a"); w.GoneUntil == nil || w.GoneAt == nil {
		t.Errorf("%+v", w)
	}
	until(t, "they are settled", func() bool { return b.int(`select count(*) from webhook_try`) == 4 })
	b.happen(1, 1)
	until(t, "it goes on as any other", func() bool {
		return b.int(`select count(*) from webhook where not lenient`) == 1
	})
}

// Two processes share webhooks; when one ends, the other sends for all.
func TestTwoSenders(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	for i := range 6 {
		b.add(fmt.Sprintf("w%d", i), fmt.Sprintf("%s/%d", r.URL, i), feed.Accepted)
	}
	_, stop := b.run()
	b.run()
	until(t, "each has some", func() bool {
		return b.int(`select count(distinct owner) from webhook`) == 2 && b.int(`select count(*) from webhook where owner is null`) == 0
	})
	b.happen(20, 1)
	until(t, "all are sent", func() bool { return b.each(r, 6, 20) })
	stop()
	until(t, "one has all", func() bool {
		return b.int(`select count(distinct owner) from webhook`) == 1 && b.int(`select count(*) from webhook where owner is null`) == 0
	})
	b.happen(20, 1)
	until(t, "all are sent again", func() bool { return b.each(r, 6, 40) })
}

// each reports that endpoints have been sent so many events each.
func (b *bench) each(r *receiver, endpoints, events int) bool {
	for i := range endpoints {
		if len(r.ids(fmt.Sprintf("/%d", i))) != events {
			return false
		}
	}
	return true
}

// Events are sent again with the ids that they had, and others are not.
func TestReplay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.happen(5, 1)
	b.add("a", r.URL+"/", feed.Accepted)
	choice := Choice{Since: time.Now().Add(-time.Hour)}
	var n int
	until(t, "the events can be read", func() (is bool) {
		var err error
		n, err = b.store.Count(t.Context(), "a", choice)
		must(t, err)
		return n == 5
	})
	one := Choice{ID: uuid.MustParse(b.ids(feed.Filter{Kinds: []feed.Kind{feed.Accepted}})[2])}
	n, err := b.store.Replay(t.Context(), "a", one)
	must(t, err)
	if n != 1 {
		t.Errorf("%d events", n)
	}
	b.run()
	until(t, "one is sent", func() bool { return slices.Equal(r.ids("/"), []string{one.ID.String()}) })
	early := choice
	early.Until = time.Now().Add(-time.Minute)
	if n, err := b.store.Replay(t.Context(), "a", early); n != 0 || err != nil {
		t.Errorf("%d events of before, %v", n, err)
	}
	if n, err := b.store.Replay(t.Context(), "a", choice); n != 5 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
	until(t, "all are sent", func() bool { return len(r.requests()) == 6 && len(r.ids("/")) == 5 })
	must(t, b.store.Pause(t.Context(), "a"))
	// The audit has what was done, and nothing else.
	const deeds = `select count(*) from audit where action = 'webhook replay'`
	before := b.int(deeds)
	b.exec(`alter table webhook_retry add constraint full_disk check (false) not valid`)
	if _, err := b.store.Replay(t.Context(), "a", choice); err == nil || b.int(deeds) != before {
		t.Errorf("%v, and the audit has it", err)
	}
	b.exec(`alter table webhook_retry drop constraint full_disk`)
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select w.id, gen_random_uuid(), 1, now(), 'accepted', '{}' from webhook w, generate_series(1, $1)`, MostRetries-4)
	if _, err := b.store.Replay(t.Context(), "a", choice); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("there is no room: %v", err)
	}
}
