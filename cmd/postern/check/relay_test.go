package check

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/internal/smtptest"
)

// tight is a server that behaves as an outsider wants it.
func tight(t *testing.T, p *patient) smtptest.Config {
	return smtptest.Config{
		TLS: p.served(t), AuthOnly: true, Users: map[string]string{"alice": "secret"},
		Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseMail: smtptest.Always(smtptest.Reply("530 5.7.0 Authentication required"))},
	}
}

// standsAt starts a server at the patient's listener.
func standsAt(change func(t *testing.T, p *patient, cfg *smtptest.Config)) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		cfg := tight(t, p)
		change(t, p, &cfg)
		server := smtptest.Start(t, cfg)
		p.c.cfg.Listeners[0].Address = server.Addr()
		t.Cleanup(func() {
			if n := server.Reached(smtptest.PhaseData); n > 0 {
				t.Errorf("DATA was said %d times", n)
			}
			if n := server.Reached(smtptest.PhaseAuth); n > 1 {
				t.Errorf("%d passwords were tried", n)
			}
		})
	}
}

func hook(phase smtptest.Phase, replies ...string) func(*testing.T, *patient, *smtptest.Config) {
	return func(_ *testing.T, _ *patient, cfg *smtptest.Config) {
		cfg.Hooks[phase] = smtptest.Always(smtptest.Reply(replies...))
	}
}

func relayFaults() []fault {
	return []fault{
		{"relay.closed", "mail needs AUTH", nothing},
		{"relay.closed", "mail needs AUTH", func(t *testing.T, p *patient) { // implicit
			standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) { cfg.Implicit = true })(t, p)
			p.c.cfg.Listeners[0].TLS = "implicit"
		}},
		{"relay.down", "refused", func(t *testing.T, p *patient) { p.c.cfg.Listeners[0].Address = closedPort(t) }},
		{"relay.unreachable", "refused", func(t *testing.T, p *patient) { p.c.opts.Connect = []string{closedPort(t)} }},
		{"relay.lookup", "nowhere.test", func(_ *testing.T, p *patient) { p.c.opts.Connect = []string{"nowhere.test:587"} }},
		{"relay.unreachable", "refused", func(t *testing.T, p *patient) { // a word is for the hosts file, and all its addresses are tried
			_, port, _ := net.SplitHostPort(closedPort(t))
			p.dns.Set("gate.", "A 127.0.0.1", "AAAA ::1")
			p.c.opts.Connect = []string{"gate:" + port}
		}},
		{"relay.balanced", "not in its proxy_protocol", balanced},
		{"relay.talk", "554 not now", standsAt(hook(smtptest.PhaseBanner, "554 not now"))},
		{"relay.talk", "", listening(func(t *testing.T, _ *patient) string { return greeter(t, "+OK POP3\r\n") })},
		{"relay.open", "in clear: MAIL: 250", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) { cfg.Hooks, cfg.Users = nil, nil })},
		{"relay.open", "under TLS: MAIL: 250", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) {
			cfg.Hooks[smtptest.PhaseMail] = func(s smtptest.Session) smtptest.Action {
				if s.TLS {
					return smtptest.Reply("250 2.1.0 ok")
				}
				return smtptest.Reply("530 5.7.0 Must issue a STARTTLS command first")
			}
		})},
		{"relay.mail", "RCPT: 550 5.7.1 no", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) {
			cfg.Hooks[smtptest.PhaseMail] = smtptest.Always(smtptest.Reply("250 2.1.0 ok"))
			cfg.Hooks[smtptest.PhaseRcpt] = smtptest.Always(smtptest.Reply("550 5.7.1 no"))
		})},
		{"relay.auth-clear", "AUTH PLAIN LOGIN", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) { cfg.AuthOnly = false })},
		{"relay.no-tls", "it offers", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) { cfg.TLS = nil })},
		{"relay.no-tls", "454 4.7.0 no", standsAt(hook(smtptest.PhaseStartTLS, "454 4.7.0 no"))},
		{"relay.no-auth", "it offers", standsAt(func(_ *testing.T, _ *patient, cfg *smtptest.Config) { cfg.Users = nil })},
		{"relay.any-password", "235", standsAt(hook(smtptest.PhaseAuth, "235 2.7.0 welcome"))},
		{"relay.certificate", "for other.test", standsAt(func(t *testing.T, p *patient, cfg *smtptest.Config) { cfg.TLS = p.ca.ServerConfig(t, "other.test") })},
		{"relay.untrusted", "not relay.test", func(t *testing.T, p *patient) {
			standsAt(func(t *testing.T, p *patient, cfg *smtptest.Config) { cfg.TLS = p.ca.ServerConfig(t, "other.test") })(t, p)
			p.c.opts.Connect = []string{p.c.cfg.Listeners[0].Address}
		}},
		{"relay.untrusted", "an RSA key of less than 2048 bits", func(t *testing.T, p *patient) {
			standsAt(func(t *testing.T, p *patient, cfg *smtptest.Config) {
				key, err := rsa.GenerateKey(rand.Reader, 1024)
				if err != nil {
					t.Fatal(err)
				}
				cfg.TLS = p.ca.LeafOf(t, key, patientName).ServerConfig()
			})(t, p)
			p.c.opts.Connect = []string{p.c.cfg.Listeners[0].Address}
		}},
	}
}

func TestCheckFindsAnOpenRelay(t *testing.T) {
	t.Parallel()
	find(t, relayFaults(), "relay", standsAt(func(*testing.T, *patient, *smtptest.Config) {}))
}

// A listener whose mode is not known is given time to greet before TLS is tried.
func TestCheckFindsOutHowToConnect(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	cfg := tight(t, p)
	cfg.Implicit = true
	p.c.opts.Connect = []string{smtptest.Start(t, cfg).Addr()}
	found := p.look(t.Context(), "relay")
	wantFinding(t, found, "relay.closed", "mail needs AUTH")
}

// The same fault in many places: one that never answers keeps nothing of the others
// back, and the check ends.
func TestCheckEndsInTime(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	viewed(t, p)
	asked, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	p.c.now = sync.OnceValue(func() time.Time { // of the certificate: it does not even look at its context
		close(asked)
		<-release
		return time.Now()
	})
	p.c.limit = time.Second
	found := p.look(t.Context(), "config", "certificate", "account")
	wantFinding(t, found, "check.unfinished", "not done after 1s")
	wantFinding(t, found, "config.ok", "every key")
	<-asked
}

// Who connects to a listener behind a load balancer says for whom, also the check.
func TestCheckSpeaksThePROXYProtocol(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		listener config.Listener
		want     door
	}{
		{config.Listener{Address: "0.0.0.0:587", TLS: "starttls"}, door{"127.0.0.1:587", "starttls", true, false, false}},
		{config.Listener{Address: "0.0.0.0:587", TLS: "starttls", ProxyProtocol: []string{"10.0.0.0/8"}}, door{"127.0.0.1:587", "starttls", true, false, true}},
		{config.Listener{Address: "0.0.0.0:465", TLS: "implicit", ProxyProtocol: []string{"10.0.0.0/8", "127.0.0.1"}}, door{"127.0.0.1:465", "implicit", true, true, false}},
		{config.Listener{Address: "10.1.1.1:465", TLS: "implicit", ProxyProtocol: []string{"10.0.0.0/8"}}, door{"10.1.1.1:465", "implicit", true, true, false}},
		{config.Listener{Address: config.HandedOver + "submissions", TLS: "implicit"}, door{"127.0.0.1:465", "implicit", true, false, false}},
	} {
		if got := doorOf(test.listener); got != test.want {
			t.Errorf("%+v: %+v", test.listener, got)
		}
	}
	heard := make(chan string, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		heard <- line
	}()
	_, _, _ = dialTalk(t.Context(), door{address: ln.Addr().String(), tls: "starttls", proxied: true}, patientName)
	if got := <-heard; got != "PROXY UNKNOWN\r\n" {
		t.Errorf("heard %q", got)
	}
}

// balanced has a listener that closes whoever is no load balancer without a word.
func balanced(t *testing.T, p *patient) {
	l := &p.c.cfg.Listeners[0]
	l.Address, l.ProxyProtocol = greeter(t, ""), []string{"10.0.0.0/8"}
}

// A server behind a load balancer is in good health though it does not talk to the check.
func TestCheckOfAListenerForLoadBalancers(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	livingNode(patientName)(t, p)
	balanced(t, p)
	found := p.look(t.Context(), "port", "database", "relay")
	wantFinding(t, found, "node.ok", patientName)
	for _, f := range found {
		if area, _, _ := strings.Cut(f.ID, "."); f.Status == health.Failed && area != "db" {
			t.Errorf("%+v", f)
		}
	}
}
