package relay_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/rig"
)

// get is scrape for pages that are asked while much goes on: trouble is no end of the test.
func get(ctx context.Context, addr, path string) (status int, body string, took time.Duration, err error) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return 0, "", 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", time.Since(began), err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), time.Since(began), err
}

// awaitPage polls a page until ok likes it.
func awaitPage(t *testing.T, addr, path, what string, ok func(status int, body string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.Patience)
	defer cancel()
	for {
		status, body, _, err := get(ctx, addr, path)
		if err == nil && ok(status, body) {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond): // nobody signals it
		case <-ctx.Done():
			t.Fatalf("%s: %s has %d %.2000s, %v", what, path, status, body, err)
		}
	}
}

// scrapeTime is what a page may take on a machine that is busy with other tests; what
// it must not do is to wait for the database, which takes far longer to give up.
const scrapeTime = 10 * time.Second

// TestPagesWithoutDatabase takes the database away: pages are answered, and say so; it
// comes back, and they say that too.
func TestPagesWithoutDatabase(t *testing.T) {
	t.Parallel()
	r := rig.New(t, true)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	addr := node.Admin()
	awaitPage(t, addr, "/readyz", "ready", func(status int, _ string) bool { return status == http.StatusOK })
	awaitPage(t, addr, "/metrics", "the database is there", func(_ int, body string) bool { return strings.Contains(body, "\npostern_database_up 1\n") })

	r.KillPostgres(true)
	awaitPage(t, addr, "/readyz", "not ready", func(status int, body string) bool {
		return status == http.StatusServiceUnavailable && strings.Contains(body, "check that it runs, its port")
	})
	awaitPage(t, addr, "/metrics", "the database is away", func(_ int, body string) bool {
		return strings.Contains(body, "\npostern_database_up 0\n") && strings.Contains(body, "\npostern_database_trouble 1\n") &&
			!strings.Contains(body, "postern_queue_recipients{")
	})
	for range 20 {
		for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
			if status, _, took, err := get(t.Context(), addr, path); err != nil || took > scrapeTime || path == "/healthz" && status != http.StatusOK {
				t.Errorf("%s without a database: %d after %v, %v", path, status, took, err)
			}
		}
	}

	r.StartPostgres()
	awaitPage(t, addr, "/readyz", "ready again", func(status int, _ string) bool { return status == http.StatusOK })
	awaitPage(t, addr, "/metrics", "the database is back", func(_ int, body string) bool {
		return strings.Contains(body, "\npostern_database_up 1\n") && strings.Contains(body, "postern_queue_recipients{")
	})
}

// TestHalvesHavePages has a node of each half tell what it has.
func TestHalvesHavePages(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	for _, half := range []struct{ only, has, lacks string }{
		{"submission", "postern_certificate_expiry_timestamp_seconds", "postern_delivery_connections"},
		{"delivery", "postern_delivery_connections", "postern_sessions_open"},
	} {
		addr := r.Node(rig.NodeConfig{Name: half.only, Only: half.only}).Admin()
		awaitPage(t, addr, "/readyz", half.only, func(status int, body string) bool {
			return status == http.StatusOK && strings.Contains(body, `"certificates"`) == (half.only == "submission")
		})
		status, body, _, err := get(t.Context(), addr, "/metrics")
		if err != nil || status != http.StatusOK || !strings.Contains(body, half.has) || strings.Contains(body, half.lacks) {
			t.Errorf("%s: status %d, %v; it must have %s and not %s: %s", half.only, status, err, half.has, half.lacks, body)
		}
	}
}

// TestScrapesHoldNoMail has many read the pages, and some who never finish reading,
// while mail flows: all of it is accepted and delivered. Then the node drains, and its
// page says so until the last delivery is done.
func TestScrapesHoldNoMail(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	addr := node.Admin()
	for range 30 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n"); err != nil { // and no more
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				for _, path := range []string{"/metrics", "/readyz"} {
					// 503 is an answer: a machine that is busy enough has a slow database.
					status, _, _, err := get(ctx, addr, path)
					if ctx.Err() == nil && (err != nil || status != http.StatusOK && status != http.StatusServiceUnavailable) {
						t.Errorf("%s: %d, %v", path, status, err)
					}
				}
			}
		})
	}
	load := newLoad(t, r, node)
	load.Each, load.Pace = 20, 0
	load.Start()
	load.Wait()
	stop()
	readers.Wait()
	if all := load.Conns * load.Each; load.Ledger.Accepted() != all {
		t.Errorf("%d of %d messages were accepted: %s", load.Ledger.Accepted(), all, load.Ledger)
	}
	r.Drain()

	release := sink.Hold(rig.BeforeReply, node.Name+".test")
	defer release()
	last := newLoad(t, r, node)
	last.Conns, last.Each = 1, 1
	last.Start()
	last.Wait()
	if !sink.WaitHeld(rig.BeforeReply, node.Name+".test", 1) {
		t.Fatal("no delivery is under way")
	}
	var ended sync.WaitGroup
	ended.Go(node.Terminate)
	awaitPage(t, addr, "/readyz", "draining", func(status int, body string) bool {
		return status == http.StatusServiceUnavailable && strings.Contains(body, "this node is stopping")
	})
	release()
	ended.Wait()
}
