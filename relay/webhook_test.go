package relay_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/rig"
)

// hears is an endpoint that refuses every fifth event at first, and keeps the ids of those that it takes.
type hears struct {
	mu           sync.Mutex
	seen, events map[string]bool
	strange      string // a request that is not as it should be
}

func (h *hears) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // a node that was killed
	}
	var event struct{ ID string }
	id := r.Header.Get("webhook-id")
	h.mu.Lock()
	defer h.mu.Unlock()
	if json.Unmarshal(body, &event) != nil || event.ID != id || id == "" {
		h.strange = string(body)
	}
	if again := h.seen[id]; !again && len(h.seen)%5 == 4 {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		h.events[id] = true
		w.WriteHeader(http.StatusNoContent)
	}
	h.seen[id] = true
}

func (h *hears) ids() map[string]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.events)
}

// TestWebhookUnderFire kills the nodes under load, and then compares what an endpoint has been sent with
// the feed: every event, and no other.
func TestWebhookUnderFire(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 10*time.Millisecond)
	r.RouteTo(sink, 10)
	h := &hears{seen: map[string]bool{}, events: map[string]bool{}}
	endpoint := httptest.NewServer(h)
	t.Cleanup(endpoint.Close)
	const allow = "[webhooks]\nallow = [\"127.0.0.0/8\"]\n"
	a, b := r.Node(rig.NodeConfig{Name: "a", Extra: allow}), r.Node(rig.NodeConfig{Name: "b", Extra: allow})
	r.Postern("", "--config", a.ConfigFile(), "webhook", "add", endpoint.URL, "--all", "--name", "here")
	load := newLoad(t, r, a, b)
	load.Start()
	for _, node := range []*rig.Node{a, b} {
		awaitMore(t, load.Ledger, 50)
		<-moment()
		node.Kill()
		node.Start()
		node.Ready()
	}
	awaitMore(t, load.Ledger, 50)
	load.Stop()
	r.Drain()
	var missing, told int
	end := time.Now().Add(rig.Patience)
	for {
		left := h.ids()
		missing, told = 0, 0
		for line := range strings.Lines(r.Postern("", "events", "--json")) {
			var event struct{ ID, Kind, Action string }
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				t.Fatal(err)
			}
			told++
			if !left[event.ID] && event.Kind != "audit" { // those of before the webhook was added
				missing++
			}
			delete(left, event.ID)
		}
		if missing == 0 {
			if len(left) > 0 {
				t.Errorf("%d events were sent that the feed does not have", len(left))
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d events were not sent:\n%s", missing, told, r.Postern("", "webhook", "show", "here"))
		}
		time.Sleep(200 * time.Millisecond)
	}
	if told < 300 || h.strange != "" {
		t.Errorf("%d events, strange: %s", told, h.strange)
	}
}
