package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/internal/serve"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

func TestDelivers(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "a@one.test", "b@two.test")
	d.Message.EnvID, d.Message.Ret = "env-1", smtp.ReturnHeaders
	d.Recipients[1].Notify = smtp.NotifySuccess
	d.Recipients[1].ORcptType, d.Recipients[1].ORcpt = "rfc822", "b@two.test"
	if !e.Reserve(1, d.Body.Size()) {
		t.Fatal("no room for the first message")
	}
	e.Take(d)
	q.waitEnded(t, 2)

	got := server.WaitMessages(t, 1)[0]
	if diff := cmp.Diff([]string{"a@one.test", "b@two.test"}, got.To()); diff != "" {
		t.Errorf("recipients: %s", diff)
	}
	if got.From() != "sender@sender.test" || string(got.Data) != text {
		t.Errorf("from %s, body %q", got.From(), got.Data)
	}
	for n := range 2 {
		o := q.outcome(t, d, n)
		want := queue.Outcome{
			Message: d.Message.ID, N: n, Recipient: d.Recipients[n].Address, Epoch: 7,
			Result: queue.Delivered, Reply: o.Reply, RemoteMTA: server.Host(),
			RemoteIP: netip.MustParseAddrPort(server.Addr()), Upstream: "sink",
			StartedAt: o.StartedAt, At: o.At, DSNPassed: true,
		}
		if diff := cmp.Diff(want, o, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("outcome of %d: %s", n, diff)
		}
		if !o.Reply.IsPositive() || o.At.Before(o.StartedAt) {
			t.Errorf("reply %v, from %v to %v", o.Reply, o.StartedAt, o.At)
		}
	}
	stop(t, e)
	dropped(t, d)
}

// TestClaims has the same come out of the queue.
func TestClaims(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	for i := range 3 {
		d := message(t, fmt.Sprintf("r%d@one.test", i))
		q.offer(d)
		q.waitEnded(t, i+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
			t.Fatalf("outcome %+v", o)
		}
	}
}

// countOpen counts the connections that e has open, now and at most. The server cannot say
// it: it learns of a close some time later.
func countOpen(e *Engine) (open, peak *atomic.Int64) {
	open, peak = new(atomic.Int64), new(atomic.Int64)
	dial := e.dialer.Dial
	e.dialer.Dial = func(ctx context.Context, to connect.Target) (net.Conn, error) {
		conn, err := dial(ctx, to)
		if err != nil {
			return nil, err
		}
		n := open.Add(1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		return &counted{TCPConn: conn.(*net.TCPConn), closed: sync.OnceFunc(func() { open.Add(-1) })}, nil
	}
	return open, peak
}

// counted is a connection that says when it is closed.
type counted struct {
	*net.TCPConn
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.TCPConn.Close()
}

func TestReuse(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	up := upstreamAt(server)
	up.MaxConnections = 3
	e := newEngine(q, Config{Routes: routes{def: up}, PerConnection: 100})
	_, peak := countOpen(e)
	e.Start()
	t.Cleanup(func() { stop(t, e) })
	const n = 250
	for range n {
		e.Take(message(t, "a@one.test"))
	}
	q.waitEnded(t, n)
	if got := len(server.WaitMessages(t, n)); got != n {
		t.Errorf("%d messages, want %d", got, n)
	}
	if peak.Load() > 3 {
		t.Errorf("%d connections at a time, 3 are allowed", peak.Load())
	}
	if conns := server.Conns(); conns > 6 {
		t.Errorf("%d connections for %d messages", conns, n)
	}
	for _, m := range server.Messages() {
		if m.Conn > 6 {
			t.Fatalf("message over connection %d", m.Conn)
		}
	}
}

func TestPerConnection(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	up := upstreamAt(server)
	up.MaxConnections = 1
	e := startEngine(t, q, Config{Routes: routes{def: up}, PerConnection: 4})
	for range 10 {
		e.Take(message(t, "a@one.test"))
	}
	q.waitEnded(t, 10)
	if conns := server.Conns(); conns != 3 {
		t.Errorf("%d connections for 10 messages of 4 each, want 3", conns)
	}
	if quits := server.Reached(smtptest.PhaseQuit); quits < 2 {
		t.Errorf("%d QUITs", quits)
	}
}

// TestIdleClosed has the server end the connection between two messages, in the
// ways in which that is done: the second message must go out immediately over another.
func TestIdleClosed(t *testing.T) {
	t.Parallel()
	after := map[string]smtptest.Action{
		"closed":          smtptest.Then(smtptest.Normal(), smtptest.Close()),
		"reset":           smtptest.Then(smtptest.Normal(), smtptest.Reset()),
		"421 and closed":  smtptest.Then(smtptest.Normal(), smtptest.Reply("421 4.4.2 idle too long"), smtptest.Close()),
		"421 but no more": smtptest.Then(smtptest.Normal(), smtptest.Reply("421 4.4.2 idle too long")),
	}
	for name, action := range after {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Once(action)}})
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
			first, second := message(t, "a@one.test"), message(t, "b@one.test")
			e.Take(first)
			q.waitEnded(t, 1)
			e.Take(second)
			q.waitEnded(t, 2)
			for _, d := range []*queue.Delivery{first, second} {
				if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
					t.Errorf("outcome %+v", o)
				}
			}
			if n := len(server.Messages()); n != 2 {
				t.Errorf("%d messages arrived", n)
			}
		})
	}
}

// dispatch splits the one delivery of the intake.
func dispatch(e *Engine) {
	list, _ := e.intake.take(nil)
	e.dispatch(list[0])
}

// TestSlowDestination has one upstream that never answers MAIL: another's mail goes
// out meanwhile, what is too much for the slow one is handed back, and the engine
// ends all the same.
func TestSlowDestination(t *testing.T) {
	t.Parallel()
	slow := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseMail: smtptest.Always(smtptest.Stall())}})
	fast := smtptest.Start(t, smtptest.Config{})
	slowUp, fastUp := upstreamAt(slow), upstreamAt(fast)
	slowUp.Name, slowUp.MaxConnections = "slow", 2
	q := newFakeQueue()
	e := startEngine(t, q, Config{
		Routes:   routes{def: fastUp, to: map[string]*upstream.Account{"slow.test": slowUp}},
		Messages: 100,
	})
	var stuck []*queue.Delivery
	for e.turnedAway.Load() < 4 { // 2 under way, about 90 waiting, some too many
		d := message(t, "a@slow.test")
		d.Message.UserID = int64(len(stuck)) // none of them is stopped by the share of one user
		stuck = append(stuck, d)
		e.Take(d)
		for e.Stats().Upstream.Waiting+2+int(e.turnedAway.Load()) < len(stuck) {
			runtime.Gosched() // until it is dispatched
		}
		if len(stuck) == 2 {
			slow.WaitPhase(t, smtptest.PhaseMail, 2)
		}
	}
	if e.Reserve(1, 1) {
		t.Error("mail is taken that would be turned away")
	}
	away := len(q.releases())
	if s := e.Stats(); s.Upstream.Connections != 2 || s.Upstream.Waiting < 80 || s.Upstream.Waiting > 95 || s.MX != (Load{}) || s.Memory <= 0 || s.Memory > s.MemoryLimit {
		t.Errorf("stats %+v", s)
	}
	for i := range 50 {
		d := message(t, "b@fast.test")
		e.Take(d)
		q.waitEnded(t, away+1+i)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
			t.Fatalf("outcome %+v", o)
		}
	}
	for key, waits := range q.releases() {
		if len(waits) != 1 || waits[0] != turnedAwayWait {
			t.Errorf("%v was released with waits %v", key, waits)
		}
	}
	stop(t, e)
	for _, d := range stuck {
		dropped(t, d)
		if n := len(q.releases()[rowKey{d.Message.ID, 0}]); n != 1 {
			t.Errorf("a message that was not begun was released %d times", n)
		}
	}
}

// TestUnreachable has an upstream that refuses connections: its waiting mail is
// deferred by one failure, not by one for each message.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	port, err := serve.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	q := newFakeQueue()
	up := &upstream.Account{Name: "gone", Host: "127.0.0.1", Port: port, TLS: upstream.TLSNone, MaxConnections: 2}
	e := startEngine(t, q, Config{Routes: routes{def: up}, Backoff: []time.Duration{time.Hour}})
	var all []*queue.Delivery
	for range 40 {
		d := message(t, "a@one.test")
		all = append(all, d)
		e.Take(d)
	}
	q.waitEnded(t, 40)
	if s := e.Stats(); s.Upstream.Suspended != 1 {
		t.Errorf("stats %+v, want one destination that is left alone", s)
	}
	attempts := 0
	for _, d := range all {
		o := q.outcome(t, d, 0)
		if o.Result != queue.Deferred || o.Unknown || o.RetryIn < 50*time.Minute {
			t.Fatalf("outcome %+v, want deferred until the destination is tried again", o)
		}
		if !o.NotAnAttempt { // it came before the destination was left alone
			attempts++
		}
		if want := "connection refused"; o.Reply.Code != 451 || o.Reply.Enhanced.Subject != 4 || !strings.Contains(o.Reply.Text, want) {
			t.Fatalf("reply %v, want a 451 4.4.1 that says %q", o.Reply, want)
		}
	}
	if attempts == 0 {
		t.Error("no attempt is counted")
	}
}

// TestMended has an account mended while its destination is left alone: the next
// message is tried immediately.
func TestMended(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Once(smtptest.Reply("554 go away"))}})
	q := newFakeQueue()
	r := &changing{}
	r.up.Store(upstreamAt(server))
	e := startEngine(t, q, Config{Routes: r, Backoff: []time.Duration{time.Hour}})
	first, second, third := message(t, "a@one.test"), message(t, "a@one.test"), message(t, "a@one.test")
	e.Take(first)
	q.waitEnded(t, 1)
	if o := q.outcome(t, first, 0); o.Result != queue.Deferred || o.Reply.Code != 554 {
		t.Fatalf("a 554 greeting: %+v, want deferred", o)
	}
	e.Take(second)
	q.waitEnded(t, 2)
	if o := q.outcome(t, second, 0); o.Result != queue.Deferred || server.Conns() != 1 {
		t.Fatalf("left alone: %+v with %d connections", o, server.Conns())
	}
	mended := *r.up.Load()
	mended.MaxConnections = 7
	r.up.Store(&mended)
	e.Take(third)
	q.waitEnded(t, 3)
	if o := q.outcome(t, third, 0); o.Result != queue.Delivered {
		t.Fatalf("mended: %+v", o)
	}
}

// TestRefusedConnections has a server that takes two connections at a time and greets
// more with 421: everything is delivered over the two.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseBanner, func(s smtptest.Session) smtptest.Action {
		if s.Conn > 2 {
			return smtptest.Then(smtptest.Reply("421 4.7.0 too many connections"), smtptest.Close())
		}
		return smtptest.Action{}
	})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}, Schedule: []time.Duration{time.Millisecond}})
	e.Take(message(t, "a@one.test"))
	server.WaitMessages(t, 1)
	for range 100 {
		e.Take(message(t, "a@one.test"))
	}
	q.waitEnded(t, 101)
	if n := len(server.Messages()); n != 101 {
		t.Errorf("%d of 101 messages delivered", n)
	}
}

func TestSplitsRecipients(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	e.Rebound(Bounds{PerTransaction: 10})
	var rcpts []string
	for i := range 25 {
		rcpts = append(rcpts, fmt.Sprintf("r%d@one.test", i))
	}
	d := message(t, rcpts...)
	e.Take(d)
	q.waitEnded(t, 25)
	seen := map[string]int{}
	for _, m := range server.WaitMessages(t, 3) {
		if len(m.To()) > 10 {
			t.Errorf("%d recipients in one transaction", len(m.To()))
		}
		for _, to := range m.To() {
			seen[to]++
		}
	}
	for _, r := range rcpts {
		if seen[r] != 1 {
			t.Errorf("%s got %d copies", r, seen[r])
		}
	}
	stop(t, e)
	dropped(t, d)
}

// TestP07TooManyRecipients has a server that takes two recipients in a transaction.
func TestP07TooManyRecipients(t *testing.T) {
	t.Parallel()
	for _, refusal := range []string{
		"452 4.5.3 too many recipients", "452 too many recipients", "552 5.5.3 too many recipients", "552 enough", "550 5.5.3 no more",
		"554 5.5.3 no more", "450 4.5.3 no more", "451 4.5.3 no more", "550 Too many recipients",
	} {
		t.Run(refusal, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{})
			server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
				if s.Rcpt >= 2 {
					return smtptest.Reply(refusal)
				}
				return smtptest.Action{}
			})
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
			d := message(t, "r0@one.test", "r1@one.test", "r2@one.test", "r3@one.test", "r4@one.test")
			e.Take(d)
			q.waitEnded(t, 5)
			for n := range d.Recipients {
				if o := q.outcome(t, d, n); o.Result != queue.Delivered {
					t.Errorf("recipient %d: %+v", n, o)
				}
			}
			if n := len(server.Messages()); n != 3 {
				t.Errorf("%d transactions, want 3", n)
			}
			if n := server.Conns(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

// TestP07FullMailbox: by a bare 552 a server may mean a mailbox; that one fails in the end,
// and the others are not held up by it.
func TestP07FullMailbox(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		if strings.Contains(s.Command, "full") {
			return smtptest.Reply("552 mailbox full")
		}
		return smtptest.Action{}
	})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "full0@one.test", "r1@one.test", "full2@one.test", "full3@one.test", "r4@one.test")
	e.Take(d)
	q.waitEnded(t, 5)
	for n, r := range d.Recipients {
		want := queue.Delivered
		if strings.HasPrefix(r.Address.Local, "full") {
			want = queue.Failed
		}
		if o := q.outcome(t, d, n); o.Result != want {
			t.Errorf("%s: %s %v, want %s", r.Address, o.Result, o.Reply, want)
		}
	}
	if n := server.Reached(smtptest.PhaseMail); n != 2 {
		t.Errorf("%d transactions, want 2", n)
	}
}

// TestGate has the epoch lost before the dot: the connection ends without one.
func TestGate(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	q.gate = func(d *queue.Delivery, ns []int) error {
		if len(ns) != 2 || ns[0] != 0 || ns[1] != 1 {
			return fmt.Errorf("asked for %v", ns)
		}
		return errors.New("the epoch is over")
	}
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "a@one.test", "b@one.test")
	e.Take(d)
	q.waitEnded(t, 2)
	server.WaitIdle(t)
	if n := len(server.Transactions()); n != 0 {
		t.Errorf("%d final dots were sent", n)
	}
	for n := range 2 {
		if waits := q.releases()[rowKey{d.Message.ID, n}]; len(waits) != 1 {
			t.Errorf("recipient %d: released %v, want once", n, waits)
		}
	}
	stop(t, e)
	dropped(t, d)
}

// TestUnreadable has a stored text that cannot be read, or is shorter than it was:
// nothing may be delivered, and nobody but the relay is to blame.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	short := message(t, "a@one.test")
	short.Body.(*fakeBody).size += 10
	failing := message(t, "a@one.test")
	failing.Body.(*fakeBody).ReaderAt = failingReader{}
	good := message(t, "a@one.test")
	for i, d := range []*queue.Delivery{short, failing, good} {
		e.Take(d)
		q.waitEnded(t, i+1)
	}
	for _, d := range []*queue.Delivery{short, failing} {
		if waits := q.releases()[rowKey{d.Message.ID, 0}]; len(waits) != 1 || waits[0] != bodyWait {
			t.Errorf("released %v, want once", waits)
		}
	}
	if o := q.outcome(t, good, 0); o.Result != queue.Delivered {
		t.Errorf("outcome %+v", o)
	}
	if n := len(server.Transactions()); n != 1 {
		t.Errorf("%d messages were ended by a dot, want 1", n)
	}
}

// TestPanic has a body that panics: its message is deferred and the engine goes on.
func TestPanic(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: upstreamAt(server)}})
	e.Start()
	bad, good := message(t, "a@one.test"), message(t, "a@one.test")
	bad.Body.(*fakeBody).ReaderAt = panickingReader{}
	e.Take(bad)
	q.waitEnded(t, 1)
	e.Take(good)
	q.waitEnded(t, 2)
	if o := q.outcome(t, bad, 0); o.Result != queue.Deferred || o.RetryIn == 0 {
		t.Errorf("outcome %+v, want deferred", o)
	}
	if o := q.outcome(t, good, 0); o.Result != queue.Delivered {
		t.Errorf("outcome %+v", o)
	}
	if n := e.panics.Swap(0); n != 1 {
		t.Errorf("%d panics counted", n)
	}
	stop(t, e)
	dropped(t, bad)
	dropped(t, good)
}

// TestPanicWhileConnecting: a defect that a host provokes before there is a conversation
// suspends its destination. Otherwise it would be tried again without a pause.
func TestPanicWhileConnecting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true})
		e.dialer.Dial = func(context.Context, connect.Target) (net.Conn, error) {
			if e.panics.Load() > 100 {
				return nil, errors.New("enough")
			}
			panic("a test's")
		}
		e.Start()
		d := message(t, "a@one.test")
		e.Take(d)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.WaitsFor == "" || o.Reply.Text != errDefect.Error() {
			t.Errorf("outcome %+v", o)
		}
		if n := e.panics.Swap(0); n != 1 {
			t.Errorf("%d panics", n)
		}
		stop(t, e)
		dropped(t, d)
	})
}

// TestPanicAfterDot: what a panic interrupts behind the final dot may have been delivered.
func TestPanicAfterDot(t *testing.T) {
	t.Parallel()
	for phase, unknown := range map[smtptest.Phase]bool{smtptest.PhaseDot: true, smtptest.PhaseData: false} {
		server := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{phase: smtptest.Always(smtptest.Close())}})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{}, Log: slog.New(panickingHandler{slog.DiscardHandler})})
		ours, theirs := net.Pipe()
		go server.ServeConn(theirs)
		w := newWorker(&destination{e: e, window: windowAt(1), via: route.MX, broken: troubleLimit, apart: apart{user: 1, rows: 1}})
		w.conn = &conn{Conn: &connect.Conn{Client: smtp.NewClient(ours, smtp.ClientConfig{Hello: "relay.test"})}}
		if err := w.conn.Client.Greet(t.Context()); err != nil {
			t.Fatal(err)
		}
		d := message(t, "a@one.test")
		w.job = &job{parcel: &parcel{Delivery: d, size: d.Body.Size()}, rcpts: d.Recipients}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				w.abandon()
			}()
			w.attempt(w.job) // says that the destination is suspended
		}()
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.Unknown != unknown {
			t.Errorf("at %s: outcome %+v", phase, o)
		}
		dropped(t, d)
	}
}

type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("a test's") }

func TestNoRoute(t *testing.T) {
	t.Parallel()
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{err: route.ErrNoRoute}})
	d := message(t, "a@one.test", "b@two.test")
	e.Take(d)
	q.waitEnded(t, 2)
	for n := range 2 {
		if o := q.outcome(t, d, n); o.Result != queue.Deferred || !o.NotAnAttempt || o.RetryIn != routeWait {
			t.Errorf("outcome %+v, want deferred without an attempt", o)
		}
	}
	stop(t, e)
	dropped(t, d)
}

// An upstream whose password this node does not open: it is not the mail's fault.
func TestUnusableUpstream(t *testing.T) {
	t.Parallel()
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{err: &upstream.UnusableError{Upstream: "out", Err: upstream.ErrNoKey}}})
	d := message(t, "a@one.test")
	e.Take(d)
	q.waitEnded(t, 1)
	if o := q.outcome(t, d, 0); !o.NotAnAttempt || o.Result != queue.Deferred || o.Scope != "account" || o.WaitsFor != "upstream out" || o.Reply.String() != "451 4.3.2 upstream out cannot be used by this server" {
		t.Errorf("%+v", o)
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseMail: smtptest.Always(smtptest.Stall())}})
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: upstreamAt(server)}, Messages: 5, Memory: 3 * int64(len(text)), InMemory: 1000})
	// It starts when all has been asked: its upstream has no room either, and that has a pause.
	for range 2 {
		if !e.Reserve(1, int64(len(text))) {
			t.Fatal("no room where there is some")
		}
		e.Take(message(t, "a@one.test"))
	}
	if e.Reserve(1, 1) {
		t.Error("memory is used up and there is room")
	}
	if !e.Reserve(1, 2000) {
		t.Error("a message that is not in memory has no room")
	}
	e.Take(message(t, "a@one.test"))
	if e.Reserve(1, 2000) {
		t.Error("room for more messages than one user may have")
	}
	if !e.Reserve(2, 2000) {
		t.Error("no room for another user")
	}
	e.Start()
	stop(t, e)
	if e.Reserve(1, 1) {
		t.Error("room after Shutdown")
	}
	late := message(t, "a@one.test")
	e.Take(late) // committed just then: it must not be lost
	if len(q.releases()[rowKey{late.Message.ID, 0}]) != 1 {
		t.Error("what came after Shutdown was not released")
	}
	dropped(t, late)
}

// TestReserveCountsRecipients: a few messages with many recipients must not fill the
// memory that their bodies leave free.
func TestReserveCountsRecipients(t *testing.T) {
	t.Parallel()
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprintf("r%d@one.test", i)
	}
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseMail: smtptest.Always(smtptest.Stall())}})
	one, two := upstreamAt(server), upstreamAt(server)
	two.Name = "two"
	tests := map[string]struct {
		rcpts  []string
		memory int64
	}{
		"recipients": {many, 100 * recipientWeight},
		"ways":       {[]string{"a@one.test", "b@two.test"}, jobWeight},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(newFakeQueue(), Config{
				Routes: routes{def: one, to: map[string]*upstream.Account{"two.test": two}}, Memory: test.memory,
			})
			e.Take(message(t, "a@one.test"))
			dispatch(e)
			if !e.Reserve(1, 1) {
				t.Fatal("no room behind one message with one recipient")
			}
			e.Take(message(t, test.rcpts...))
			dispatch(e)
			if e.Reserve(1, 1) {
				t.Errorf("room behind %d octets of %d", e.Stats().Memory, test.memory)
			}
			stop(t, e)
		})
	}
}

// TestShutdownFinishes has a message whose text is on its way at Shutdown: it is
// finished and settled.
func TestShutdownFinishes(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
		smtptest.PhaseDot: smtptest.Always(smtptest.Then(smtptest.Do(func() { <-release }), smtptest.Normal())),
	}})
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: upstreamAt(server)}})
	e.Start()
	d := message(t, "a@one.test")
	e.Take(d)
	server.WaitPhase(t, smtptest.PhaseDot, 1)
	done := make(chan error)
	go func() { done <- e.Shutdown(context.Background()) }()
	<-e.work.Done()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
		t.Errorf("outcome %+v", o)
	}
	dropped(t, d)
}

// TestShutdownCuts has a server that never answers the final dot.
func TestShutdownCuts(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Stall())}})
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: upstreamAt(server)}})
	e.Start()
	d := message(t, "a@one.test")
	e.Take(d)
	server.WaitPhase(t, smtptest.PhaseDot, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Shutdown(ctx); !errors.Is(err, ErrCut) {
		t.Errorf("shutdown: %v, want ErrCut", err)
	}
	if o := q.outcome(t, d, 0); o.Result != queue.Deferred || !o.Unknown {
		t.Errorf("outcome %+v, want deferred and unknown", o)
	}
	dropped(t, d)
}

// changing is a resolver whose upstream a test changes.
type changing struct {
	up     atomic.Pointer[upstream.Account]
	paused atomic.Bool // as Named has it
}

func (c *changing) Named(_ context.Context, name string) (route.Way, error) {
	w := route.Way{Name: name, Upstream: c.up.Load()}
	if c.paused.Load() {
		w.Err = &upstream.PausedError{Upstream: name}
	}
	return w, nil
}

func (c *changing) Resolve(context.Context, int64, smtp.Address, smtp.Address) (route.Decision, error) {
	return via(c.up.Load()), nil
}

// TestLineFollowsSettings: messages wait in the line of an upstream that hangs, and none is new.
// After its settings are changed they go by these, over no connection with the former ones.
func TestLineFollowsSettings(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	before := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
		smtptest.PhaseDot: smtptest.Always(smtptest.Then(smtptest.Do(func() { <-release }), smtptest.Normal())),
	}})
	after := smtptest.Start(t, smtptest.Config{})
	q, c := newFakeQueue(), &changing{}
	up := upstreamAt(before)
	up.MaxConnections = 1
	c.up.Store(up)
	e := startEngine(t, q, Config{Routes: c})
	for range 5 {
		e.Take(message(t, "a@one.test"))
	}
	before.WaitPhase(t, smtptest.PhaseDot, 1)
	changed := upstreamAt(after)
	changed.MaxConnections = 2 // the former connection is in use
	c.up.Store(changed)
	q.waitEnded(t, 4)
	close(release)
	q.waitEnded(t, 5)
	if n, m := len(before.Messages()), len(after.Messages()); n != 1 || m != 4 {
		t.Errorf("%d messages went by the former settings, %d by the new ones", n, m)
	}
}

// TestLineOfPausedUpstream: what waits in the line of an upstream goes back to the queue when it is
// paused; the message in hand is finished.
func TestLineOfPausedUpstream(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
		smtptest.PhaseDot: smtptest.Always(smtptest.Then(smtptest.Do(func() { <-release }), smtptest.Normal())),
	}})
	q, c := newFakeQueue(), &changing{}
	up := upstreamAt(server)
	up.MaxConnections = 1
	c.up.Store(up)
	e := startEngine(t, q, Config{Routes: c})
	for range 5 {
		e.Take(message(t, "a@one.test"))
	}
	server.WaitPhase(t, smtptest.PhaseDot, 1)
	c.paused.Store(true)
	q.wait(t, "the line to be released", func() bool { return len(q.released) == 4 })
	close(release)
	q.waitEnded(t, 5)
	if n := len(server.Messages()); n != 1 {
		t.Errorf("%d messages went to a paused upstream, want the one in hand", n)
	}
}

// TestConnectingFollowsSettings: the upstream does not greet. Its changed settings are used without
// waiting for that.
func TestConnectingFollowsSettings(t *testing.T) {
	t.Parallel()
	mute := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Always(smtptest.Stall())}})
	after := smtptest.Start(t, smtptest.Config{})
	q, c := newFakeQueue(), &changing{}
	c.up.Store(upstreamAt(mute))
	e := startEngine(t, q, Config{Routes: c})
	for range 3 {
		e.Take(message(t, "a@one.test"))
	}
	mute.WaitPhase(t, smtptest.PhaseBanner, 3)
	c.up.Store(upstreamAt(after))
	q.waitEnded(t, 3)
	for _, o := range q.results() {
		if o.Result != queue.Delivered {
			t.Errorf("%+v", o)
		}
	}
}

// TestAfreshFollowsSettings: as before, for a message that met a kept connection which had ended.
func TestAfreshFollowsSettings(t *testing.T) {
	t.Parallel()
	before, after := smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})
	q, c := newFakeQueue(), &changing{}
	up := upstreamAt(before)
	up.MaxConnections = 1
	c.up.Store(up)
	e := startEngine(t, q, Config{Routes: c})
	e.Take(message(t, "a@one.test"))
	q.waitEnded(t, 1)
	before.On(smtptest.PhaseMail, smtptest.Always(smtptest.Close()))
	before.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Stall()))
	e.Take(message(t, "b@one.test"))
	before.WaitPhase(t, smtptest.PhaseBanner, 2)
	c.up.Store(upstreamAt(after))
	q.waitEnded(t, 2)
	for _, o := range q.results() {
		if o.Result != queue.Delivered {
			t.Errorf("%+v", o)
		}
	}
}

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("disk on fire") }

type panickingReader struct{}

func (panickingReader) ReadAt([]byte, int64) (int, error) { panic("a test's") }

// TestOneConnectionForOneMessage: whoever has just connected takes the message that
// waits, so nobody else connects for it.
func TestOneConnectionForOneMessage(t *testing.T) {
	t.Parallel()
	e := startEngine(t, newFakeQueue(), Config{})
	defer stop(t, e)
	d := &destination{e: e, window: windowAt(5), workers: 1}
	d.waiting.push(&job{})
	w := newWorker(d)
	defer w.cancel(nil)
	d.connected(w)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.workers != 1 || d.live != 1 {
		t.Errorf("%d workers, %d of them connected, want 1 and 1", d.workers, d.live)
	}
}
