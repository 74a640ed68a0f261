package delivery

import (
	"strings"
	"testing"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// Mail with REQUIRETLS goes to a server that has proved who it is and hands it on by the same rule, or
// nowhere (RFC 8689 section 4.2.1).
func TestRequireTLS(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	offers := []string{"PIPELINING", "8BITMIME", "REQUIRETLS"}
	for _, test := range []struct {
		name          string
		mode          upstream.TLSMode
		clear, secure []string
		want          queue.Result
	}{
		{"offered", upstream.TLSRequire, nil, offers, queue.Delivered},
		{"not offered", upstream.TLSRequire, nil, nil, queue.Failed},
		{"offered in clear", upstream.TLSRequire, offers, []string{"PIPELINING"}, queue.Failed},
		{"offered by one that is not verified", upstream.TLSOpportunistic, nil, offers, queue.Failed},
		{"without TLS", upstream.TLSNone, offers, nil, queue.Failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), Extensions: test.clear, ExtensionsTLS: test.secure})
			up := upstreamAt(server)
			up.TLS = test.mode
			if up.Verified() {
				up.CA = string(ca.PEM())
			}
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: up}})
			d := message(t, "user@one.test")
			d.Message.TLSNeed = queue.TLSRequired
			e.Take(d)
			q.waitEnded(t, 1)
			o := q.outcome(t, d, 0)
			if o.Result != test.want {
				t.Fatalf("%s %v", o.Result, o.Reply)
			}
			if test.want == queue.Delivered {
				if m := server.Messages(); !strings.HasSuffix(m[0].Mail, " REQUIRETLS") {
					t.Errorf("MAIL %s", m[0].Mail)
				}
			} else if server.Reached(smtptest.PhaseMail) != 0 || o.Reply.Code != 550 || o.Reply.Enhanced.String() != "5.7.30" {
				t.Errorf("%v after %d MAIL", o.Reply, server.Reached(smtptest.PhaseMail))
			}
			plain := message(t, "user@one.test")
			e.Take(plain)
			q.waitEnded(t, 2)
			if o := q.outcome(t, plain, 0); o.Result != queue.Delivered || strings.Contains(server.Messages()[len(server.Messages())-1].Mail, "REQUIRETLS") {
				t.Errorf("other mail: %s %v", o.Result, o.Reply)
			}
		})
	}
}

// The next way may have what the first one lacks; while it cannot be asked the mail waits.
func TestRequireTLSOverWays(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		ca := smtptest.NewCA(t)
		lacks := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1")})
		has := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), ExtensionsTLS: []string{"REQUIRETLS"}})
		first, second := upstreamAt(lacks), upstreamAt(has)
		for _, up := range []*upstream.Account{first, second} {
			up.TLS, up.CA = upstream.TLSRequire, string(ca.PEM())
		}
		second.Name = "other"
		if away {
			second.CA = string(smtptest.NewCA(t).PEM())
		}
		q := newFakeQueue()
		e := startEngine(t, q, Config{Routes: several{via(first).Ways[0], via(second).Ways[0]}})
		d := message(t, "user@one.test")
		d.Message.TLSNeed = queue.TLSRequired
		e.Take(d)
		q.waitEnded(t, 1)
		want := map[bool]queue.Result{false: queue.Delivered, true: queue.Deferred}[away]
		if o := q.outcome(t, d, 0); o.Result != want || len(lacks.Messages()) != 0 {
			t.Errorf("away %v: %s %v", away, o.Result, o.Reply)
		}
	}
}
