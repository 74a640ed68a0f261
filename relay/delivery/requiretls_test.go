package delivery

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
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
			up.TLS, up.DKIM = test.mode, dkim.Both
			if up.Verified() {
				up.CA = string(ca.PEM())
			}
			q := newFakeQueue()
			e := startEngine(t, q, Config{Routes: routes{def: up}})
			d := message(t, "user@one.test")
			d.Message.TLSNeed = smtp.TLSRequired
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
			unsigned := int64(0)
			for _, u := range e.Unsigned() {
				unsigned += u.Transactions
			}
			if sent := int64(server.Reached(smtptest.PhaseMail)); unsigned != sent {
				t.Errorf("%d went unsigned of %d that the server heard of", unsigned, sent)
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

// A notice about mail with REQUIRETLS keeps the need where the way back offers it, and goes elsewhere
// without it: nobody but its reader hears of the failure (RFC 8689 section 5).
func TestRequireTLSOfNotices(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	for _, test := range []struct {
		name   string
		mode   upstream.TLSMode
		secure []string
		keeps  bool
	}{
		{"offered", upstream.TLSRequire, []string{"REQUIRETLS"}, true},
		{"not offered", upstream.TLSRequire, nil, false},
		{"offered by one that is not verified", upstream.TLSOpportunistic, []string{"REQUIRETLS"}, false},
		{"without TLS", upstream.TLSNone, nil, false},
	} {
		server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), ExtensionsTLS: test.secure})
		up := upstreamAt(server)
		up.TLS, up.CA = test.mode, string(ca.PEM())
		d := message(t, "user@one.test")
		d.Message.TLSNeed, d.Message.UserID, d.Message.Sender = smtp.TLSRequired, 0, smtp.Address{}
		o := attempt(t, Config{Routes: routes{def: up}}, d)
		if o.Result != queue.Delivered {
			t.Errorf("%s: %s %v", test.name, o.Result, o.Reply)
		} else if mail := server.Messages()[0].Mail; strings.Contains(mail, "REQUIRETLS") != test.keeps {
			t.Errorf("%s: MAIL %s", test.name, mail)
		}
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
		d.Message.TLSNeed = smtp.TLSRequired
		e.Take(d)
		q.waitEnded(t, 1)
		want := map[bool]queue.Result{false: queue.Delivered, true: queue.Deferred}[away]
		if o := q.outcome(t, d, 0); o.Result != want || len(lacks.Messages()) != 0 {
			t.Errorf("away %v: %s %v", away, o.Result, o.Reply)
		}
	}
}

// While a better host cannot be reached, or TLS with it fails, mail that needs TLS waits, though
// another host lacks it: the relay's DNS or the network may be at fault.
func TestRequireTLSWaits(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		spoil func(*smtptest.Server, *dnstest.Zones)
		want  string
	}{
		"all lack it":      {func(*smtptest.Server, *dnstest.Zones) {}, "5.7.30"},
		"the first is off": {func(s *smtptest.Server, _ *dnstest.Zones) { s.Close() }, "4.7.30"},
		"no answer":        {func(_ *smtptest.Server, z *dnstest.Zones) { z.ServFail("mx1.one.test") }, "4.7.30"},
		"no address":       {func(_ *smtptest.Server, z *dnstest.Zones) { z.Forget("mx1.one.test") }, "5.7.30"},
	} {
		servers, port := hosts(t, 2)
		z := &dnstest.Zones{}
		z.AddMX("one.test", 10, "mx1.one.test.")
		z.AddMX("one.test", 20, "mx2.one.test.")
		z.AddHost("mx1.one.test", "127.0.0.2")
		z.AddHost("mx2.one.test", "127.0.0.3")
		test.spoil(servers[0], z)
		d := message(t, "user@one.test")
		d.Message.TLSNeed = smtp.TLSRequired
		o := attempt(t, Config{Routes: routes{}, Connect: connect.Config{DNS: z.Resolver(), MXPort: port}}, d)
		if o.Reply.Enhanced.String() != test.want || (o.Result == queue.Failed) != (test.want == "5.7.30") {
			t.Errorf("%s: %s %v", what, o.Result, o.Reply)
		}
	}
}

// A host that only DNSSEC could prove keeps mail waiting while the name server does not validate,
// though the next host lacks REQUIRETLS.
func TestRequireTLSUnproved(t *testing.T) {
	t.Parallel()
	for _, validates := range []bool{false, true} {
		first := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0", TLS: smtptest.NewCA(t).ServerConfig(t, "mx1.one.test"), ExtensionsTLS: []string{"REQUIRETLS"}})
		smtptest.Start(t, smtptest.Config{Addr: net.JoinHostPort("127.0.0.3", strconv.Itoa(first.Port()))})
		z := &dnstest.Zones{}
		z.AddMX("one.test", 10, "mx1.one.test.")
		z.AddMX("one.test", 20, "mx2.one.test.")
		z.AddHost("mx1.one.test", "127.0.0.2")
		z.AddHost("mx2.one.test", "127.0.0.3")
		if validates {
			z.Sign("signed.test")
		}
		d := message(t, "user@one.test")
		d.Message.TLSNeed = smtp.TLSRequired
		o := attempt(t, Config{Routes: routes{}, Connect: connect.Config{DNS: z.Resolver(), MXPort: first.Port()}}, d)
		if want := map[bool]string{false: "4.7.30", true: "5.7.30"}[validates]; o.Reply.Enhanced.String() != want || o.RemoteMTA != "mx2.one.test" {
			t.Errorf("validates %v: %s %v", validates, o.RemoteMTA, o.Reply)
		}
	}
}

// The demands of a domain may change while a connection is open: after a while mail goes over another.
func TestOldConnection(t *testing.T) {
	t.Parallel()
	servers, port := hosts(t, 1)
	z := &dnstest.Zones{}
	z.AddHost("one.test", "127.0.0.2")
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{}, IdleTime: time.Hour, Connect: connect.Config{DNS: z.Resolver(), MXPort: port, AllowPrivateMX: true}})
	for i, want := range []int{1, 1, 2} {
		d := message(t, "user@one.test")
		e.Take(d)
		q.waitEnded(t, i+1)
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered || servers[0].Conns() != want {
			t.Fatalf("message %d: %s %v over %d connections", i, o.Result, o.Reply, servers[0].Conns())
		}
		dest := rested(t, e, queue.Way(route.MX, "one.test"))
		if i == 1 {
			dest.mu.Lock()
			dest.idle[0].conn.opened = time.Now().Add(-demandTime)
			dest.mu.Unlock()
		}
	}
}
