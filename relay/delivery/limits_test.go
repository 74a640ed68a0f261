package delivery

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

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
