package connect

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// proberFor has little patience and a table for DNS.
func proberFor(dns *dnstest.Zones, change func(*Config)) *Prober {
	cfg := Config{DNS: dns.Resolver(), Hello: "relay.test", AllowPrivateMX: true}
	if change != nil {
		change(&cfg)
	}
	return NewProber(cfg)
}

// A probe tells where a conversation ended, and never begins a transaction.
func TestProbeOfAnUpstream(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	good := smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay": "right"}}
	tests := []struct {
		name   string
		change func(cfg *smtptest.Config, up *upstream.Account, prober *Config)
		stage  smtp.Stage
		code   int
	}{
		{"good", nil, "", 0},
		{"wrong password", func(_ *smtptest.Config, up *upstream.Account, _ *Config) { up.Password = "wrong" }, smtp.StageAuth, 535},
		{"no AUTH", func(cfg *smtptest.Config, _ *upstream.Account, _ *Config) { cfg.Users = nil }, smtp.StageAuth, 0},
		{"foreign certificate", func(_ *smtptest.Config, up *upstream.Account, _ *Config) { up.CA = string(smtptest.NewCA(t).PEM()) }, smtp.StageTLS, 0},
		{"foreign certificate, implicit", func(cfg *smtptest.Config, up *upstream.Account, _ *Config) {
			cfg.Implicit, up.TLS, up.CA = true, upstream.TLSImplicit, string(smtptest.NewCA(t).PEM())
		}, smtp.StageTLS, 0},
		{"no STARTTLS", func(cfg *smtptest.Config, _ *upstream.Account, _ *Config) { cfg.TLS = nil }, smtp.StageTLS, 0},
		{"no such name", func(_ *smtptest.Config, up *upstream.Account, _ *Config) { up.Host = "gone.test" }, StageLookup, 0},
		{"itself", func(_ *smtptest.Config, up *upstream.Account, prober *Config) {
			prober.Self = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("0.0.0.0"), uint16(up.Port))}
		}, StageLoop, 0},
		{"refuses", func(cfg *smtptest.Config, _ *upstream.Account, _ *Config) {
			cfg.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("554 5.7.1 no"))}
		}, smtp.StageGreeting, 554},
		{"closed", func(_ *smtptest.Config, up *upstream.Account, _ *Config) { up.Port = 1 }, smtp.StageConnect, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			up := &upstream.Account{Name: "out", Host: "127.0.0.1", Port: 2587, TLS: upstream.TLSRequire, Username: "relay", Password: "right", CA: string(ca.PEM())}
			var dialling Config
			if test.change != nil {
				test.change(&cfg, up, &dialling)
			}
			server := smtptest.Start(t, cfg)
			if up.Port == 2587 && dialling.Self == nil {
				up.Port = server.Port()
			}
			p := proberFor(&dnstest.Zones{}, func(c *Config) { c.Self = dialling.Self }).Upstream(t.Context(), up, Trial{})
			if p.Stage != test.stage || p.Reply.Code != test.code || (p.Err == nil) != (test.stage == "") {
				t.Errorf("%+v, want stage %q and code %d", p, test.stage, test.code)
			}
			if p.Err == nil && (!strings.HasSuffix(p.TLS, "verified") || time.Until(p.Expires) < time.Hour || server.Reached(smtptest.PhaseQuit) != 1) {
				t.Errorf("%+v", p)
			}
			if server.Reached(smtptest.PhaseMail) != 0 {
				t.Error("a transaction was begun")
			}
		})
	}
}

// Each step is told in its order, and an address that was not needed is connected to as well. That
// it fails there keeps no mail back.
func TestProbeTellsItsSteps(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "out.test"), AuthOnly: true, Users: map[string]string{"relay": "right"}})
	dns := &dnstest.Zones{}
	dns.AddHost("out.test", "127.0.0.1", "127.0.0.9")
	up := &upstream.Account{Name: "out", Host: "out.test", Port: server.Port(), TLS: upstream.TLSRequire, CA: string(ca.PEM()), Username: "relay", Password: "right"}
	var steps []string
	p := proberFor(dns, nil).Upstream(t.Context(), up, Trial{
		Rehearse: true, From: smtp.Address{Local: "a", Domain: "a.test"}, To: smtp.Address{Local: "b", Domain: "b.test"},
		Tell: func(s Step) {
			text := string(s.Stage)
			if s.Err != nil {
				text += " failed at " + s.Addr.Addr().String()
			}
			steps = append(steps, text)
		},
	})
	want := "lookup, connect, greeting, ehlo, starttls, ehlo, auth, mail, rcpt, reset, quit, connect failed at 127.0.0.9"
	if got := strings.Join(steps, ", "); p.Err != nil || got != want || server.Reached(smtptest.PhaseData) != 0 {
		t.Errorf("%v\n%s, want\n%s", p.Err, got, want)
	}
}

// All mail hosts are tried, and told in the order of their preference.
func TestProbeOfMailHosts(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	dns := &dnstest.Zones{}
	dns.AddMX("there.test", 30, "gone.there.test")
	dns.AddMX("there.test", 10, "mx.there.test")
	dns.AddMX("there.test", 20, "closed.there.test")
	dns.AddMX("null.test", 0, ".")
	dns.AddHost("mx.there.test", "127.0.0.1")
	dns.AddHost("closed.there.test", "127.0.0.9")
	prober := proberFor(dns, func(c *Config) { c.MXPort = server.Port() })
	probes := prober.MX(t.Context(), "there.test")
	if len(probes) != 3 {
		t.Fatalf("%+v", probes)
	}
	for i, want := range []struct {
		host  string
		stage smtp.Stage
	}{{"mx.there.test", ""}, {"closed.there.test", smtp.StageConnect}, {"gone.there.test", StageLookup}} {
		if probes[i].Host != want.host || probes[i].Stage != want.stage {
			t.Errorf("%+v, want %+v", probes[i], want)
		}
	}
	// This server, by its address: what stands behind it is not tried, and only as the
	// first one it is at fault.
	self := proberFor(dns, func(c *Config) {
		c.MXPort, c.Self = server.Port(), []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), uint16(server.Port()))}
	})
	if p := self.MX(t.Context(), "there.test"); len(p) != 1 || p[0].Err != nil {
		t.Errorf("before this server: %+v", p)
	}
	if p := self.MX(t.Context(), "closed.there.test"); len(p) != 1 || p[0].Stage != StageLoop {
		t.Errorf("this server alone: %+v", p)
	}
	for _, domain := range []string{"null.test", "unknown.test"} {
		p := prober.MX(t.Context(), domain)
		if len(p) != 1 || !p[0].Permanent || p[0].Stage != StageLookup {
			t.Errorf("%s: %+v", domain, p)
		}
	}
}
