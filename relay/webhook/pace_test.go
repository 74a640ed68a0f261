package webhook

import (
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"postern/relay/feed"
)

type answering func(*http.Request) (*http.Response, error)

func (f answering) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Requests begin evenly, also those of slow endpoints and of a node that was just given the webhook.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		begun := make(chan time.Duration, 20)
		w := &worker{sending: t.Context(), pace: pace{last: start}, client: &client{&url.URL{Scheme: "https", Host: "example.com"}, http.Client{
			Transport: answering(func(*http.Request) (*http.Response, error) {
				begun <- time.Since(start)
				time.Sleep(3 * time.Second)
				return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
			}),
		}}}
		h := &hook{Limits: Limits{Concurrency: 4, PerMinute: 120}}
		if n := len(w.send(t.Context(), h, make([]job, 10), 0)); n != 10 {
			t.Fatalf("%d were sent", n)
		}
		close(begun)
		n := 0
		for at := range begun {
			n++
			if want := time.Duration(n)*time.Second/2 + time.Duration((n-1)/4)*time.Second; at != want {
				t.Errorf("request %d began after %s, not %s", n, at, want)
			}
		}
	})
	for _, c := range []struct{ perMinute, failures, events int }{{0, 0, batch}, {1, 0, 1}, {60, 0, 5}, {60, failing, 1}, {MostPerMinute, 0, batch}} {
		h := hook{Limits: Limits{Concurrency: 4, PerMinute: c.perMinute}}
		if events, _ := h.most(c.failures); events != c.events {
			t.Errorf("%+v: %d events", c, events)
		}
	}
}

// A limit holds from the first request of a node, and its end too.
func TestPerMinute(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.add("a", r.URL+"/a", feed.Accepted)
	b.add("b", r.URL+"/b", feed.Accepted)
	none, one := 0, 1
	must(t, b.store.Set(t.Context(), "a", nil, &one))
	b.happen(5, 1)
	b.run()
	until(t, "the other is sent them", func() bool { return len(r.ids("/b")) == 5 })
	if n := len(r.ids("/a")); n != 0 {
		t.Errorf("%d were sent", n)
	}
	must(t, b.store.Set(t.Context(), "a", nil, &none))
	until(t, "it is sent them", func() bool { return len(r.ids("/a")) == 5 })
	if w := b.show("a"); w.Limits != (Limits{Concurrency, 0}) {
		t.Errorf("%+v", w)
	}
}
