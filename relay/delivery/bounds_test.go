package delivery

import (
	"sync"
	"testing"
	"time"

	"postern/internal/smtptest"
)

// TestRebound: more connections are opened immediately when more are allowed, and room for
// mail grows and shrinks.
func TestRebound(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	release := make(chan struct{})
	server.On(smtptest.PhaseMail, func(smtptest.Session) smtptest.Action {
		<-release
		return smtptest.Action{}
	})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}, Connections: 1, Memory: 1000})
	for range 5 {
		e.Take(message(t, "r@one.test"))
	}
	reaches(t, server, 1)
	e.Rebound(Bounds{Connections: 3})
	reaches(t, server, 3)
	if n := server.PeakConns(); n != 3 {
		t.Errorf("%d concurrent connections, want 3", n)
	}
	if e.Reserve(1, 2000) {
		t.Error("there is room for more than the memory")
	}
	e.Rebound(Bounds{Memory: 1 << 20})
	if !e.Reserve(1, 2000) {
		t.Error("there is no room although the memory grew")
	}
	if b := *e.bounds.Load(); b.Connections != 3 || b.PerConnection != 1000 {
		t.Errorf("bounds %+v", b)
	}
	e.Rebound(Bounds{Connections: 1})
	d := e.all()[0]
	d.mu.Lock()
	if w := d.window; w.limit != 1 || w.most != 1 {
		t.Errorf("limit %d of %d, want 1", w.limit, w.most)
	}
	d.mu.Unlock()
	close(release)
	q.waitEnded(t, 5)
}

// TestReboundWhileCounted has scrapes come while reloads change the memory.
func TestReboundWhileCounted(t *testing.T) {
	t.Parallel()
	e := startEngine(t, newFakeQueue(), Config{Routes: routes{}})
	const rounds = 1000
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for i := range rounds {
			e.Rebound(Bounds{Memory: int64(i + 1)})
		}
	})
	for range rounds {
		e.Stats()
	}
	reloads.Wait()
	if limit := e.Stats().MemoryLimit; limit != rounds {
		t.Errorf("the metrics have a limit of %d octets", limit)
	}
}

// reaches waits until so many conversations have come to MAIL.
func reaches(t *testing.T, server *smtptest.Server, n int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); server.Reached(smtptest.PhaseMail) < n; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d conversations, want %d", server.Reached(smtptest.PhaseMail), n)
		}
	}
}
