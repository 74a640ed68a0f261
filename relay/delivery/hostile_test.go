package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/share"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// TestHostileHosts sends random messages to domains and upstreams with several hosts that
// misbehave at random at every point of a conversation, and whose addresses come and go.
// Every recipient of every message ends exactly once, by itself or by Shutdown at a random
// moment; no body is left or let go twice; and no recipient is in a message whose final
// dot was sent twice, whatever was said to it.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newFray(seed).play(t) })
		})
	}
}

// fray is one random run. What servers do is drawn under a lock, since many sessions ask.
type fray struct {
	mu      sync.Mutex
	random  *rand.Rand
	servers []*smtptest.Server
	at      map[string]*smtptest.Server // by address
	dns     *dnstest.Zones
	ups     [2]*upstream.Account
	q       *fakeQueue
	sent    []*queue.Delivery
	rows    int
	panics  int64 // that were provoked
	chance  int   // that a step goes wrong is one in so many
}

func newFray(seed uint64) *fray {
	f := &fray{random: rand.New(rand.NewPCG(seed, 1)), at: map[string]*smtptest.Server{}, dns: &dnstest.Zones{}, q: newFakeQueue()}
	f.chance = []int{2, 4, 12, 40}[seed%4]
	for domain := range 3 {
		for host := range 1 + f.random.IntN(5) {
			name := fmt.Sprintf("mx%d.d%d.test", host, domain)
			f.dns.AddMX(fmt.Sprintf("d%d.test", domain), uint16(f.random.IntN(3)), name+".")
			f.addHost(name)
		}
	}
	for i := range f.ups {
		name := fmt.Sprintf("up%d.test", i)
		f.addHost(name)
		f.ups[i] = &upstream.Account{Name: name, Host: name, Port: 25, TLS: upstream.TLSNone, MaxConnections: 1 + f.random.IntN(4)}
	}
	f.q.gate = func(*queue.Delivery, []int) error {
		switch f.draw(100) {
		case 0, 1, 2:
			return errors.New("the epoch is over")
		case 3:
			f.panicked()
			panic("in the gate")
		}
		return nil
	}
	return f
}

// draw is a random number below n.
func (f *fray) draw(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.IntN(n)
}

func (f *fray) panicked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.panics++
}

// addHost makes a host with one to three addresses, each a server of its own.
func (f *fray) addHost(name string) {
	for range 1 + f.random.IntN(3) {
		extensions := []string{"DSN", "ENHANCEDSTATUSCODES"}
		for _, one := range []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 0"} {
			if f.random.IntN(4) > 0 {
				extensions = append(extensions, one)
			}
		}
		switch f.random.IntN(8) {
		case 0:
			extensions = append(extensions, "SIZE 10")
		case 1, 2:
			extensions = append(extensions, fmt.Sprintf("LIMITS RCPTMAX=%d", 1+f.random.IntN(3)))
		case 3:
			extensions = append(extensions, fmt.Sprintf("LIMITS MAILMAX=%d RCPTMAX=2", 1+f.random.IntN(2)))
		case 4:
			extensions = append(extensions, fmt.Sprintf("LIMITS RCPTDOMAINMAX=%d", 1+f.random.IntN(2)))
		}
		server := smtptest.New(smtptest.Config{Extensions: extensions})
		f.misbehave(server)
		addr := fmt.Sprintf("198.51.100.%d", len(f.servers)+1)
		f.servers = append(f.servers, server)
		f.at[addr] = server
		f.dns.AddHost(name, addr)
	}
}

func (f *fray) misbehave(server *smtptest.Server) {
	for _, phase := range []smtptest.Phase{
		smtptest.PhaseConnect, smtptest.PhaseBanner, smtptest.PhaseHello, smtptest.PhaseMail, smtptest.PhaseRcpt,
		smtptest.PhaseData, smtptest.PhaseBody, smtptest.PhaseDot, smtptest.PhaseReset, smtptest.PhaseQuit,
	} {
		server.On(phase, func(smtptest.Session) smtptest.Action {
			if f.draw(f.chance) > 0 {
				return smtptest.Action{}
			}
			return oddities[f.draw(len(oddities))]
		})
	}
}

// oddities are what a server may do instead of what is right, wherever it is.
var oddities = []smtptest.Action{
	smtptest.Reply("421 4.3.2 closing"), smtptest.Then(smtptest.Reply("421 4.4.2 idle"), smtptest.Close()),
	smtptest.Reply("450 4.2.0 later"), smtptest.Reply("451 4.4.2 timeout"), smtptest.Reply("452 4.5.3 too many recipients"), smtptest.Reply("452 full"),
	smtptest.Reply("521 5.3.2 no mail here"), smtptest.Reply("550 5.1.1 no"), smtptest.Reply("550 5.5.3 enough"), smtptest.Reply("552 too much"),
	smtptest.Then(smtptest.Reply("552 5.3.4 too big"), smtptest.Close()), smtptest.Reply("554 5.7.1 no"), smtptest.Reply("530 5.7.0 who are you"),
	smtptest.Reply("354 go on"), smtptest.Reply("250 2.0.0 ok"), smtptest.Reply("250 2.0.0 one", "250 2.0.0 two"), smtptest.Reply("250-half"),
	smtptest.Reply("999 what"), smtptest.Raw("250 ok\n"), smtptest.Raw("250 ok"), smtptest.Then(smtptest.Raw("250 ok"), smtptest.Close()),
	smtptest.Close(), smtptest.Stall(), smtptest.Then(smtptest.Normal(), smtptest.Close()), smtptest.Then(smtptest.Keep(), smtptest.Close()),
	smtptest.Then(smtptest.Normal(), smtptest.Reply("421 4.3.2 bye"), smtptest.Close()), smtptest.DripNormal(20 * time.Second),
	smtptest.Then(smtptest.Delay(time.Minute), smtptest.Normal()),
}

func (f *fray) Named(context.Context, string) (route.Way, error) { return route.Way{}, nil }

// Resolve sends half of the recipients to upstreams, whose settings change now and then, and
// some of them then to the other upstream, or to MX.
func (f *fray) Resolve(_ context.Context, _ int64, _, rcpt smtp.Address) (route.Decision, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.random.IntN(60) == 0 {
		return route.Decision{}, errors.New("no route")
	}
	var i int
	if _, err := fmt.Sscanf(rcpt.Domain, "up%d.test", &i); err != nil {
		return via(nil), nil
	}
	if f.random.IntN(20) == 0 {
		changed := *f.ups[i]
		changed.MaxConnections = 1 + f.random.IntN(4)
		f.ups[i] = &changed
	}
	d, course := via(f.ups[i]), f.random.IntN(4)
	if course&1 != 0 {
		d.Ways = append(d.Ways, via(f.ups[1-i]).Ways...)
	}
	if course&2 != 0 {
		d.Ways = append(d.Ways, via(nil).Ways...)
	}
	d.Route = int64(1 + course)
	return d, nil
}

func (f *fray) connect(_ context.Context, to connect.Target) (net.Conn, error) {
	switch f.draw(f.chance * 4) {
	case 0, 1:
		return nil, syscall.ECONNREFUSED
	case 2:
		if f.draw(5) == 0 {
			f.panicked()
			panic("in the dialer")
		}
	}
	ours, theirs := net.Pipe()
	go f.at[to.Addr.Addr().String()].ServeConn(theirs)
	return ours, nil
}

func (f *fray) play(t *testing.T) {
	e := newEngine(f.q, Config{Connect: connect.Config{DNS: f.dns.Resolver()}, Routes: f, Messages: 60, PerTransaction: 4, PerConnection: 5, MaxOpen: 3 + f.draw(12), IdleTime: 3 * time.Second})
	e.dialer.Dial = f.connect
	e.Start()
	for range 10 + f.draw(30) {
		d := f.message(t)
		if f.draw(4) == 0 {
			f.q.offer(d)
		} else {
			e.Take(d)
		}
		f.disturb(e)
		time.Sleep(time.Duration(f.draw(4000)) * time.Millisecond)
	}
	f.await(t, e)
	patience := time.Duration(f.draw(400)) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	if err := e.Shutdown(ctx); err != nil && !errors.Is(err, ErrCut) {
		t.Error(err)
	}
	if took := time.Since(began); took > patience+time.Second {
		t.Errorf("Shutdown took %v", took)
	}
	for _, s := range f.servers {
		s.Close()
	}
	f.check(t, e)
}

// disturb does what an operator or the resolver may do at any time.
func (f *fray) disturb(e *Engine) {
	name := fmt.Sprintf("mx%d.d%d.test", f.draw(5), f.draw(3))
	switch f.draw(13) {
	case 0:
		f.q.asked.Add(1)
	case 5:
		f.q.mu.Lock()
		f.q.back = []string{queue.Way("mx", "d0.test"), queue.Way("up0.test", ""), "nobody"}
		f.q.mu.Unlock()
	case 1:
		e.Rebound(Bounds{Connections: 1 + f.draw(4), MXConnections: 1 + f.draw(4)})
	case 2:
		f.dns.ServFail(name)
	case 3:
		f.dns.TimeOut(name, "A")
	case 4:
		f.dns.Stall(name, "AAAA")
	default:
		f.dns.Mend(name)
	}
}

// await waits for the end of everything, or for a moment before.
func (f *fray) await(t *testing.T, e *Engine) {
	if f.draw(2) == 0 {
		time.Sleep(time.Duration(f.draw(600)) * time.Second)
		return
	}
	for range 24 * 60 {
		time.Sleep(time.Minute)
		f.q.mu.Lock()
		ended, due := f.q.ended, len(f.q.due)
		f.q.mu.Unlock()
		if ended == f.rows && due == 0 {
			return
		}
	}
	t.Errorf("after a day %d of %d recipients have ended", f.q.ended, f.rows)
	for _, d := range e.all() {
		t.Logf("%s: %d waiting, %d workers, %d live, %d idle, window %d of %d", d.key, d.waiting.len(), d.workers, d.live, len(d.idle), d.window.used, d.window.limit)
	}
}

func (f *fray) message(t *testing.T) *queue.Delivery {
	var rcpts []string
	for i := range 1 + f.draw(9) {
		domain := []string{"d0.test", "d1.test", "d2.test", "up0.test", "up1.test"}[f.draw(5)]
		local := "r"
		if f.draw(6) == 0 {
			local = "ü"
		}
		rcpts = append(rcpts, fmt.Sprintf("%s%d@%s", local, i, domain))
	}
	d := message(t, rcpts...)
	d.Message.Sender = address(t, d.Message.ID.String()+"@sender.test") // for check to know it again
	d.Message.UserID = int64(f.draw(3))
	for i := range d.Recipients {
		d.Recipients[i].LastCode, d.Recipients[i].LastMidText = []int{0, 521, 552, 554}[f.draw(4)], f.draw(2) == 0
	}
	if f.draw(30) == 0 {
		d.Body.(*fakeBody).ReaderAt = brokenBody{f, d.Body.(*fakeBody).ReaderAt}
	}
	f.sent = append(f.sent, d)
	f.rows += len(rcpts)
	return d
}

// brokenBody fails, or panics, half-way.
type brokenBody struct {
	f *fray
	io.ReaderAt
}

func (b brokenBody) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && len(p) > 10 {
		return b.ReaderAt.ReadAt(p[:10], off)
	}
	if b.f.draw(2) == 0 {
		b.f.panicked()
		panic("in the body")
	}
	return 0, errors.New("the disk is gone")
}

func (f *fray) check(t *testing.T, e *Engine) {
	unclaimed := map[queue.ID]bool{}
	for _, d := range f.q.due {
		unclaimed[d.Message.ID] = true
	}
	dots, kept := map[string]int{}, map[string]int{}
	for _, server := range f.servers {
		for _, m := range server.Transactions() {
			for _, to := range m.To() {
				dots[m.From()+" "+to]++
				if m.Kept {
					kept[m.From()+" "+to]++
				}
			}
		}
	}
	for _, d := range f.sent {
		if unclaimed[d.Message.ID] {
			continue
		}
		dropped(t, d)
		for _, r := range d.Recipients {
			key := rowKey{d.Message.ID, r.N}
			outcomes, released := f.q.outcomes[key], f.q.released[key]
			if len(outcomes)+len(released) != 1 {
				t.Errorf("%v: outcomes %+v and releases %v, want one of them", key, outcomes, released)
				continue
			}
			name := d.Message.Sender.String() + " " + r.Address.String()
			if dots[name] > 1 {
				t.Errorf("%v: %d final dots were sent", key, dots[name])
			}
			if len(released) == 1 {
				if dots[name] > 0 {
					t.Errorf("%v was released after a final dot", key)
				}
				continue
			}
			checkOutcome(t, outcomes[0], kept[name])
		}
	}
	if held := e.Stats(); held.Messages != 0 || held.Memory != 0 {
		t.Errorf("left: %d messages, %d octets", held.Messages, held.Memory)
	}
	if n := e.panics.Load(); n != f.panics {
		t.Errorf("%d panics, %d were provoked", n, f.panics)
	}
	for _, d := range e.all() {
		if d.workers != 0 || d.live != 0 || d.waiting.len() != 0 || len(d.idle) != 0 {
			t.Errorf("%s has %d workers, %d live, %d waiting, %d idle", d.key, d.workers, d.live, d.waiting.len(), len(d.idle))
		}
	}
	if n, _ := e.slots.Use(); n != 0 {
		t.Errorf("%d connections are still counted", n)
	}
	for addr := range f.at {
		if n := e.slots.Held(share.Network(netip.MustParseAddr(addr))); n != 0 {
			t.Errorf("%d connections are still counted for %s", n, addr)
		}
	}
}
