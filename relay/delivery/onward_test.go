package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// mxHosts makes mail hosts mx1, mx2, … of one.test, in the order of their preference.
func mxHosts(t *testing.T, n int) ([]*smtptest.Server, Config) {
	t.Helper()
	return mxHostsIn(t, n, new(dnstest.Zones))
}

func mxHostsIn(t *testing.T, n int, dns *dnstest.Zones) ([]*smtptest.Server, Config) {
	t.Helper()
	servers, port := hosts(t, n)
	for i := range n {
		name := fmt.Sprintf("mx%d.one.test", i+1)
		dns.AddMX("one.test", uint16(i), name+".")
		dns.AddHost(name, fmt.Sprintf("127.0.0.%d", i+2))
	}
	return servers, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: port}}
}

func reply(lines ...string) smtptest.Hook { return smtptest.Always(smtptest.Reply(lines...)) }

// TestP05NextHost: what a host puts off before the final dot another one of the
// destination gets in the same attempt. What is final stays final, and after the dot
// nobody else is asked.
func TestP05NextHost(t *testing.T) {
	t.Parallel()
	closed := smtptest.Always(smtptest.Close())
	tests := []struct {
		name   string
		at     smtptest.Phase
		hook   smtptest.Hook
		result queue.Result
		host   string
	}{
		{"452 at MAIL", smtptest.PhaseMail, reply("452 4.3.1 full"), queue.Delivered, "mx2.one.test"},
		{"421 at MAIL", smtptest.PhaseMail, smtptest.Always(smtptest.Then(smtptest.Reply("421 4.7.0 busy"), smtptest.Close())), queue.Delivered, "mx2.one.test"},
		{"closed at MAIL", smtptest.PhaseMail, closed, queue.Delivered, "mx2.one.test"},
		{"reset at MAIL", smtptest.PhaseMail, smtptest.Always(smtptest.Reset()), queue.Delivered, "mx2.one.test"},
		{"451 at RCPT", smtptest.PhaseRcpt, reply("451 4.7.1 greylisted"), queue.Delivered, "mx2.one.test"},
		{"421 at RCPT", smtptest.PhaseRcpt, smtptest.Always(smtptest.Then(smtptest.Reply("421 4.3.2 closing"), smtptest.Close())), queue.Delivered, "mx2.one.test"},
		{"closed at RCPT", smtptest.PhaseRcpt, closed, queue.Delivered, "mx2.one.test"},
		{"451 at DATA", smtptest.PhaseData, reply("451 4.3.0 no"), queue.Delivered, "mx2.one.test"},
		{"421 at DATA", smtptest.PhaseData, smtptest.Always(smtptest.Then(smtptest.Reply("421 4.3.2 closing"), smtptest.Close())), queue.Delivered, "mx2.one.test"},
		{"closed at DATA", smtptest.PhaseData, closed, queue.Delivered, "mx2.one.test"},
		{"550 at MAIL", smtptest.PhaseMail, reply("550 5.7.1 no"), queue.Failed, "mx1.one.test"},
		{"550 at RCPT", smtptest.PhaseRcpt, reply("550 5.1.1 unknown"), queue.Failed, "mx1.one.test"},
		{"554 at DATA", smtptest.PhaseData, reply("554 5.7.1 no"), queue.Failed, "mx1.one.test"},
		{"451 to the dot", smtptest.PhaseDot, reply("451 4.3.0 later"), queue.Deferred, "mx1.one.test"},
		{"421 to the dot", smtptest.PhaseDot, smtptest.Always(smtptest.Then(smtptest.Reply("421 4.3.2 closing"), smtptest.Close())), queue.Deferred, "mx1.one.test"},
		{"closed after the dot", smtptest.PhaseDot, closed, queue.Deferred, "mx1.one.test"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			servers, cfg := mxHosts(t, 2)
			servers[0].On(test.at, test.hook)
			o := deliver(t, cfg, "user@one.test")
			if o.Result != test.result || o.RemoteMTA != test.host {
				t.Errorf("outcome %+v, want %s by %s", o, test.result, test.host)
			}
			asked := servers[1].Reached(smtptest.PhaseMail)
			if want := map[bool]int{true: 1}[test.host == "mx2.one.test"]; asked != want {
				t.Errorf("the second host was asked %d times, want %d", asked, want)
			}
		})
	}
}

// TestP05SilentHost: silence in the middle of a conversation leads to the next host too.
func TestP05SilentHost(t *testing.T) {
	t.Parallel()
	for _, phase := range []smtptest.Phase{smtptest.PhaseMail, smtptest.PhaseRcpt, smtptest.PhaseData} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				first, second := smtptest.New(smtptest.Config{}), smtptest.New(smtptest.Config{})
				defer first.Close()
				defer second.Close()
				first.On(phase, smtptest.Always(smtptest.Stall()))
				q := newFakeQueue()
				e := pipedMX(q, Config{}, first, second)
				e.Start()
				defer stop(t, e)
				d := message(t, "a@one.test")
				e.Take(d)
				time.Sleep(6 * time.Minute) // the patience with a command is five
				synctest.Wait()
				if o := q.outcome(t, d, 0); o.Result != queue.Delivered || o.RemoteMTA != "mx2.one.test" {
					t.Errorf("outcome %+v", o)
				}
			})
		})
	}
}

// pipedMX is an engine for which one.test has servers as its mail hosts, over pipes;
// nil refuses connections.
func pipedMX(q *fakeQueue, cfg Config, servers ...*smtptest.Server) *Engine {
	dns := &dnstest.Zones{}
	at := map[string]*smtptest.Server{}
	for i, s := range servers {
		name, addr := fmt.Sprintf("mx%d.one.test", i+1), fmt.Sprintf("198.51.100.%d", i+1)
		dns.AddMX("one.test", uint16(i), name+".")
		dns.AddHost(name, addr)
		at[addr] = s
	}
	cfg.Connect.DNS, cfg.Routes, cfg.NoClaim = dns.Resolver(), routes{}, true
	e := newEngine(q, cfg)
	e.dialer.Dial = func(_ context.Context, to connect.Target) (net.Conn, error) {
		s := at[to.Addr.Addr().String()]
		if s == nil {
			return nil, errors.New("refused")
		}
		ours, theirs := net.Pipe()
		go s.ServeConn(theirs)
		return ours, nil
	}
	return e
}

// TestP05Bounds: one attempt comes past EHLO with three hosts, and dials five addresses.
func TestP05Bounds(t *testing.T) {
	t.Parallel()
	t.Run("conversations", func(t *testing.T) {
		t.Parallel()
		servers, cfg := mxHosts(t, 5)
		for i, s := range servers {
			s.On(smtptest.PhaseMail, reply(fmt.Sprintf("452 4.3.1 full, says %d", i+1)))
		}
		o := deliver(t, cfg, "user@one.test")
		if o.Result != queue.Deferred || o.RemoteMTA != "mx3.one.test" || o.Reply.Text != "full, says 3" {
			t.Errorf("outcome %+v, want the word of the third host", o)
		}
		if servers[2].Reached(smtptest.PhaseMail) != 1 || servers[3].Reached(smtptest.PhaseConnect) != 0 {
			t.Errorf("host 3 was asked %d times, host 4 dialled %d times", servers[2].Reached(smtptest.PhaseMail), servers[3].Reached(smtptest.PhaseConnect))
		}
	})
	t.Run("addresses", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue()
			server := smtptest.New(smtptest.Config{})
			defer server.Close()
			e := pipedMX(q, Config{}, nil, nil, nil, nil, nil, server)
			e.Start()
			defer stop(t, e)
			d := message(t, "a@one.test")
			e.Take(d)
			synctest.Wait()
			if o := q.outcome(t, d, 0); o.Result != queue.Deferred || server.Reached(smtptest.PhaseConnect) != 0 {
				t.Errorf("outcome %+v, the sixth address was dialled %d times", o, server.Reached(smtptest.PhaseConnect))
			}
		})
	})
	t.Run("time", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue()
			silent := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Always(smtptest.Stall())}})
			defer silent.Close()
			e := pipedMX(q, Config{}, silent, silent, silent)
			e.Start()
			defer stop(t, e)
			d := message(t, "a@one.test")
			e.Take(d)
			time.Sleep(11 * time.Minute) // five for each greeting
			synctest.Wait()
			if o := q.outcome(t, d, 0); o.Result != queue.Deferred || silent.Reached(smtptest.PhaseConnect) != 2 {
				t.Errorf("outcome %+v, %d hosts were dialled, want 2", o, silent.Reached(smtptest.PhaseConnect))
			}
		})
	})
}

// TestP05TimeOfAnAttempt: the ten minutes of an attempt run from its beginning, not from
// the end of its first transaction.
func TestP05TimeOfAnAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := []*smtptest.Server{smtptest.New(smtptest.Config{}), smtptest.New(smtptest.Config{}), smtptest.New(smtptest.Config{})}
		for i, phase := range []smtptest.Phase{smtptest.PhaseMail, smtptest.PhaseBanner} { // five minutes each
			servers[i].On(phase, smtptest.Always(smtptest.Stall()))
		}
		for _, s := range servers {
			defer s.Close()
		}
		q := newFakeQueue()
		e := pipedMX(q, Config{}, servers...)
		e.Start()
		defer stop(t, e)
		d := message(t, "a@one.test")
		e.Take(d)
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || servers[2].Reached(smtptest.PhaseConnect) != 0 {
			t.Errorf("outcome %+v, the third host was dialled %d times after ten minutes", o, servers[2].Reached(smtptest.PhaseConnect))
		}
	})
}

// TestP05OnlyTheRest: the recipients that a host puts off go on, those that it took or
// refused for good do not.
func TestP05OnlyTheRest(t *testing.T) {
	t.Parallel()
	servers, cfg := mxHosts(t, 2)
	servers[0].On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		return []smtptest.Action{{}, smtptest.Reply("451 4.7.1 later"), smtptest.Reply("550 5.1.1 unknown")}[s.Rcpt]
	})
	q := newFakeQueue()
	cfg.Routes, cfg.Connect.AllowPrivateMX = routes{}, true
	e := startEngine(t, q, cfg)
	d := message(t, "taken@one.test", "later@one.test", "never@one.test")
	e.Take(d)
	q.waitEnded(t, 3)
	for n, want := range []struct {
		result queue.Result
		host   string
	}{{queue.Delivered, "mx1.one.test"}, {queue.Delivered, "mx2.one.test"}, {queue.Failed, "mx1.one.test"}} {
		if o := q.outcome(t, d, n); o.Result != want.result || o.RemoteMTA != want.host {
			t.Errorf("recipient %d: %+v, want %+v", n, o, want)
		}
	}
	if got := servers[1].Messages(); len(got) != 1 || len(got[0].To()) != 1 || got[0].To()[0] != "later@one.test" {
		t.Errorf("the second host got %+v", got)
	}
	stop(t, e)
	dropped(t, d)
}

// TestP05Lacks: a host that lacks what the message needs is passed over, and the lack is
// final when no other host has it.
func TestP05Lacks(t *testing.T) {
	t.Parallel()
	small := []string{"PIPELINING", "SIZE 10"}
	for _, all := range []bool{false, true} {
		t.Run(fmt.Sprintf("all hosts %v", all), func(t *testing.T) {
			t.Parallel()
			first := smtptest.New(smtptest.Config{Extensions: small})
			cfg := smtptest.Config{}
			if all {
				cfg.Extensions = small
			}
			second := smtptest.New(cfg)
			defer first.Close()
			defer second.Close()
			q := newFakeQueue()
			e := pipedMX(q, Config{}, first, second)
			e.Start()
			defer stop(t, e)
			d := message(t, "a@one.test")
			e.Take(d)
			q.waitEnded(t, 1)
			want := map[bool]queue.Result{false: queue.Delivered, true: queue.Failed}[all]
			if o := q.outcome(t, d, 0); o.Result != want || o.RemoteMTA != "mx2.one.test" {
				t.Errorf("outcome %+v, want %s by the second host", o, want)
			}
		})
	}
}

// TestP05PreferredHostComesBack: the connection to another host serves the message that
// needed it and no more.
func TestP05PreferredHostComesBack(t *testing.T) {
	t.Parallel()
	servers, cfg := mxHosts(t, 2)
	servers[0].On(smtptest.PhaseMail, smtptest.Once(smtptest.Reply("452 4.3.1 full")))
	q := newFakeQueue()
	cfg.Routes, cfg.Connect.AllowPrivateMX = routes{}, true
	e := startEngine(t, q, cfg)
	for i, host := range []string{"mx2.one.test", "mx1.one.test"} {
		d := message(t, "a@one.test")
		e.Take(d)
		q.waitEnded(t, i+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered || o.RemoteMTA != host {
			t.Errorf("message %d: %+v, want it at %s", i, o, host)
		}
	}
}

// TestP05NoOtherHost: a server that puts mail off and is the only one keeps its
// connection, and is not asked twice.
func TestP05NoOtherHost(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseRcpt: reply("451 4.7.1 greylisted")}})
	q := newFakeQueue()
	up := upstreamAt(server)
	up.MaxConnections = 1
	e := startEngine(t, q, Config{Routes: routes{def: up}})
	for i := range 3 {
		d := message(t, "a@one.test")
		e.Take(d)
		q.waitEnded(t, i+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred {
			t.Errorf("outcome %+v", o)
		}
	}
	if conns, asked := server.Reached(smtptest.PhaseConnect), server.Reached(smtptest.PhaseRcpt); conns != 1 || asked != 3 {
		t.Errorf("%d connections and %d times asked, want 1 and 3", conns, asked)
	}
}

// TestLostInTheMiddle: a conversation that breaks off before the dot is begun anew once,
// and is an attempt the second time.
func TestLostInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		times    int
		result   queue.Result
		dialled  int
		attempts int
	}{{1, queue.Delivered, 2, 1}, {2, queue.Deferred, 2, 1}} {
		t.Run(fmt.Sprint(test.times), func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
				smtptest.PhaseData: smtptest.Times(test.times, smtptest.Reset())}})
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
			d := message(t, "a@one.test")
			e.Take(d)
			q.waitEnded(t, test.attempts)
			if o := q.outcome(t, d, 0); o.Result != test.result {
				t.Errorf("outcome %+v", o)
			}
			if n := server.Reached(smtptest.PhaseConnect); n != test.dialled {
				t.Errorf("%d connections, want %d", n, test.dialled)
			}
		})
	}
}

// transaction rows: which ends of one let a recipient go on.
func TestP05GoesOn(t *testing.T) {
	t.Parallel()
	up := &upstream.Account{Name: "out"}
	at := func(stage smtp.Stage, r smtp.Reply) smtp.Result {
		return smtp.Result{Replies: []smtp.Reply{r}, Stages: []smtp.Stage{stage}}
	}
	lost := func(dot bool) smtp.Result {
		return smtp.Result{Replies: []smtp.Reply{{}}, Stages: []smtp.Stage{""}, DotSent: dot, Err: &smtp.StageError{Stage: smtp.StageData, Err: io.EOF}}
	}
	for _, test := range []struct {
		name     string
		res      smtp.Result
		upstream *upstream.Account
		want     bool
	}{
		{"mx, 450 at RCPT", at(smtp.StageRcpt, smtp.Temporary(450, 2, 1, "")), nil, true},
		{"upstream, 450 at RCPT", at(smtp.StageRcpt, smtp.Temporary(450, 2, 1, "")), up, false},
		{"upstream, 421 at RCPT", at(smtp.StageRcpt, smtp.Temporary(421, 3, 2, "")), up, true},
		{"upstream, 452 at MAIL", at(smtp.StageMail, smtp.Temporary(452, 3, 1, "")), up, true},
		{"a lack", at(smtp.StageHello, smtp.Permanent(552, 3, 4, "")), nil, true},
		{"450 to the dot", at(smtp.StageDot, smtp.Temporary(450, 2, 1, "")), nil, false},
		{"550 at RCPT", at(smtp.StageRcpt, smtp.Permanent(550, 1, 1, "")), nil, false},
		{"lost before the dot", lost(false), nil, true},
		{"lost after the dot", lost(true), nil, false},
	} {
		tx := transaction{res: test.res, conn: &conn{Conn: &connect.Conn{Walk: connect.Walk{Upstream: test.upstream}}}}
		if got := tx.goesOn(0); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	silent := transaction{res: smtp.Result{Err: &smtp.StageError{Stage: smtp.StageMail, Err: os.ErrDeadlineExceeded}}}
	if silent.lost() {
		t.Error("silence counts as a lost connection")
	}
}

// TestP05LacksAndNotThere: a lack is not final while another host that may not lack it
// cannot be had.
func TestP05LacksAndNotThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first := smtptest.New(smtptest.Config{Extensions: []string{"PIPELINING"}})
		defer first.Close()
		q := newFakeQueue()
		e := pipedMX(q, Config{}, first, nil)
		e.Start()
		defer stop(t, e)
		d := message(t, "ü@one.test", "a@one.test")
		e.Take(d)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.RetryIn <= 0 || o.RemoteMTA != "" { // nobody was talked to
			t.Errorf("the recipient that needs another host: %+v", o)
		}
		if o := q.outcome(t, d, 1); o.Result != queue.Delivered {
			t.Errorf("the other one: %+v", o)
		}
	})
}

// TestRFC3464OurWords: a reply that no server gave is told as ours, whichever host it is
// about, and what a server said is told as its own.
func TestRFC3464OurWords(t *testing.T) {
	t.Parallel()
	closed := smtptest.Always(smtptest.Close())
	for _, test := range []struct {
		name string
		at   smtptest.Phase
		hook smtptest.Hook
		to   string
		ours bool
	}{
		{"needs SMTPUTF8", smtptest.PhaseConnect, nil, "ü@one.test", true},
		{"greeting closed", smtptest.PhaseBanner, closed, "a@one.test", true},
		{"greeting 554", smtptest.PhaseBanner, reply("554 5.3.2 no"), "a@one.test", false},
		{"MAIL closed", smtptest.PhaseMail, closed, "a@one.test", true},
		{"MAIL 421", smtptest.PhaseMail, reply("421 4.3.2 no"), "a@one.test", false},
		{"RCPT 550", smtptest.PhaseRcpt, reply("550 5.1.1 no"), "a@one.test", false},
		{"dot closed", smtptest.PhaseDot, closed, "a@one.test", true},
		{"dot 451", smtptest.PhaseDot, reply("451 4.3.0 no"), "a@one.test", false},
		{"greeting not SMTP", smtptest.PhaseBanner, smtptest.Always(smtptest.Raw("HTTP/1.1 400 Bad Request\r\n")), "a@one.test", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING"}})
			if test.hook != nil {
				server.On(test.at, test.hook)
			}
			dns := &dnstest.Zones{}
			dns.AddMX("one.test", 10, "mx1.one.test.")
			dns.AddHost("mx1.one.test", server.Host())
			if o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: server.Port()}}, test.to); o.Ours != test.ours || o.RemoteMTA != "mx1.one.test" {
				t.Errorf("%+v, want ours: %v", o, test.ours)
			}
		})
	}
}
