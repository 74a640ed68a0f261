package delivery

import (
	"context"
	"fmt"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// several is a route with several ways.
type several []route.Way

func (s several) Resolve(context.Context, int64, smtp.Address, smtp.Address) (route.Decision, error) {
	return route.Decision{Route: 1, Ways: s}, nil
}

func (s several) Named(_ context.Context, name string) (route.Way, error) {
	for _, w := range s {
		if w.Name == name {
			return w, nil
		}
	}
	return route.Way{Name: name, Err: fmt.Errorf("upstream %q is gone", name)}, nil
}

// wayTo is a way over an upstream, with the table of a provider.
func wayTo(name string, s *smtptest.Server) route.Way {
	up := upstreamAt(s)
	up.Name, up.Replies = name, upstream.Table("m365")
	return route.Way{Name: name, Upstream: up}
}

// Where a message of the matrix is to end.
const (
	atSecond = "second" // delivered by the second way
	waits    = "waits"  // for the first way
	doubt    = "in doubt"
	final    = "final" // refused by the first way
)

// TestP12FailoverMatrix: what the first way does, and what becomes of the message in the same
// attempt (docs/delivery.md).
func TestP12FailoverMatrix(t *testing.T) {
	t.Parallel()
	closed := smtptest.Always(smtptest.Close())
	leaving := smtptest.Always(smtptest.Then(smtptest.Reply("421 4.3.2 closing"), smtptest.Close()))
	const quota = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceeded"
	tests := []struct {
		name  string
		at    smtptest.Phase
		hook  smtptest.Hook
		want  string
		scope upstream.Scope // why the first way was left
	}{
		{"connect", smtptest.PhaseConnect, nil, atSecond, upstream.ScopeHost},
		{"greeting 421", smtptest.PhaseBanner, leaving, atSecond, upstream.ScopeConnection},
		{"greeting 554", smtptest.PhaseBanner, reply("554 5.3.2 no"), atSecond, upstream.ScopeHost},
		{"greeting closed", smtptest.PhaseBanner, closed, atSecond, upstream.ScopeHost},
		{"EHLO 550", smtptest.PhaseHello, reply("550 5.7.0 no"), atSecond, upstream.ScopeHost},
		{"EHLO closed", smtptest.PhaseHello, closed, atSecond, upstream.ScopeHost},
		{"STARTTLS 454", smtptest.PhaseStartTLS, reply("454 4.3.0 not now"), atSecond, upstream.ScopeHost},
		{"handshake closed", smtptest.PhaseHandshake, closed, atSecond, upstream.ScopeHost},
		{"AUTH 535", smtptest.PhaseAuth, reply("535 5.7.139 no"), atSecond, upstream.ScopeAccount},
		{"AUTH 454", smtptest.PhaseAuth, reply("454 4.7.0 not now"), atSecond, upstream.ScopeAccount},
		{"AUTH closed", smtptest.PhaseAuth, closed, atSecond, upstream.ScopeAccount},
		{"MAIL 421", smtptest.PhaseMail, leaving, atSecond, upstream.ScopeConnection},
		{"MAIL closed", smtptest.PhaseMail, closed, atSecond, upstream.ScopeConnection},
		{"MAIL reset", smtptest.PhaseMail, smtptest.Always(smtptest.Reset()), atSecond, upstream.ScopeConnection},
		{"MAIL 451", smtptest.PhaseMail, reply("451 4.2.0 later"), atSecond, ""},
		{"MAIL 452", smtptest.PhaseMail, reply("452 4.3.1 full"), atSecond, upstream.ScopeHost},
		{"MAIL account", smtptest.PhaseMail, reply("530 5.7.57 not authenticated"), atSecond, upstream.ScopeAccount},
		{"MAIL sender", smtptest.PhaseMail, reply("550 5.7.60 not as this sender"), atSecond, upstream.ScopeSender},
		{"MAIL 550", smtptest.PhaseMail, reply("550 5.7.1 no"), final, ""},
		{"RCPT 421", smtptest.PhaseRcpt, leaving, atSecond, upstream.ScopeConnection},
		{"RCPT closed", smtptest.PhaseRcpt, closed, atSecond, upstream.ScopeConnection},
		{"RCPT 450", smtptest.PhaseRcpt, reply("450 4.2.0 greylisted"), waits, ""},
		{"RCPT host", smtptest.PhaseRcpt, reply("451 4.3.0 trouble here"), atSecond, upstream.ScopeHost},
		{"RCPT account", smtptest.PhaseRcpt, reply("451 4.7.0 too fast"), atSecond, upstream.ScopeAccount},
		{"RCPT 550", smtptest.PhaseRcpt, reply("550 5.1.1 unknown"), final, ""},
		{"DATA 421", smtptest.PhaseData, leaving, atSecond, upstream.ScopeConnection},
		{"DATA closed", smtptest.PhaseData, closed, atSecond, upstream.ScopeConnection},
		{"DATA 451", smtptest.PhaseData, reply("451 4.2.0 later"), atSecond, ""},
		{"DATA account", smtptest.PhaseData, reply("554 5.2.0 SubmissionQuotaExceeded"), atSecond, upstream.ScopeAccount},
		{"DATA 554", smtptest.PhaseData, reply("554 5.6.0 no"), final, ""},
		{"dot 451", smtptest.PhaseDot, reply("451 4.3.0 later"), waits, ""},
		{"dot 421", smtptest.PhaseDot, leaving, waits, ""},
		{"dot account 4yz", smtptest.PhaseDot, reply("451 4.7.0 too fast"), waits, ""},
		{"dot account", smtptest.PhaseDot, reply(quota), atSecond, upstream.ScopeAccount},
		{"dot sender", smtptest.PhaseDot, reply("550 5.7.60 not as this sender"), atSecond, upstream.ScopeSender},
		{"dot 554", smtptest.PhaseDot, reply("554 5.6.0 no"), final, ""},
		{"dot closed", smtptest.PhaseDot, closed, doubt, ""},
		{"dot reset", smtptest.PhaseDot, smtptest.Always(smtptest.Reset()), doubt, ""},
	}
	ca := smtptest.NewCA(t)
	for i, test := range tests {
		for variant := range 8 {
			secured, pipelined, many := variant&1 != 0, variant&2 != 0, variant&4 != 0
			login := test.at == smtptest.PhaseAuth
			secured = secured || login || test.at == smtptest.PhaseStartTLS || test.at == smtptest.PhaseHandshake
			toMX := (i+variant/3)%2 == 0 && !login
			t.Run(fmt.Sprintf("%s, %d, TLS %v, pipelining %v, many %v, MX %v", test.name, variant, secured, pipelined, many, toMX), func(t *testing.T) {
				t.Parallel()
				cfg := smtptest.Config{Extensions: []string{"8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}}
				if pipelined {
					cfg.Extensions = append(cfg.Extensions, "PIPELINING")
				}
				if secured {
					cfg.TLS = ca.ServerConfig(t, "127.0.0.1")
				}
				if login {
					cfg.Users = map[string]string{"relay": "secret"}
				}
				m := newMatrix(t, cfg, toMX)
				if secured {
					m.secure(string(ca.PEM()), cfg.Users)
				}
				if m.first.On(test.at, test.hook); test.at == smtptest.PhaseConnect {
					m.first.Close()
				}
				rcpts := []string{"a@one.test"}
				for n := range 49 {
					if many {
						rcpts = append(rcpts, fmt.Sprintf("a%d@one.test", n))
					}
				}
				m.expect(t, message(t, rcpts...), test.want, test.scope)
			})
		}
	}
}

// matrix is a route of two ways.
type matrix struct {
	first, second *smtptest.Server
	ways          several
	cfg           Config
}

func newMatrix(t *testing.T, cfg smtptest.Config, toMX bool) *matrix {
	m := &matrix{first: smtptest.Start(t, cfg), second: smtptest.Start(t, cfg)}
	m.ways = several{wayTo("first", m.first), wayTo("second", m.second)}
	if toMX {
		m.ways[1] = route.Way{Name: route.MX}
		dns := &dnstest.Zones{}
		dns.AddMX("one.test", 10, "mx.one.test.")
		dns.AddHost("mx.one.test", "127.0.0.1")
		m.cfg = Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: m.second.Port(), AllowPrivateMX: true}}
	}
	m.cfg.Routes = m.ways
	return m
}

func (m *matrix) secure(ca string, users map[string]string) {
	for _, w := range m.ways {
		if w.Upstream != nil {
			w.Upstream.TLS, w.Upstream.CA = upstream.TLSRequire, ca
			for w.Upstream.Username, w.Upstream.Password = range users {
			}
		}
	}
}

// expect sends one message and looks at what both servers got and what was recorded.
func (m *matrix) expect(t *testing.T, d *queue.Delivery, want string, scope upstream.Scope) {
	t.Helper()
	q := newFakeQueue()
	e := startEngine(t, q, m.cfg)
	began := time.Now()
	e.Take(d)
	q.waitEnded(t, len(d.Recipients))
	t.Logf("ended after %v", time.Since(began))
	for n := range d.Recipients {
		o := q.outcome(t, d, n)
		result := map[string]queue.Result{atSecond: queue.Delivered, waits: queue.Deferred, doubt: queue.Deferred, final: queue.Failed}[want]
		way := "first"
		if want == atSecond {
			way = m.ways[1].Name
		}
		if o.Result != result || o.Upstream != way || o.Unknown != (want == doubt) || o.NotAnAttempt {
			t.Fatalf("recipient %d: %+v, want %s by %s", n, o, result, way)
		}
		switch {
		case want != atSecond && o.Left != nil:
			t.Errorf("recipient %d left %+v", n, *o.Left)
		case want == atSecond && (o.Left == nil || len(*o.Left) != 1 || (*o.Left)[0].Way != "first" || (*o.Left)[0].Scope != string(scope) || (*o.Left)[0].Reply == ""):
			t.Errorf("recipient %d: left %+v, want the first way for %q", n, o.Left, scope)
		}
	}
	got := m.second.Messages()
	if want != atSecond && m.second.Reached(smtptest.PhaseConnect) > 0 {
		t.Error("the second way was asked")
	}
	if want == atSecond && (len(got) != 1 || len(got[0].To()) != len(d.Recipients)) {
		t.Errorf("the second way got %d messages", len(got))
	}
	stop(t, e)
	dropped(t, d)
}
