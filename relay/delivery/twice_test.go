package delivery

import (
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// after makes a message whose last attempt ended with a reply of that code.
func after(t *testing.T, code int) *queue.Delivery {
	t.Helper()
	d := message(t, "user@one.test")
	d.Recipients[0].Attempts, d.Recipients[0].LastCode = min(code, 1), code
	d.Recipients[0].LastMidText = code/10 == 55
	return d
}

// Test521Twice: a host that takes no mail (RFC 7504) may be a mistake the first time,
// and does not matter while another host of the domain may take it.
func Test521Twice(t *testing.T) {
	t.Parallel()
	const closed = "521 5.3.2 this host takes no mail"
	greets := func(line string) func(*smtptest.Server) {
		return func(s *smtptest.Server) { s.On(smtptest.PhaseBanner, reply(line)) }
	}
	tests := []struct {
		name          string
		last          int
		first, second func(*smtptest.Server) // hosts; nil: there is none, or no address
		result        queue.Result
		reply         string
	}{
		{"the first time", 0, greets(closed), nil, queue.Deferred, closed},
		{"after other trouble", 451, greets(closed), nil, queue.Deferred, closed},
		{"the second time", 521, greets(closed), nil, queue.Failed, `556 5.3.2 mail host mx1.one.test takes no mail: "` + closed + `"`},
		{"two hosts that do not", 521, greets(closed), greets(closed), queue.Failed, "556 5.3.2 "},
		{"another that does", 521, greets(closed), func(*smtptest.Server) {}, queue.Delivered, "250 "},
		{"another that is busy", 521, greets(closed), greets("421 4.3.2 busy"), queue.Deferred, "421 4.3.2 busy"},
		{"a busy one before", 521, greets("421 4.3.2 busy"), greets(closed), queue.Deferred, "421 4.3.2 busy"},
		{"another that is away", 521, greets(closed), (*smtptest.Server).Close, queue.Deferred, "451 4.4.1 "},
		{"554 is another matter", 554, greets("554 5.3.2 not now"), nil, queue.Deferred, "554 5.3.2 not now"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dns := new(dnstest.Zones)
			servers, cfg := mxHostsIn(t, 2, dns)
			cfg.Routes = routes{}
			test.first(servers[0])
			if test.second != nil {
				test.second(servers[1])
			} else {
				dns.Forget("mx2.one.test")
			}
			o := attempt(t, cfg, after(t, test.last))
			if o.Result != test.result || !strings.HasPrefix(o.Reply.String(), test.reply) {
				t.Errorf("%s %v, want %s %s", o.Result, o.Reply, test.result, test.reply)
			}
		})
	}
	t.Run("an upstream", func(t *testing.T) {
		t.Parallel()
		server := smtptest.Start(t, smtptest.Config{})
		greets(closed)(server)
		if o := attempt(t, Config{Routes: routes{def: upstreamAt(server)}}, after(t, 521)); o.Result != queue.Deferred {
			t.Errorf("%s %v", o.Result, o.Reply)
		}
	})
}

// A host that was not asked, since five addresses are enough for one attempt, may take mail.
func Test521OfSomeHosts(t *testing.T) {
	t.Parallel()
	servers, cfg := mxHosts(t, connect.MaxTries+1)
	cfg.Routes = routes{}
	for _, s := range servers[:connect.MaxTries] {
		s.On(smtptest.PhaseBanner, reply("521 5.3.2 this host takes no mail"))
	}
	if o := attempt(t, cfg, after(t, 521)); o.Result != queue.Deferred {
		t.Errorf("%s %v", o.Result, o.Reply)
	}
}

// Test552Twice: a server that refuses the message in the middle of it and hangs up is
// believed the second time, unless it speaks of our account or of commands.
func Test552Twice(t *testing.T) {
	t.Parallel()
	const tooBig = "552 5.3.4 too big"
	tests := []struct {
		said   string
		last   int
		result queue.Result
		reply  string
	}{
		{tooBig, 0, queue.Deferred, tooBig + " (said in the middle of the message)"},
		{tooBig, 451, queue.Deferred, tooBig + " (said in the middle of the message)"},
		{tooBig, 552, queue.Failed, tooBig + " (said in the middle of the message)"},
		{"552 too big", 552, queue.Failed, "552 too big (said in the middle of the message)"},
		{"554 5.7.1 spam", 554, queue.Failed, "554 5.7.1 spam (said in the middle of the message)"},
		{"554 5.7.1 spam", 552, queue.Deferred, "554 5.7.1 spam (said in the middle of the message)"},
		{"500 5.5.1 unknown command", 500, queue.Deferred, `451 4.5.0 conversation lost while the message was being sent, server is out of step: it said "500 5.5.1 unknown command"`},
		{"451 4.3.1 full", 451, queue.Deferred, `451 4.5.0 conversation lost while the message was being sent, server is out of step: it said "451 4.3.1 full"`},
		{"250 2.0.0 thanks", 250, queue.Deferred, `451 4.5.0 conversation lost while the message was being sent, server is out of step: it said "250 2.0.0 thanks"`},
		{"no reply at all", 0, queue.Deferred, `451 4.5.0 conversation lost while the message was being sent, malformed reply: no reply code: "no reply at all"`},
	}
	for _, test := range tests {
		for _, via := range []string{"mx", "upstream"} {
			t.Run(via+" "+test.said, func(t *testing.T) {
				t.Parallel()
				servers, cfg := mxHosts(t, 1)
				servers[0].On(smtptest.PhaseBody, smtptest.Always(smtptest.Then(smtptest.Reply(test.said), smtptest.Close())))
				cfg.Routes = routes{}
				if via == "upstream" {
					cfg.Routes = routes{def: &upstream.Account{Name: "sink", Host: servers[0].Host(), Port: servers[0].Port(), TLS: upstream.TLSNone}}
				}
				d := after(t, test.last)
				d.Body = newBody(strings.Repeat("x\r\n", 5<<20)) // more than the sockets hold
				o := attempt(t, cfg, d)
				if o.Result != test.result || o.Reply.String() != test.reply {
					t.Errorf("%s %v, want %s %s", o.Result, o.Reply, test.result, test.reply)
				}
			})
		}
	}
}

// Test552NotTwice: the same code as the answer to a command, or as a greeting, is not the
// same refusal.
func Test552NotTwice(t *testing.T) {
	t.Parallel()
	for _, said := range []string{"552 5.3.4 too big", "554 5.7.1 spam"} {
		servers, cfg := mxHosts(t, 1)
		servers[0].On(smtptest.PhaseBody, smtptest.Always(smtptest.Then(smtptest.Reply(said), smtptest.Close())))
		cfg.Routes = routes{}
		d := after(t, 0)
		d.Recipients[0].Attempts, d.Recipients[0].LastCode = 1, map[byte]int{'2': 552, '4': 554}[said[2]]
		d.Body = newBody(strings.Repeat("x\r\n", 5<<20))
		if o := attempt(t, cfg, d); o.Result != queue.Deferred {
			t.Errorf("%s %v", o.Result, o.Reply)
		}
	}
}

// Another host of the domain is asked before the message fails.
func Test552TwiceNextHost(t *testing.T) {
	t.Parallel()
	servers, cfg := mxHosts(t, 2)
	servers[0].On(smtptest.PhaseBody, smtptest.Always(smtptest.Then(smtptest.Reply("552 5.3.4 too big"), smtptest.Close())))
	cfg.Routes = routes{}
	d := after(t, 552)
	d.Body = newBody(strings.Repeat("x\r\n", 5<<20))
	if o := attempt(t, cfg, d); o.Result != queue.Delivered || o.RemoteMTA != "mx2.one.test" {
		t.Errorf("%s %v by %s", o.Result, o.Reply, o.RemoteMTA)
	}
}

// TestMalformedReplies: a malformed reply is in the text that admins read, wherever it
// was said, in quotes and shortened.
func TestMalformedReplies(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é\x00\"\u202e", 20_000)
	for phase, where := range map[smtptest.Phase]string{
		smtptest.PhaseBanner: "before the greeting", smtptest.PhaseHello: "after EHLO", smtptest.PhaseMail: "after MAIL",
		smtptest.PhaseRcpt: "after RCPT", smtptest.PhaseData: "after DATA", smtptest.PhaseDot: "at the end of the message; it may have been delivered",
	} {
		for said, why := range map[string]string{
			"HTTP/1.1 400 Bad Request\r\n": `no reply code: "HTTP/1.1 400 Bad Request"`,
			"250-one\r\n550 two\r\n":       `code changes from 250: "550 two"`,
			"250_ok\r\n":                   `no space or hyphen behind the code: "250_ok"`,
			"250 ok\n":                     `line end is not CRLF: "250 ok"`,
			long:                           `too long: "é\x00\"\u202eé\x00`,
		} {
			t.Run(where+" "+why, func(t *testing.T) {
				t.Parallel()
				servers, cfg := mxHosts(t, 1)
				servers[0].On(phase, smtptest.Always(smtptest.Then(smtptest.Raw(said), smtptest.Close())))
				o := deliver(t, cfg, "user@one.test")
				if want := "451 4.5.0 conversation lost " + where + ", malformed reply: " + why; o.Result != queue.Deferred || !strings.HasPrefix(o.Reply.String(), want) {
					t.Errorf("%s %v, want %s", o.Result, o.Reply, want)
				}
				if len(o.Reply.Text) > 1000 || strings.ContainsFunc(o.Reply.Text, func(r rune) bool { return r < ' ' || r == '\u202e' }) {
					t.Errorf("%d octets: %s", len(o.Reply.Text), o.Reply.Text)
				}
			})
		}
	}
}
