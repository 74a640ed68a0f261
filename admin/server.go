package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"postern/internal/crowd"
	"postern/relay/maillog"
)

// Bounds of what a client can make the server spend.
const (
	maxConnections = 64
	maxScrapes     = 4 // concurrently
	maxHeader      = 16 << 10
	readTime       = 10 * time.Second
	writeTime      = time.Minute // of the longest page; it bounds pprof's profiles too
	idleTime       = 2 * time.Minute
)

// addressRetry is how often an address is tried again that another process has.
const addressRetry = 2 * time.Second

// Config configures a Server.
type Config struct {
	Address  string   // see CheckAddress
	Hosts    []string // names that requests may be for beside localhost and addresses, where there is no token
	Token    string   // that /metrics and /debug/pprof, and the details of /readyz, ask for; "": nothing
	Pprof    bool
	Registry *prometheus.Registry // of /metrics
	Checks   []Check              // of /readyz
	Log      *slog.Logger
}

// Server serves the pages.
type Server struct {
	cfg   Config
	http  *http.Server
	ready *readiness
	lines *maillog.Logger // bounds what clients can make it log

	stop    context.CancelFunc // ends the wait for the address
	running sync.WaitGroup
	mu      sync.Mutex
	addr    string
}

// New makes a Server; Start opens it.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, ready: newReadiness(cfg.Checks), lines: maillog.New(cfg.Log), stop: func() {}}
	s.http = &http.Server{
		Handler:     serving(s.handler()),
		ConnContext: withConnection,
		ReadTimeout: readTime, ReadHeaderTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

func (s *Server) handler() http.Handler {
	pages := http.NewServeMux()
	// "GET" stands for HEAD as well; other methods are answered 405.
	pages.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok\n") })
	pages.HandleFunc("GET /readyz", s.readyz)
	if s.cfg.Registry != nil {
		pages.Handle("GET /metrics", s.guarded(promhttp.HandlerFor(s.cfg.Registry, promhttp.HandlerOpts{
			ErrorLog:            scrapeErrors{s},
			ErrorHandling:       promhttp.ContinueOnError,
			MaxRequestsInFlight: maxScrapes,
			Timeout:             readTime,
		})))
	}
	if s.cfg.Pprof {
		for path, page := range map[string]http.HandlerFunc{
			"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline,
			"/debug/pprof/profile": pprof.Profile, "/debug/pprof/trace": pprof.Trace,
		} {
			pages.Handle("GET "+path, s.guarded(page))
		}
	}
	return s.safe(s.meant(pages))
}

// scrapeErrors logs trouble with a scrape, which any client can make by going away.
type scrapeErrors struct{ s *Server }

// Println implements promhttp.Logger.
func (e scrapeErrors) Println(v ...any) {
	if e.s.lines.Allow("admin: scrape failed", netip.AddrPort{}) {
		e.s.cfg.Log.Warn("admin: scrape failed", "error", strings.TrimSpace(fmt.Sprintln(v...)))
	}
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a client that is gone misses nothing
}

// Start opens the address and serves in the background. An address that another
// process has is tried until it is free: a node that comes while its predecessor
// drains must accept mail, not fail for this page. ctx bounds only the start.
func (s *Server) Start(ctx context.Context) error {
	ln, err := listen(ctx, s.cfg.Address)
	if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("admin: cannot listen on %s: %w", s.cfg.Address, err)
	}
	waiting, stop := context.WithCancel(context.Background())
	s.stop = stop
	if err == nil {
		s.serve(ln)
		return nil
	}
	s.cfg.Log.Warn("admin: the address is in use; health and metrics start once it is free; give each node on a machine its own [admin] address", "address", s.cfg.Address)
	s.running.Go(func() { s.await(waiting) })
	return nil
}

func (s *Server) await(ctx context.Context) {
	tick := time.NewTicker(addressRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ln, err := listen(ctx, s.cfg.Address)
		switch {
		case err == nil:
			s.cfg.Log.Info("admin: the address is free, health and metrics are served", "address", s.cfg.Address)
			s.serve(ln)
			return
		case !errors.Is(err, syscall.EADDRINUSE) && ctx.Err() == nil:
			s.cfg.Log.Error("admin: health and metrics are not served", "address", s.cfg.Address, "error", err)
			return
		}
	}
}

func (s *Server) serve(ln net.Listener) {
	s.mu.Lock()
	s.addr = ln.Addr().String()
	s.mu.Unlock()
	s.running.Go(func() {
		if err := s.http.Serve(crowd.New(ln, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Log.Error("admin: health and metrics are no longer served", "error", err)
		}
	})
}

// Addr is where the server listens, "" while it does not.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Shutdown ends the server and what it has begun. Requests in work are answered
// until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	s.running.Wait()
	s.ready.wait()
	s.lines.Flush()
	return err
}
