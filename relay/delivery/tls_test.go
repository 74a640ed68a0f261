package delivery

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// sendVia delivers one message over an upstream and returns its outcome.
func sendVia(t *testing.T, up *upstream.Account, cfg Config) queue.Outcome {
	t.Helper()
	q := newFakeQueue()
	cfg.Routes = routes{def: up}
	e := startEngine(t, q, cfg)
	d := message(t, "user@one.test")
	e.Take(d)
	q.waitEnded(t, 1)
	o := q.outcome(t, d, 0)
	stop(t, e)
	dropped(t, d)
	return o
}

// TestTLSModes meets each mode with each kind of server. A server's name is
// 127.0.0.1.
func TestTLSModes(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	now := time.Now()
	const me = "127.0.0.1"
	good := ca.ServerConfig(t, me)
	certs := map[string]*tls.Config{
		"good":    good,
		"expired": ca.LeafBetween(t, now.Add(-2*time.Hour), now.Add(-time.Hour), me).ServerConfig(),
		"other":   ca.ServerConfig(t, "other.test", "127.0.0.2"),
		"foreign": smtptest.NewCA(t).ServerConfig(t, me),
		"none":    nil,
	}
	const inClear, unverified, verified, deferred = "", "unverified", "verified", "deferred"
	tests := []struct {
		mode upstream.TLSMode
		cert string
		want string
	}{
		{upstream.TLSNone, "good", inClear},
		{upstream.TLSOpportunistic, "good", unverified},
		{upstream.TLSOpportunistic, "expired", unverified},
		{upstream.TLSOpportunistic, "other", unverified},
		{upstream.TLSOpportunistic, "foreign", unverified},
		{upstream.TLSOpportunistic, "none", inClear},
		{upstream.TLSRequire, "good", verified},
		{upstream.TLSRequire, "expired", deferred},
		{upstream.TLSRequire, "other", deferred},
		{upstream.TLSRequire, "foreign", deferred},
		{upstream.TLSRequire, "none", deferred},
		{upstream.TLSImplicit, "good", verified},
		{upstream.TLSImplicit, "expired", deferred},
		{upstream.TLSImplicit, "other", deferred},
		{upstream.TLSImplicit, "foreign", deferred},
	}
	for _, test := range tests {
		t.Run(string(test.mode)+" "+test.cert, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: certs[test.cert], Implicit: test.mode == upstream.TLSImplicit})
			up := upstreamAt(server)
			up.TLS = test.mode
			if up.Verified() {
				up.CA = string(ca.PEM())
			}
			o := sendVia(t, up, Config{})
			if test.want == deferred {
				if o.Result != queue.Deferred || o.Reply.Enhanced.Subject != 7 {
					t.Errorf("%s %v, want deferred 4.7.x", o.Result, o.Reply)
				}
				if n := len(server.Transactions()) + server.Reached(smtptest.PhaseMail); n != 0 {
					t.Error("something of the message was sent")
				}
				return
			}
			if o.Result != queue.Delivered || (o.TLS == "") != (test.want == inClear) || !strings.HasSuffix(o.TLS, test.want) {
				t.Errorf("%s, TLS %q; want delivered %q", o.Result, o.TLS, test.want)
			}
			if m := server.Messages(); len(m) != 1 || m[0].TLS != (test.want != inClear) {
				t.Errorf("messages %+v", m)
			}
		})
	}
}

// TestL2WeakCertificate: where a certificate is demanded, one with an RSA key that can be
// computed is none, nor is one that such a key signed. Where any is taken, they are too.
func TestL2WeakCertificate(t *testing.T) {
	t.Parallel()
	key := func(bits int) *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	weak, strong := key(1024), key(2048)
	ca, weakCA := smtptest.NewCA(t), smtptest.NewCAOf(t, weak)
	for _, test := range []struct {
		name string
		leaf smtptest.Leaf
		ca   *smtptest.CA
		mode upstream.TLSMode
		ok   bool
	}{
		{"1024 bits", ca.LeafOf(t, weak, "127.0.0.1"), ca, upstream.TLSRequire, false},
		{"1024 bits, implicit", ca.LeafOf(t, weak, "127.0.0.1"), ca, upstream.TLSImplicit, false},
		{"2047 bits", ca.LeafOf(t, key(2047), "127.0.0.1"), ca, upstream.TLSRequire, false},
		{"2048 bits", ca.LeafOf(t, strong, "127.0.0.1"), ca, upstream.TLSRequire, true},
		{"signed with 1024 bits", weakCA.Leaf(t, "127.0.0.1"), weakCA, upstream.TLSRequire, false},
		{"opportunistic", ca.LeafOf(t, weak, "127.0.0.1"), ca, upstream.TLSOpportunistic, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: test.leaf.ServerConfig(), Implicit: test.mode == upstream.TLSImplicit})
			up := upstreamAt(server)
			up.TLS = test.mode
			if up.Verified() {
				up.CA = string(test.ca.PEM())
			}
			o := sendVia(t, up, Config{})
			if test.ok && (o.Result != queue.Delivered || o.TLS == "") {
				t.Errorf("%s %v TLS %q", o.Result, o.Reply, o.TLS)
			}
			if !test.ok && (o.Result != queue.Deferred || !strings.Contains(o.Reply.Text, "RSA key of less than 2048 bits") || server.Reached(smtptest.PhaseMail) > 0) {
				t.Errorf("%s %v after %d MAIL", o.Result, o.Reply, server.Reached(smtptest.PhaseMail))
			}
		})
	}
}

// TestTLSFallsBack has servers whose TLS does not come about: opportunistic mail goes
// in clear over another connection, required TLS defers.
func TestTLSFallsBack(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	hooks := map[string]map[smtptest.Phase]smtptest.Hook{
		"closes in the handshake": {smtptest.PhaseHandshake: smtptest.Always(smtptest.Close())},
		"garbage in the handshake": {smtptest.PhaseHandshake: smtptest.Always(smtptest.Then(smtptest.Raw("no TLS here\r\n"),
			smtptest.Close()))},
		"stalls in the handshake": {smtptest.PhaseHandshake: smtptest.Always(smtptest.Stall())},
		"injects behind 220":      {smtptest.PhaseStartTLS: smtptest.Always(smtptest.Raw("220 go\r\n250-AUTH LOGIN\r\n250 X\r\n"))},
		"refuses by 454":          {smtptest.PhaseStartTLS: smtptest.Always(smtptest.Reply("454 4.7.0 not now"))},
		"refuses by 501":          {smtptest.PhaseStartTLS: smtptest.Always(smtptest.Reply("501 5.5.2 no"))},
		"421 to STARTTLS": {smtptest.PhaseStartTLS: smtptest.Always(smtptest.Then(smtptest.Reply("421 4.7.0 bye"),
			smtptest.Close()))},
	}
	for name, hook := range hooks {
		for _, mode := range []upstream.TLSMode{upstream.TLSOpportunistic, upstream.TLSRequire} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				t.Parallel()
				server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), Hooks: hook})
				up := upstreamAt(server)
				up.TLS = mode
				if mode == upstream.TLSRequire {
					up.CA = string(ca.PEM())
				}
				var limits smtp.Timeouts
				if strings.HasPrefix(name, "stalls") { // the others may be slow on a busy machine
					limits.TLS = 100 * time.Millisecond
				}
				o := sendVia(t, up, Config{Connect: connect.Config{Timeouts: limits}})
				if mode == upstream.TLSRequire || strings.HasPrefix(name, "421") {
					if o.Result != queue.Deferred || server.Reached(smtptest.PhaseMail) != 0 {
						t.Errorf("%s %v after %d MAIL, want deferred", o.Result, o.Reply, server.Reached(smtptest.PhaseMail))
					}
					return
				}
				if o.Result != queue.Delivered || o.TLS != "" {
					t.Errorf("%s %v TLS %q, want delivered in clear", o.Result, o.Reply, o.TLS)
				}
				if refused := strings.HasPrefix(name, "refuses"); refused != (server.Conns() == 1) {
					t.Errorf("%d connections", server.Conns())
				}
			})
		}
	}
}

func TestAuth(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	users := map[string]string{"relay": "secret"}
	tests := []struct {
		name     string
		implicit bool
		password string
		hooks    map[smtptest.Phase]smtptest.Hook
		want     queue.Result
	}{
		{name: "PLAIN under STARTTLS", password: "secret", want: queue.Delivered},
		{name: "PLAIN under implicit TLS", implicit: true, password: "secret", want: queue.Delivered},
		{name: "wrong password", password: "wrong", want: queue.Deferred},
		{name: "454", password: "secret", want: queue.Deferred, hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseAuth: smtptest.Always(smtptest.Reply("454 4.7.0 not now")),
		}},
		{name: "closed", password: "secret", want: queue.Deferred, hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseAuth: smtptest.Always(smtptest.Close()),
		}},
		{name: "LOGIN only", password: "secret", want: queue.Delivered, hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseHello: smtptest.Always(smtptest.Reply("250-fake.test", "250-STARTTLS", "250 AUTH LOGIN")),
		}},
		{name: "nothing known", password: "secret", want: queue.Deferred, hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseHello: smtptest.Always(smtptest.Reply("250-fake.test", "250-STARTTLS", "250 AUTH GSSAPI")),
		}},
		{name: "offered in clear only", password: "secret", want: queue.Deferred, hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseHello: func(s smtptest.Session) smtptest.Action {
				if s.TLS {
					return smtptest.Reply("250 fake.test")
				}
				return smtptest.Reply("250-fake.test", "250-STARTTLS", "250 AUTH PLAIN")
			},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{
				TLS: ca.ServerConfig(t, "127.0.0.1"), Implicit: test.implicit, Users: users, Hooks: test.hooks,
			})
			up := upstreamAt(server)
			up.TLS, up.CA = upstream.TLSRequire, string(ca.PEM())
			if test.implicit {
				up.TLS = upstream.TLSImplicit
			}
			up.Username, up.Password = "relay", test.password
			o := sendVia(t, up, Config{})
			if o.Result != test.want {
				t.Fatalf("%s %v, want %s", o.Result, o.Reply, test.want)
			}
			if o.Result == queue.Delivered {
				if m := server.Messages(); m[0].User != "relay" || !m[0].TLS {
					t.Errorf("message %+v", m[0])
				}
			}
			if strings.Contains(o.Reply.Text, test.password) {
				t.Error("the reply holds the password")
			}
		})
	}
}

// TestP10OtherMechanism: a mechanism that is refused is no refusal of the account, and
// the other one that is offered is tried over the same connection. After 535, and
// whatever else speaks of the account, there is no second try.
func TestP10OtherMechanism(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	const both, onlyPlain = "250 AUTH LOGIN PLAIN", "250 AUTH PLAIN"
	tests := []struct {
		offer        string
		plain, login string // what is said to it; "" for the truth
		tried        int
		reply        string // of the deferral; "" when it is delivered
	}{
		{both, "504 5.5.4 unknown mechanism", "", 2, ""},
		{both, "504 not here", "", 2, ""},
		{both, "534 5.7.1 too weak", "", 2, ""},
		{both, "534 no", "", 2, ""},
		{both, "534 5.5.9 odd", "", 2, ""},
		{both, "", "504 5.5.4 unknown mechanism", 1, ""},
		{both, "504 5.5.4 first", "504 5.5.4 second", 2, "504 5.5.4 second"},
		{both, "504 5.5.4 first", "535 5.7.8 wrong", 2, "535 5.7.8 wrong"},
		{both, "504 5.5.4 first", "-", 2, "504 5.5.4 first"},
		{onlyPlain, "504 5.5.4 unknown mechanism", "", 1, "504 5.5.4 unknown mechanism"},
		{both, "535 5.7.8 wrong", "", 1, "535 5.7.8 wrong"},
		{both, "535 5.7.139 disabled", "", 1, "535 5.7.139 disabled"},
		{both, "534 5.7.9 application password required", "", 1, "534 5.7.9 application password required"},
		{both, "534 5.7.14 log in by browser", "", 1, "534 5.7.14 log in by browser"},
		{both, "530 5.7.0 STARTTLS first", "", 1, "530 5.7.0 STARTTLS first"},
		{both, "538 5.7.11 encryption required", "", 1, "538 5.7.11 encryption required"},
		{both, "454 4.7.0 not now", "", 1, "454 4.7.0 not now"},
		{both, "501 5.5.2 no", "", 1, "501 5.5.2 no"},
	}
	for _, test := range tests {
		t.Run(test.plain+" "+test.login, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), Users: map[string]string{"relay": "secret"},
				Hooks: map[smtptest.Phase]smtptest.Hook{
					smtptest.PhaseHello: smtptest.Always(smtptest.Reply("250-fake.test", "250-STARTTLS", test.offer)),
					smtptest.PhaseAuth: func(s smtptest.Session) smtptest.Action {
						said := test.login
						if strings.HasPrefix(s.Command, "AUTH PLAIN") {
							said = test.plain
						}
						switch said {
						case "":
							return smtptest.Normal()
						case "-":
							return smtptest.Close()
						}
						return smtptest.Reply(said)
					},
				}})
			up := upstreamAt(server)
			up.TLS, up.CA, up.Username, up.Password = upstream.TLSRequire, string(ca.PEM()), "relay", "secret"
			o := sendVia(t, up, Config{})
			if test.reply == "" && o.Result != queue.Delivered || test.reply != "" && (o.Result != queue.Deferred || o.Reply.String() != test.reply) {
				t.Errorf("%s %v, want %q", o.Result, o.Reply, test.reply)
			}
			if tried := server.Reached(smtptest.PhaseAuth); tried != test.tried || server.Conns() != 1 {
				t.Errorf("%d tries over %d connections, want %d over one", tried, server.Conns(), test.tried)
			}
		})
	}
}

// TestNoCredentialsInClear has an account without verified TLS, which the store
// refuses and the attempt refuses again.
func TestNoCredentialsInClear(t *testing.T) {
	t.Parallel()
	for _, mode := range []upstream.TLSMode{upstream.TLSNone, upstream.TLSOpportunistic} {
		server := smtptest.Start(t, smtptest.Config{Users: map[string]string{"relay": "secret"}})
		up := upstreamAt(server)
		up.TLS, up.Username, up.Password = mode, "relay", "secret"
		if o := sendVia(t, up, Config{}); o.Result != queue.Deferred {
			t.Errorf("%s: %s %v, want deferred", mode, o.Result, o.Reply)
		}
		if n := server.Conns(); n != 0 {
			t.Errorf("%s: %d connections", mode, n)
		}
	}
}
