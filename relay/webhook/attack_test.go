package webhook

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/relay/feed"
)

// An endpoint that is away for a moment is tried again after seconds, however many requests failed at that moment.
func TestShortOutage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	arrived := make(chan struct{}, MostConcurrency)
	all := make(chan struct{})
	r := newReceiver(t, func(w http.ResponseWriter, _ request) {
		if arrived <- struct{}{}; len(arrived) == Concurrency {
			close(all)
		}
		<-all
		w.WriteHeader(http.StatusBadGateway)
	})
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(300, 1)
	b.run()
	until(t, "it is left alone", func() bool { return b.show("a").WaitUntil != nil })
	if wait := time.Until(*b.show("a").WaitUntil); wait > schedule[0] {
		t.Errorf("for %s", wait)
	}
}

// Events that an endpoint never takes do not keep new ones from it.
func TestPoison(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, func(w http.ResponseWriter, q request) {
		if strings.Contains(q.body, "poison") {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	b.add("a", r.URL+"/", feed.Accepted)
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select id, gen_random_uuid(), 1, now(), 'accepted', '"poison"' from webhook, generate_series(1, 100)`)
	b.happen(1, 1)
	until(t, "the event can be read", func() bool { // others' transactions may hold the feed back
		page, err := feed.Read(t.Context(), b.db.Pool, feed.Cursor{}, feed.Filter{Kinds: []feed.Kind{feed.Accepted}})
		must(t, err)
		return len(page.Events) == 1
	})
	s, _ := b.run()
	until(t, "they fail", func() bool { return b.show("a").WaitUntil != nil })
	b.exec(`update webhook set wait_until = null`)
	until(t, "the next request is settled", func() bool { return s.Count()[Tries{"a", Taken}] > 0 || b.show("a").WaitUntil != nil })
	if s.Count()[Tries{"a", Taken}] != 1 {
		t.Errorf("%v", s.Count())
	}
}

// What was to wait for long, by a clock that was set back since, does not.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.add("a", r.URL+"/", feed.Accepted)
	b.exec(`update webhook set owner = gen_random_uuid(), lease_until = now() + interval '1 year', wait_until = now() + interval '1 year'`)
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select id, gen_random_uuid(), 1, now() + interval '1 year', 'accepted', '{}' from webhook`)
	b.run()
	until(t, "it is sent", func() bool { return len(r.requests()) == 1 })
}

// Few large events are read at a time.
func TestLargeRetries(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.add("a", "https://example.com/")
	b.exec(`insert into webhook_retry (webhook_id, event_id, tries, next_at, kind, body)
		select id, gen_random_uuid(), 1, now(), 'accepted', repeat('x', 3 << 20) from webhook, generate_series(1, 5)`)
	w := &worker{s: NewSender(b.cfg)}
	if jobs, err := w.due(t.Context(), &hook{id: int64(b.int(`select id from webhook`))}, batch); err != nil || len(jobs) != 2 {
		t.Errorf("%d events are read: %v", len(jobs), err)
	}
}

// An endpoint that is left alone costs no memory.
func TestRestsWithoutPage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, status(http.StatusBadGateway))
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(100, 1)
	s := NewSender(b.cfg)
	must(t, s.round(t.Context()))
	w := s.working[int64(b.int(`select id from webhook`))]
	until(t, "it is left alone", func() bool {
		must(t, s.round(t.Context())) // others' transactions may have held the feed back
		return b.show("a").WaitUntil != nil
	})
	s.end()
	if len(w.events) > 0 {
		t.Errorf("%d events are kept", len(w.events))
	}
}
