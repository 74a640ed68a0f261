package smtptest

import (
	"cmp"
	"crypto/tls"
	"maps"
	"net"
	"postern/internal/serve"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Config says how a Server behaves when no hook says otherwise.
type Config struct {
	Addr     string // address to listen on, an IP of 127.0.0.0/8; "": 127.0.0.1:0
	Hostname string // in the banner and EHLO; "": fake.test

	// Extensions are the EHLO lines but for STARTTLS and AUTH, which follow from
	// TLS, Users and Tokens. nil: PIPELINING, SIZE 0, 8BITMIME, SMTPUTF8, DSN and
	// ENHANCEDSTATUSCODES; an empty slice: none.
	Extensions []string
	// ExtensionsTLS, unless nil, replace Extensions under TLS.
	ExtensionsTLS []string

	TLS      *tls.Config       // offers STARTTLS
	Implicit bool              // TLS from the first octet instead
	Users    map[string]string // password by name: offers AUTH PLAIN LOGIN; MAIL then needs it
	// Tokens judges access tokens: offers AUTH XOAUTH2 OAUTHBEARER; MAIL then needs one.
	Tokens   func(user, token string) bool
	AuthOnly bool // offer and take AUTH only under TLS

	DiscardBodies bool           // record the size of bodies but not the octets
	Hooks         map[Phase]Hook // as if set by On
}

// Server is a fake SMTP server on loopback. It takes every message, records it,
// and misbehaves where a hook tells it to. It is safe for concurrent use.
type Server struct {
	cfg      Config
	listener net.Listener
	done     chan struct{} // closed by Close
	sessions sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change of what follows
	hooks    map[Phase]Hook
	conns    map[net.Conn]struct{}
	accepted int
	peak     int
	reached  map[Phase]int
	messages []*Message
	kept     int // of messages
	closed   bool
}

// New returns a Server without a listener, for ServeConn.
func New(cfg Config) *Server {
	if cfg.Hostname == "" {
		cfg.Hostname = "fake.test"
	}
	if cfg.Extensions == nil {
		cfg.Extensions = []string{"PIPELINING", "SIZE 0", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}
	}
	return &Server{
		cfg:     cfg,
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		hooks:   maps.Clone(orEmpty(cfg.Hooks)),
		conns:   map[net.Conn]struct{}{},
		reached: map[Phase]int{},
	}
}

func orEmpty(hooks map[Phase]Hook) map[Phase]Hook {
	if hooks == nil {
		return map[Phase]Hook{}
	}
	return hooks
}

// Start returns a Server that listens until the end of the test.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	s := New(cfg)
	addr := cmp.Or(cfg.Addr, "127.0.0.1:0")
	var l net.Listener
	var err error
	if host, chooses := strings.CutSuffix(addr, ":0"); chooses {
		l, err = serve.Listen(host)
	} else {
		l, err = net.Listen("tcp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
		_ = l.Close()
		t.Fatalf("smtptest listens on loopback only, not on %s", addr)
	}
	s.listener = l
	s.sessions.Go(s.acceptAll)
	t.Cleanup(s.Close)
	return s
}

func (s *Server) acceptAll() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		go s.ServeConn(conn)
	}
}

// ServeConn serves one connection to its end and closes it.
func (s *Server) ServeConn(nc net.Conn) {
	number, ok := s.enter(nc)
	if !ok {
		_ = nc.Close()
		return
	}
	defer s.leave(nc)
	newSession(s, nc, number).serve()
}

func (s *Server) enter(nc net.Conn) (number int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, false
	}
	s.sessions.Add(1)
	s.conns[nc] = struct{}{}
	s.accepted++
	s.peak = max(s.peak, len(s.conns))
	s.signal()
	return s.accepted, true
}

func (s *Server) leave(nc net.Conn) {
	defer s.sessions.Done()
	_ = nc.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, nc)
	s.signal()
}

// Close ends the listener and all sessions, also those that stall, and waits for
// them.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	for nc := range s.conns {
		_ = nc.Close()
	}
	s.mu.Unlock()
	if s.listener != nil {
		_ = s.listener.Close()
	}
	s.sessions.Wait()
}

// On sets what happens at a phase from now on; a nil hook is normal behaviour.
func (s *Server) On(phase Phase, hook Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks[phase] = hook
}

// Addr returns the address the server listens on, "127.0.0.1:40123".
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Host returns the host part of Addr.
func (s *Server) Host() string {
	host, _, _ := net.SplitHostPort(s.Addr())
	return host
}

// Port returns the port of Addr.
func (s *Server) Port() int {
	_, port, _ := net.SplitHostPort(s.Addr())
	n, _ := strconv.Atoi(port)
	return n
}

// Messages returns the messages that the server keeps: those whose final dot it
// answered with a complete 2yz reply, or kept by the action Keep.
func (s *Server) Messages() []Message { return s.list(true) }

// Transactions returns every message whose final dot was read, kept or not.
func (s *Server) Transactions() []Message { return s.list(false) }

func (s *Server) list(keptOnly bool) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Message
	for _, m := range s.messages {
		if m.Kept || !keptOnly {
			out = append(out, *m)
		}
	}
	return out
}

// Conns returns how many connections were accepted so far.
func (s *Server) Conns() int { return locked(s, func() int { return s.accepted }) }

// OpenConns returns how many connections are open.
func (s *Server) OpenConns() int { return locked(s, func() int { return len(s.conns) }) }

// PeakConns returns how many connections were open concurrently, at most.
func (s *Server) PeakConns() int { return locked(s, func() int { return s.peak }) }

// Reached returns how often a phase was reached.
func (s *Server) Reached(phase Phase) int { return locked(s, func() int { return s.reached[phase] }) }

func locked(s *Server, f func() int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// patience is how long a Wait method waits before it fails the test.
const patience = 3 * time.Minute

// WaitMessages waits until the server keeps n messages or more, and returns them.
func (s *Server) WaitMessages(t testing.TB, n int) []Message {
	t.Helper()
	s.Wait(t, strconv.Itoa(n)+" messages", func() bool {
		return locked(s, func() int { return s.kept }) >= n
	})
	return s.Messages()
}

// WaitTransactions waits until n final dots were read, whatever became of them.
func (s *Server) WaitTransactions(t testing.TB, n int) []Message {
	t.Helper()
	s.Wait(t, strconv.Itoa(n)+" transactions", func() bool {
		return locked(s, func() int { return len(s.messages) }) >= n
	})
	return s.Transactions()
}

// WaitPhase waits until a phase was reached n times.
func (s *Server) WaitPhase(t testing.TB, phase Phase, n int) {
	t.Helper()
	s.Wait(t, "phase "+string(phase)+" × "+strconv.Itoa(n), func() bool { return s.Reached(phase) >= n })
}

// WaitIdle waits until no connection is open.
func (s *Server) WaitIdle(t testing.TB) {
	t.Helper()
	s.Wait(t, "no connection", func() bool { return s.OpenConns() == 0 })
}

// Wait waits until cond holds; it is asked again at every change of the server's
// state. what names it when the wait fails.
func (s *Server) Wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("waited for %s, saw %d messages kept of %d, %d connections (%d open), phases %v", what,
				len(s.Messages()), len(s.Transactions()), s.Conns(), s.OpenConns(), s.phases())
		}
	}
}

func (s *Server) phases() map[Phase]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.reached)
}

// signal wakes all waits; the caller holds mu.
func (s *Server) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// reach counts a phase and returns its hook.
func (s *Server) reach(phase Phase) Hook {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached[phase]++
	s.signal()
	return s.hooks[phase]
}

// keep counts a message as kept, once; the caller holds mu.
func (s *Server) keep(m *Message) {
	if !m.Kept {
		m.Kept = true
		s.kept++
	}
}

// record adds or changes a message.
func (s *Server) record(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.signal()
}
