package delivery

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/leaktest"
	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long a test waits for what must come.
const patience = 3 * time.Minute

// rowKey names a recipient row.
type rowKey struct {
	id queue.ID
	n  int
}

// fakeQueue records what becomes of each recipient. Claim gives what the test put
// into due.
type fakeQueue struct {
	gate func(d *queue.Delivery, ns []int) error // nil: allowed

	mu        sync.Mutex
	changed   chan struct{}
	outcomes  map[rowKey][]queue.Outcome
	released  map[rowKey][]time.Duration
	due       []*queue.Delivery
	waiting   []*queue.Delivery // that OneDue makes due
	askedFor  []string          // the ways that OneDue was asked for
	requests  []queue.ClaimRequest
	ended     int
	recovered []string
	back      []string
	gated     []string // the ways that Gate was told
	asked     atomic.Uint64
}

func newFakeQueue() *fakeQueue {
	return &fakeQueue{
		changed:  make(chan struct{}),
		outcomes: map[rowKey][]queue.Outcome{},
		released: map[rowKey][]time.Duration{},
	}
}

// signal wakes waiters. mu is held.
func (q *fakeQueue) signal() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *fakeQueue) Wait(ctx context.Context) error {
	for {
		q.mu.Lock()
		changed, due := q.changed, len(q.due)
		q.mu.Unlock()
		if due > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (q *fakeQueue) Asked() uint64 { return q.asked.Load() }

func (q *fakeQueue) Back() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.back
	q.back = nil
	return list
}

func (q *fakeQueue) Claim(_ context.Context, want queue.ClaimRequest) ([]*queue.Delivery, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requests = append(q.requests, want)
	n := min(len(q.due), want.Messages)
	list := q.due[:n]
	q.due = q.due[n:]
	q.signal()
	return list, nil
}

func (q *fakeQueue) Gate(_ context.Context, d *queue.Delivery, ns []int, way string) error {
	q.mu.Lock()
	q.gated = append(q.gated, way)
	q.mu.Unlock()
	if q.gate == nil {
		return nil
	}
	return q.gate(d, ns)
}

func (q *fakeQueue) Settle(outcomes ...queue.Outcome) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, o := range outcomes {
		key := rowKey{o.Message, o.N}
		q.outcomes[key] = append(q.outcomes[key], o)
		q.ended++
	}
	q.signal()
}

func (q *fakeQueue) Release(d *queue.Delivery, ns []int, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range ns {
		key := rowKey{d.Message.ID, n}
		q.released[key] = append(q.released[key], wait)
		q.ended++
	}
	q.signal()
}

// Recovered records the ways.
func (q *fakeQueue) Recovered(way string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.recovered = append(q.recovered, way)
	q.signal()
}

// OneDue gives the last delivery of waiting, if there is one, to the next claim.
func (q *fakeQueue) OneDue(_ context.Context, ways []string) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.askedFor = append(q.askedFor, ways...)
	n := len(q.waiting) - 1
	if n < 0 {
		return false, nil
	}
	q.due, q.waiting = append(q.due, q.waiting[n]), q.waiting[:n]
	q.signal()
	return true, nil
}

// takeRecovered returns the ways of which the engine said that they are back, once.
func (q *fakeQueue) takeRecovered() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.recovered
	q.recovered = nil
	return list
}

// hasEnded reports whether anything has become of the first recipient of d.
func (q *fakeQueue) hasEnded(d *queue.Delivery) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	key := rowKey{d.Message.ID, 0}
	return len(q.outcomes[key])+len(q.released[key]) > 0
}

func (q *fakeQueue) offer(list ...*queue.Delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.due = append(q.due, list...)
	q.signal()
}

// waitEnded waits until n recipients were settled or released.
func (q *fakeQueue) waitEnded(t testing.TB, n int) {
	t.Helper()
	q.wait(t, fmt.Sprintf("%d recipients to end", n), func() bool { return q.ended >= n })
}

// rested waits until way has one open connection, without work. Recipients end before that, so
// the next message would open another connection.
func rested(t testing.TB, e *Engine, way string) *destination {
	t.Helper()
	d := e.known(way)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		idle := len(d.idle) == 1 && d.workers == 1
		d.mu.Unlock()
		if idle {
			return d
		}
		if time.Now().After(end) {
			t.Fatal("no connection is kept, or more than one")
		}
	}
}

// wait waits until cond holds; it is called with mu held.
func (q *fakeQueue) wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		q.mu.Lock()
		changed, ok := q.changed, cond()
		q.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			q.mu.Lock()
			defer q.mu.Unlock()
			t.Fatalf("waited for %s; ended %d, outcomes %v, released %v", what, q.ended, q.outcomes, q.released)
		}
	}
}

// outcome returns the only outcome of a recipient, which was not released.
func (q *fakeQueue) outcome(t testing.TB, d *queue.Delivery, n int) queue.Outcome {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	key := rowKey{d.Message.ID, n}
	if len(q.outcomes[key]) != 1 || len(q.released[key]) != 0 {
		t.Fatalf("recipient %d: outcomes %v, released %v; want one outcome", n, q.outcomes[key], q.released[key])
	}
	return q.outcomes[key][0]
}

// results returns all outcomes.
func (q *fakeQueue) results() (list []queue.Outcome) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, of := range q.outcomes {
		list = append(list, of...)
	}
	return list
}

// releases returns how often each recipient was released.
func (q *fakeQueue) releases() map[rowKey][]time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.released)
}

// fakeBody counts its references.
type fakeBody struct {
	io.ReaderAt
	size int64
	refs atomic.Int32
}

func newBody(text string) *fakeBody {
	b := &fakeBody{ReaderAt: strings.NewReader(text), size: int64(len(text))}
	b.refs.Store(1)
	return b
}

func (b *fakeBody) Size() int64 { return b.size }
func (b *fakeBody) Retain()     { b.refs.Add(1) }
func (b *fakeBody) Drop() {
	if b.refs.Add(-1) < 0 {
		panic("body dropped once too often")
	}
}

const text = "From: a@sender.test\r\nSubject: hello\r\n\r\nthe text\r\n"

// message makes a delivery to some recipients.
func message(t testing.TB, rcpts ...string) *queue.Delivery {
	t.Helper()
	d := &queue.Delivery{
		Message: queue.Message{
			ID: queue.NewID(), UserID: 1, Sender: address(t, "sender@sender.test"), Size: int64(len(text)),
		},
		Body:  newBody(text),
		Epoch: 7,
	}
	for i, r := range rcpts {
		d.Recipients = append(d.Recipients, queue.Recipient{N: i, Address: address(t, r)})
	}
	return d
}

func address(t testing.TB, s string) smtp.Address {
	t.Helper()
	a, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// routes sends domains to upstreams, and everything else to def or, where that is
// nil, to MX.
type routes struct {
	def *upstream.Account
	to  map[string]*upstream.Account
	err error
}

// via is the decision for one way: an upstream or, where it is nil, MX.
func via(up *upstream.Account) route.Decision {
	w := route.Way{Name: route.MX, Upstream: up}
	if up != nil {
		w.Name = up.Name
	}
	return route.Decision{Route: 1, Ways: []route.Way{w}}
}

func (r routes) Resolve(_ context.Context, _ int64, _, rcpt smtp.Address) (route.Decision, error) {
	if r.err != nil {
		return route.Decision{}, r.err
	}
	if up := r.to[rcpt.Domain]; up != nil {
		return via(up), nil
	}
	return via(r.def), nil
}

func (r routes) Named(_ context.Context, name string) (route.Way, error) {
	return route.Way{Name: name, Upstream: r.def}, nil
}

// upstreamAt is an upstream without TLS at a fake server.
func upstreamAt(s *smtptest.Server) *upstream.Account {
	return &upstream.Account{Name: "sink", Host: s.Host(), Port: s.Port(), TLS: upstream.TLSNone, Replies: upstream.Table(upstream.Generic)}
}

// startEngine starts an engine that ends, with everything accounted for, with the
// test.
func startEngine(t testing.TB, q *fakeQueue, cfg Config) *Engine {
	t.Helper()
	e := newEngine(q, cfg)
	e.Start()
	t.Cleanup(func() { stop(t, e) })
	return e
}

func newEngine(q *fakeQueue, cfg Config) *Engine {
	cfg.Queue = q
	if cfg.Connect.Hello == "" {
		cfg.Connect.Hello = "relay.test"
	}
	return New(cfg)
}

func stop(t testing.TB, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if held := e.Stats(); held.Messages != 0 || held.Memory != 0 {
		t.Errorf("after shutdown %d messages with %d octets are still counted", held.Messages, held.Memory)
	}
	if n := e.panics.Load(); n != 0 {
		t.Errorf("%d panics", n)
	}
	for _, d := range e.all() {
		if d.workers != 0 || d.live != 0 || d.waiting.len() != 0 || len(d.idle) != 0 {
			t.Errorf("after shutdown %s %s has %d workers, %d live, %d waiting, %d idle", d.via, d.domain,
				d.workers, d.live, d.waiting.len(), len(d.idle))
		}
	}
	if n, _ := e.slots.Use(); n != 0 {
		t.Errorf("after shutdown %d connections are still counted", n)
	}
}

// dropped checks that nobody holds the body any more.
func dropped(t testing.TB, d *queue.Delivery) {
	t.Helper()
	if n := d.Body.(*fakeBody).refs.Load(); n != 0 {
		t.Errorf("the body of %s has %d references left", d.Message.ID, n)
	}
}
