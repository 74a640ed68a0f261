package submission

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/await"
	"postern/relay/maillog"
	"postern/relay/smtp"
)

// Server is the listeners and their sessions.
type Server struct {
	cfg       Config
	settings  atomic.Pointer[settings]
	log       *slog.Logger
	mail      *maillog.Logger
	listeners []*listener
	spool     *spool
	peers     *peers
	logins    *logins
	counts    counters
	spent     spent

	closing  context.Context // ends when Shutdown begins: no listener is accepted from
	close    context.CancelFunc
	draining context.Context // ends next, when every accepted connection is a session
	drain    context.CancelFunc
	cutting  context.Context // ends when Shutdown has no more patience
	cut      context.CancelFunc

	mu       sync.Mutex
	sessions map[*session]struct{}
	loops    sync.WaitGroup // accept loops
	running  sync.WaitGroup // sessions
}

// listener is a Listener with what the server adds to it.
type listener struct {
	Listener
	tls      *tls.Config
	settings atomic.Pointer[listenerSettings]
}

// New makes a Server. Connections are taken once Serve is called.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, sessions: make(map[*session]struct{})}
	limits := cfg.Limits.withDefaults()
	s.settings.Store(&settings{limits: limits, hideClient: cfg.HideClient})
	if s.log = cfg.System; s.log == nil {
		s.log = slog.Default()
	}
	if s.mail = cfg.Log; s.mail == nil {
		s.mail = maillog.New(nil)
	}
	s.spool = newSpool(limits, cfg.TempDir)
	s.peers = newPeers(limits.Connections, limits.ConnectionsPerAddress)
	for _, network := range cfg.Known {
		s.peers.know(network)
	}
	s.closing, s.close = context.WithCancel(context.Background())
	s.draining, s.drain = context.WithCancel(context.Background())
	s.cutting, s.cut = context.WithCancel(context.Background())
	s.logins = newLogins(s)
	permits := make(chan struct{}, limits.Handshakes)
	for _, l := range cfg.Listeners {
		if l.Name == "" {
			l.Name = l.Net.Addr().String()
		}
		open := &listener{Listener: l, tls: limitSigning(serverTLS(cfg.Certificates), permits)}
		open.settings.Store(l.settings())
		s.listeners = append(s.listeners, open)
	}
	return s, nil
}

// Serve takes connections on all listeners until Shutdown, and then returns nil. It is called
// once. Trouble of a listener is never fatal: Serve waits until it is over.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.closing.Err() != nil {
		s.mu.Unlock()
		return nil
	}
	for _, l := range s.listeners {
		s.loops.Go(func() { s.cfg.Guard.Keep(s.closing, "submission: accepting", func() { s.accept(l) }) })
	}
	s.running.Go(func() { s.cfg.Guard.Keep(s.draining, "submission: want of room", s.stressLoop) })
	s.mu.Unlock()
	s.loops.Wait()
	return nil
}

// Shutdown closes the listeners and tells idle sessions 421 4.3.2. A transaction
// that is under way may end until ctx does; then its reads are cut. It returns
// when every goroutine of the server has ended: only a commit that has begun,
// which the queue and Limits.Commit bound, can make that later than ctx. The error
// is ctx's when sessions had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.close()
	s.mu.Unlock()
	for _, l := range s.listeners {
		_ = l.Net.Close() // a listener has nothing to lose
	}
	s.loops.Wait() // accepted connections are sessions by now, and get 421
	s.mu.Lock()
	s.drain()
	for x := range s.sessions {
		x.wire.interrupt(false)
	}
	s.mu.Unlock()

	err := await.All(ctx, s.running.Wait)
	s.cut()
	if err == nil {
		s.logins.running.Wait()
		return nil
	}
	s.mu.Lock()
	for x := range s.sessions {
		x.wire.interrupt(true)
	}
	s.mu.Unlock()
	s.running.Wait()
	s.logins.running.Wait()
	return err
}

// open begins a session in a goroutine of its own.
func (s *Server) open(a arrival) {
	x := newSession(s, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[x] = struct{}{}
	s.running.Go(func() {
		defer s.closed(x)
		x.run()
	})
}

func (s *Server) closed(x *session) {
	s.peers.leave(x.counted)
	s.logins.leave(x)
	if x.release != nil {
		x.release()
	}
	s.mu.Lock()
	delete(s.sessions, x)
	s.mu.Unlock()
}

// secure runs the server's side of a TLS handshake. The connection is closed on
// failure (RFC 3207 section 4.1 leaves no way back to a clear session).
func (s *Server) secure(l *listener, conn net.Conn, patience time.Duration) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer context.AfterFunc(s.draining, func() { time.AfterFunc(handshakeGrace, cancel) })()
	secured := tls.Server(conn, l.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// handshakeGrace is how long a shutdown waits for a handshake under way, so that the client
// gets 421 rather than a TLS error.
const handshakeGrace = time.Second

// Replies that belong to the connection and not to a command.
var (
	replyShutdown = smtp.Temporary(421, 3, 2, "Service is shutting down")
	replyRevoked  = smtp.Temporary(421, 7, 0, "Your access has been withdrawn, closing connection")
	replyTimeout  = smtp.Temporary(421, 4, 2, "Timeout, closing connection")
	replyBusy     = smtp.Temporary(421, 3, 2, "Too busy, closing connection, try again later")
	replyTooMany  = smtp.Temporary(421, 7, 0, "Too many connections, try again later")
	replyFault    = smtp.Temporary(421, 3, 0, "Internal error, try again later")
)
