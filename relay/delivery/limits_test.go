package delivery

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
	"postern/relay/queue"
)

// limited starts a server that announces limits (RFC 9422) and is hard on who goes beyond.
func limited(t *testing.T, announced string, mails, rcpts, domains int) *smtptest.Server {
	t.Helper()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "LIMITS " + announced}})
	var mu sync.Mutex
	said := map[int]int{}
	met := map[int]map[string]bool{}
	server.On(smtptest.PhaseMail, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if said[s.Conn]++; said[s.Conn] > mails {
			return smtptest.Reply("550 5.7.1 one MAIL too many")
		}
		return smtptest.Action{}
	})
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if met[s.Conn] == nil {
			met[s.Conn] = map[string]bool{}
		}
		_, domain, _ := strings.Cut(strings.TrimSuffix(s.Command, ">"), "@")
		met[s.Conn][domain] = true
		switch {
		case s.Rcpt >= rcpts:
			return smtptest.Reply("550 5.7.1 one RCPT too many")
		case len(met[s.Conn]) > domains:
			return smtptest.Reply("550 5.7.1 one domain too many")
		case strings.Contains(s.Command, "nobody"):
			return smtptest.Reply("550 5.1.1 unknown")
		}
		return smtptest.Action{}
	})
	return server
}

const many = 1000

// TestP06Limits: no server hears more than it says that it takes, and nobody waits for that.
func TestP06Limits(t *testing.T) {
	t.Parallel()
	across := []string{"a@one.test", "b@two.test", "c@one.test", "d@three.test", "e@two.test"}
	five := []string{"r0@one.test", "r1@one.test", "r2@one.test", "r3@one.test", "r4@one.test"}
	tests := []struct {
		announced             string
		mails, rcpts, domains int
		to                    []string
		transactions, conns   int
	}{
		{"RCPTMAX=2", many, 2, many, five, 3, 1},
		{"RCPTMAX=1", many, 1, many, five, 5, 1},
		{"MAILMAX=1 RCPTMAX=2", 1, 2, many, five, 3, 3},
		{"MAILMAX=2 RCPTMAX=2", 2, 2, many, five, 3, 2},
		{"RCPTDOMAINMAX=1", many, many, 1, across, 3, 3},
		{"RCPTDOMAINMAX=2", many, many, 2, across, 2, 2},
		{"RCPTMAX=2 RCPTDOMAINMAX=2", many, 2, 2, across, 3, 2},
		{"RCPTMAX=2", many, 2, many, []string{"nobody0@one.test", "nobody1@one.test", "r2@one.test"}, 1, 1},
		{"RCPTMAX=0 MAILMAX=-1 RCPTDOMAINMAX=x", many, many, many, across, 1, 1},
		{"", many, many, many, across, 1, 1},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.announced, " ", test.to), func(t *testing.T) {
			t.Parallel()
			server := limited(t, test.announced, test.mails, test.rcpts, test.domains)
			q := newFakeQueue()
			up := upstreamAt(server)
			up.MaxConnections = 1
			e := startEngine(t, q, Config{Routes: routes{def: up}})
			d := message(t, test.to...)
			e.Take(d)
			q.waitEnded(t, len(test.to))
			for n := range d.Recipients {
				want := queue.Delivered
				if strings.Contains(test.to[n], "nobody") {
					want = queue.Failed
				}
				if o := q.outcome(t, d, n); o.Result != want {
					t.Errorf("%s: %s %v, want %s", test.to[n], o.Result, o.Reply, want)
				}
			}
			if n := len(server.Messages()); n != test.transactions || server.Conns() != test.conns {
				t.Errorf("%d messages over %d connections, want %d over %d", n, server.Conns(), test.transactions, test.conns)
			}
			stop(t, e)
			dropped(t, d)
		})
	}
}

// Messages one after the other share a connection as far as its server likes.
func TestP06MailMax(t *testing.T) {
	t.Parallel()
	server := limited(t, "MAILMAX=2", 2, many, many)
	q := newFakeQueue()
	up := upstreamAt(server)
	up.MaxConnections = 1
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	for n := range 5 {
		d := message(t, "user@one.test")
		e.Take(d)
		q.waitEnded(t, n+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
			t.Errorf("%d: %s %v", n, o.Result, o.Reply)
		}
	}
	if n := server.Conns(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

// A refusal at MAIL is for all recipients; later ones are only for those that were named.
func TestP06Refusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		phase  smtptest.Phase
		action smtptest.Action
		want   string // results of three recipients, two of which are named at a time
		mails  int
	}{
		{"550 at MAIL", smtptest.PhaseMail, smtptest.Reply("550 5.7.1 no"), "failed failed failed", 1},
		{"451 at MAIL", smtptest.PhaseMail, smtptest.Reply("451 4.3.0 no"), "deferred deferred deferred", 1},
		{"450 at RCPT", smtptest.PhaseRcpt, smtptest.Reply("450 4.2.1 grey"), "deferred deferred deferred", 2},
		{"554 at DATA", smtptest.PhaseData, smtptest.Reply("554 5.7.1 no"), "failed failed failed", 2},
		{"554 at the dot", smtptest.PhaseDot, smtptest.Reply("554 5.7.1 no"), "failed failed failed", 2},
		{"451 at the dot", smtptest.PhaseDot, smtptest.Reply("451 4.7.1 no"), "deferred deferred deferred", 2},
		{"closed at the dot", smtptest.PhaseDot, smtptest.Close(), "deferred deferred deferred", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "LIMITS RCPTMAX=2"}})
			server.On(test.phase, smtptest.Always(test.action))
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
			d := message(t, "r0@one.test", "r1@one.test", "r2@one.test")
			e.Take(d)
			q.waitEnded(t, 3)
			var got []string
			for n := range d.Recipients {
				o := q.outcome(t, d, n)
				got = append(got, string(o.Result))
				if want := test.name == "closed at the dot" && n < 2; o.Unknown != want {
					t.Errorf("recipient %d: unknown %v", n, o.Unknown)
				}
			}
			if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
				t.Error(diff)
			}
			if n := server.Reached(smtptest.PhaseMail); n != test.mails {
				t.Errorf("%d MAIL, want %d", n, test.mails)
			}
		})
	}
}

// Where all that were named are put off, the next host gets everybody.
func TestP06NextHost(t *testing.T) {
	t.Parallel()
	servers, cfg := mxHosts(t, 2)
	servers[0].On(smtptest.PhaseHello, reply("250-fake.test", "250 LIMITS RCPTMAX=2"))
	servers[0].On(smtptest.PhaseRcpt, reply("451 4.7.1 greylisted"))
	q := newFakeQueue()
	cfg.Routes, cfg.Connect.AllowPrivateMX = routes{}, true
	e := startEngine(t, q, cfg)
	d := message(t, "r0@one.test", "r1@one.test", "r2@one.test")
	e.Take(d)
	q.waitEnded(t, 3)
	for n := range d.Recipients {
		if o := q.outcome(t, d, n); o.Result != queue.Delivered || o.RemoteMTA != "mx2.one.test" {
			t.Errorf("recipient %d: %s %v by %s", n, o.Result, o.Reply, o.RemoteMTA)
		}
	}
	if n := servers[0].Reached(smtptest.PhaseMail); n != 1 {
		t.Errorf("the first host was asked %d times", n)
	}
}

// Recipients that were not named come back untouched when the dot is withheld.
func TestP06Gate(t *testing.T) {
	t.Parallel()
	server := limited(t, "RCPTMAX=1", many, 1, many)
	q := newFakeQueue()
	q.gate = func(*queue.Delivery, []int) error { return errors.New("the epoch is over") }
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "r0@one.test", "r1@one.test")
	e.Take(d)
	q.waitEnded(t, 2)
	for n := range d.Recipients {
		if released := q.releases()[rowKey{d.Message.ID, n}]; len(released) != 1 {
			t.Errorf("recipient %d was released %d times", n, len(released))
		}
	}
}

// A limit that is told at RCPT is not final when the dot is withheld either.
func TestP07Gate(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		return []smtptest.Action{{}, smtptest.Reply("550 5.5.3 no more"), smtptest.Reply("550 5.1.1 unknown")}[s.Rcpt]
	})
	q := newFakeQueue()
	q.gate = func(*queue.Delivery, []int) error { return errors.New("the epoch is over") }
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "r0@one.test", "r1@one.test", "r2@one.test")
	e.Take(d)
	q.waitEnded(t, 3)
	if released := q.releases()[rowKey{d.Message.ID, 0}]; len(released) != 1 {
		t.Errorf("the accepted recipient was released %d times", len(released))
	}
	for n, want := range map[int]queue.Result{1: queue.Deferred, 2: queue.Failed} {
		if o := q.outcome(t, d, n); o.Result != want {
			t.Errorf("recipient %d: %+v, want %s", n, o, want)
		}
	}
}

// TestP06LostBeforeTheRest: recipients beyond the server's limit, of whom it has not
// heard, are charged no attempt when the connection is lost with those before them.
func TestP06LostBeforeTheRest(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{
		Extensions: []string{"LIMITS RCPTMAX=1"},
		Hooks:      map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Close())},
	})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "a@one.test", "b@one.test")
	e.Take(d)
	q.waitEnded(t, 2)
	if o := q.outcome(t, d, 0); !o.Unknown || o.NotAnAttempt {
		t.Errorf("the recipient whose dot was sent: %+v", o)
	}
	if o := q.outcome(t, d, 1); o.Result != queue.Deferred || !o.NotAnAttempt || o.Unknown {
		t.Errorf("the recipient that was never named: %+v", o)
	}
}

// tooManyAt starts a server that takes two recipients in a transaction and says so only at RCPT;
// with refuses it does not take the message for those two either (Exim: recipients_max_reject).
func tooManyAt(t *testing.T, said string, refuses bool) *smtptest.Server {
	t.Helper()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING"}})
	var mu sync.Mutex
	over := map[int]bool{}
	server.On(smtptest.PhaseMail, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		over[s.Conn] = false
		return smtptest.Action{}
	})
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if len(s.Rcpts) < 2 {
			return smtptest.Action{}
		}
		over[s.Conn] = true
		return smtptest.Reply(said)
	})
	server.On(smtptest.PhaseData, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if refuses && over[s.Conn] {
			return smtptest.Reply("554 Too many recipients")
		}
		return smtptest.Action{}
	})
	return server
}

// TestP07Learned: how many recipients fit into a transaction is heard once on a connection. Those
// beyond follow without being refused again, and so do those of the next message.
func TestP07Learned(t *testing.T) {
	t.Parallel()
	tests := []struct {
		said            string
		refuses         bool
		rcpts           int
		mails, commands int // MAIL and RCPT, for two messages
	}{
		{"452 4.5.3 Error: too many recipients", false, 5, 3 + 3, 5 + 2 + 1 + 5},
		{"452 too many recipients", false, 5, 3 + 3, 5 + 2 + 1 + 5},
		{"552 too many recipients", true, 5, 4 + 3, 5 + 5 + 5},
		{"552 too many recipients", true, 3, 3 + 2, 3 + 3 + 3},
		{"452 full, perhaps", false, 3, 2 + 2, 3 + 1 + 3 + 1}, // a single one teaches nothing
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.said, " ", test.rcpts), func(t *testing.T) {
			t.Parallel()
			server := tooManyAt(t, test.said, test.refuses)
			q := newFakeQueue()
			up := upstreamAt(server)
			up.MaxConnections = 1
			e := startEngine(t, q, Config{Routes: routes{def: up}})
			for ended := 0; ended < 2*test.rcpts; {
				var to []string
				for n := range test.rcpts {
					to = append(to, fmt.Sprintf("r%d@one.test", n))
				}
				d := message(t, to...)
				e.Take(d)
				ended += test.rcpts
				q.waitEnded(t, ended)
				for n := range to {
					if o := q.outcome(t, d, n); o.Result != queue.Delivered {
						t.Errorf("%s: %s %v", to[n], o.Result, o.Reply)
					}
				}
			}
			mails, commands := server.Reached(smtptest.PhaseMail), server.Reached(smtptest.PhaseRcpt)
			if mails != test.mails || commands != test.commands || server.Conns() != 1 {
				t.Errorf("%d MAIL and %d RCPT over %d connections, want %d and %d over one", mails, commands, server.Conns(), test.mails, test.commands)
			}
		})
	}
}

// hardOn starts a server that hangs up after two recipients that it refused on a connection
// (Postfix: smtpd_hard_error_limit). What it says to them is for the test.
func hardOn(t *testing.T, refusal string) *smtptest.Server {
	t.Helper()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING"}})
	var mu sync.Mutex
	refused := map[int]int{}
	hangsUp := smtptest.Then(smtptest.Reply("421 4.7.0 Error: too many errors"), smtptest.Close())
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case refused[s.Conn] == 2:
			return hangsUp
		case strings.Contains(s.Command, "no"):
			refused[s.Conn]++
			return smtptest.Reply(refusal)
		}
		return smtptest.Action{}
	})
	server.On(smtptest.PhaseData, func(s smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if refused[s.Conn] == 2 {
			return hangsUp
		}
		return smtptest.Action{}
	})
	return server
}

// TestP07RateAtRcpt: a rate that ends amid the recipients concerns those too that were not named
// yet: they wait as long, and are not named in vain.
func TestP07RateAtRcpt(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "LIMITS RCPTMAX=3"}})
	said := []smtptest.Action{{}, smtptest.Reply("452 4.5.3 Error: too many recipients"), smtptest.Reply("450 4.7.1 Error: too many recipients from 127.0.0.1")}
	server.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action { return said[s.Rcpt] })
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	d := message(t, "a@one.test", "b@one.test", "c@one.test", "d@one.test")
	e.Take(d)
	q.waitEnded(t, 4)
	if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
		t.Errorf("%+v", o)
	}
	for n := 1; n < 4; n++ {
		o := q.outcome(t, d, n)
		if o.Result != queue.Deferred || o.Scope != "account" || o.RetryIn < 30*time.Second || o.RetryIn > 2*time.Minute || o.NotAnAttempt != (n > 2) {
			t.Errorf("recipient %d: %+v", n, o)
		}
	}
	if n := server.Reached(smtptest.PhaseMail); n != 1 {
		t.Errorf("%d MAIL, want 1", n)
	}
}

// TestP07MailAndHangUp: what was sent behind a refused MAIL is an error to some servers, after
// which they hang up. The refusal stands, and is not provoked again over a new connection.
func TestP07MailAndHangUp(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING"}})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
	first := message(t, "a@one.test")
	e.Take(first)
	q.waitEnded(t, 1)
	rested(t, e, queue.Way("sink", ""))
	server.On(smtptest.PhaseMail, reply("450 4.7.1 Error: too much mail from 127.0.0.1"))
	server.On(smtptest.PhaseRcpt, smtptest.Always(smtptest.Then(smtptest.Reply("421 4.7.0 Error: too many errors"), smtptest.Close())))
	d := message(t, "a@one.test")
	e.Take(d)
	q.waitEnded(t, 2)
	if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.Reply.Code != 450 || o.Scope != "account" || o.RetryIn > 2*time.Minute {
		t.Errorf("%+v", o)
	}
	if d := e.known(queue.Way("sink", "")); server.Conns() != 1 || d.broken != 0 {
		t.Errorf("%d connections, %d conversations broke off", server.Conns(), d.broken)
	}
}

// TestP07CutShort: a server that hangs up after too many refusals has answered those; the others
// are named over a new connection immediately, and the server is in no trouble.
func TestP07CutShort(t *testing.T) {
	t.Parallel()
	to := []string{"a@one.test", "no0@one.test", "b@one.test", "no1@one.test", "c@one.test", "no2@one.test", "no3@one.test", "no4@one.test", "d@one.test"}
	tests := []struct {
		refusal  string
		refused  queue.Result
		accepted queue.Result
		conns    int
		window   int
	}{
		{"550 5.1.1 unknown", queue.Failed, queue.Delivered, 3, begin},
		{"450 4.2.0 greylisted", queue.Deferred, queue.Delivered, 3, begin},
		{"450 4.7.1 Error: too many recipients from 127.0.0.1", queue.Deferred, queue.Deferred, 1, begin / 2},
	}
	for _, test := range tests {
		t.Run(test.refusal, func(t *testing.T) {
			t.Parallel()
			server := hardOn(t, test.refusal)
			q := newFakeQueue()
			up := upstreamAt(server)
			e := startEngine(t, q, Config{Routes: routes{def: up}})
			d := message(t, to...)
			e.Take(d)
			q.waitEnded(t, len(to))
			for n := range to {
				want := test.accepted
				if strings.HasPrefix(to[n], "no") {
					want = test.refused
				}
				o := q.outcome(t, d, n)
				if o.Result != want {
					t.Errorf("%s: %s %v, want %s", to[n], o.Result, o.Reply, want)
				}
				if ofAccount := test.accepted == queue.Deferred; ofAccount != (o.Scope == "account") {
					t.Errorf("%s: %v concerns %q", to[n], o.Reply, o.Scope)
				}
			}
			if server.Conns() != test.conns {
				t.Errorf("%d connections, want %d", server.Conns(), test.conns)
			}
			if d := e.known(queue.Way("sink", "")); d.broken != 0 || d.window.limit != test.window {
				t.Errorf("%d conversations broke off, a window of %d is left, want %d", d.broken, d.window.limit, test.window)
			}
		})
	}
}

// TestTooManyConnections: the server says so before any other conversation has come past its
// greeting. It was not in trouble: those go on, and no mail waits.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	const most, admitted = begin, 2
	server := smtptest.Start(t, smtptest.Config{})
	refused := make(chan struct{})
	server.On(smtptest.PhaseBanner, func(s smtptest.Session) smtptest.Action {
		if s.Conn <= admitted {
			return smtptest.Action{}
		}
		return smtptest.Then(smtptest.Reply("421 Too many concurrent SMTP connections"), smtptest.Close())
	})
	server.On(smtptest.PhaseHello, smtptest.Always(smtptest.Then(smtptest.StallUntil(refused), smtptest.Normal())))
	q := newFakeQueue()
	up := upstreamAt(server)
	up.MaxConnections = most
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	var list []*queue.Delivery
	for range 2 * most {
		list = append(list, message(t, "a@one.test"))
		e.Take(list[len(list)-1])
	}
	limit := func() int {
		d := e.known(queue.Way("sink", ""))
		if d == nil {
			return most
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.window.limit
	}
	for until := time.Now().Add(patience); limit() == most && time.Now().Before(until); {
		time.Sleep(time.Millisecond) // nobody signals it
	}
	close(refused)
	q.waitEnded(t, len(list))
	for _, d := range list {
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
			t.Errorf("%+v", o)
		}
	}
	if server.Conns() > most {
		t.Errorf("%d connections, want %d at most", server.Conns(), most)
	}
}
