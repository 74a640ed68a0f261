package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/foxcpp/go-mockdns"

	"postern/auth"
	"postern/internal/smtptest"
	"postern/relay/delivery"
	"postern/relay/route"
)

func accountFaults() []fault {
	return []fault{
		{"account.ok", "1 of 1 users", nothing},
		{"account.none", "no user", sql(`delete from app_user`)},
		{"account.nobody", "1 users", sql(`update app_user set enabled = false`)},
		{"account.nobody", "1 users", sql(`update credential set revoked_at = now()`)},
		{"account.no-login", "bob@example.com", sql(`insert into app_user (name) values ('bob@example.com')`)},
		{"account.no-sender", "scanner", addUser("scanner")},
	}
}

func addUser(name string, senders ...string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		_, err := auth.NewStore(p.pool).AddUser(t.Context(), auth.NewUser{Name: name, Password: "a good password", Senders: senders})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckFindsFaultsOfTheAccounts(t *testing.T) {
	t.Parallel()
	find(t, accountFaults(), "account", admitted)
}

func routeFaults() []fault {
	return []fault{
		{"route.ok", "1 in all", nothing},
		{"route.none", "none", sql(`delete from route`)},
		{"route.no-default", "1 rules, none", sql(`update route set sender_domain = 'example.com'`)},
		{"route.gone", `names "out"`, func(t *testing.T, p *patient) {
			p.upstream(t, route.Upstream{Host: "127.0.0.1", Port: 25, TLS: route.TLSNone})
			p.sql(t, `alter table route_upstream drop constraint route_upstream_upstream_fkey`)
			p.sql(t, `delete from upstream`)
		}},
		{"route.user-gone", "route", func(t *testing.T, p *patient) { p.route(t, route.Rule{UserID: 4711}) }},
		{"route.unused", "upstream out", func(t *testing.T, p *patient) {
			p.upstream(t, route.Upstream{Host: "127.0.0.1", Port: 25, TLS: route.TLSNone})
			p.route(t, route.Rule{})
		}},
		{"route.sealed", "does not open its password", func(t *testing.T, p *patient) {
			p.upstream(t, route.Upstream{Host: "127.0.0.1", Port: 25, TLS: route.TLSRequire, Username: "u", Password: "p"})
			p.write(t, "secret.key", string(slices.Repeat([]byte("x"), route.KeySize)))
		}},
	}
}

func TestCheckFindsFaultsOfTheRoutes(t *testing.T) {
	t.Parallel()
	find(t, routeFaults(), "route", admitted)
}

// smarthost starts a server with an account and sends all mail there.
func smarthost(change func(*smtptest.Config, *route.Upstream)) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		cfg := smtptest.Config{TLS: p.ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay": "right"}}
		up := route.Upstream{Host: "127.0.0.1", TLS: route.TLSRequire, Username: "relay", Password: "right", CA: string(p.ca.PEM())}
		change(&cfg, &up)
		server := smtptest.Start(t, cfg)
		if up.Port == 0 {
			up.Port = server.Port()
		}
		p.upstream(t, up)
		t.Cleanup(func() {
			if n := server.Reached(smtptest.PhaseMail); n > 0 {
				t.Errorf("the check began %d transactions", n)
			}
		})
	}
}

func asIs(*smtptest.Config, *route.Upstream) {}

func upstreamFaults() []fault {
	return []fault{
		{"upstream.ok", "it takes the account relay", smarthost(asIs)},
		{"upstream.expiring", "on", smarthost(asIs)}, // it lives for a day
		{"upstream.lookup", "nowhere.test", smarthost(func(_ *smtptest.Config, up *route.Upstream) { up.Host = "nowhere.test" })},
		{"upstream.unreachable", "refused", func(t *testing.T, p *patient) {
			at := netip.MustParseAddrPort(closedPort(t))
			p.upstream(t, route.Upstream{Host: "127.0.0.1", Port: int(at.Port()), TLS: route.TLSNone})
		}},
		{"upstream.tls", "unknown authority", smarthost(func(cfg *smtptest.Config, up *route.Upstream) { up.CA = "" })},
		{"upstream.tls", "expired", func(t *testing.T, p *patient) {
			smarthost(func(cfg *smtptest.Config, _ *route.Upstream) {
				cfg.TLS = p.ca.LeafBetween(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "127.0.0.1").ServerConfig()
			})(t, p)
		}},
		{"upstream.tls", "does not offer STARTTLS", smarthost(func(cfg *smtptest.Config, _ *route.Upstream) { cfg.TLS = nil })},
		{"upstream.tls", "valid for other.test", func(t *testing.T, p *patient) {
			p.zones["out.test."] = mockdns.Zone{A: []string{"127.0.0.1"}}
			smarthost(func(cfg *smtptest.Config, up *route.Upstream) {
				cfg.TLS, up.Host = p.ca.ServerConfig(t, "other.test"), "out.test"
			})(t, p)
		}},
		{"upstream.account", "535", smarthost(func(_ *smtptest.Config, up *route.Upstream) { up.Password = "wrong" })},
		{"upstream.account", "neither AUTH PLAIN nor AUTH LOGIN", smarthost(func(cfg *smtptest.Config, _ *route.Upstream) { cfg.Users = nil })},
		{"upstream.refuses", "554 5.7.1 go away", smarthost(func(cfg *smtptest.Config, _ *route.Upstream) {
			cfg.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("554 5.7.1 go away"))}
		})},
		{"upstream.self", "is a listener of this server", func(t *testing.T, p *patient) {
			p.c.cfg.Listeners[0].Address = "0.0.0.0:2587"
			p.upstream(t, route.Upstream{Host: "127.0.0.1", Port: 2587, TLS: route.TLSNone})
		}},
	}
}

func TestCheckFindsFaultsOfTheUpstreams(t *testing.T) {
	t.Parallel()
	find(t, upstreamFaults(), "upstream", admitted)
}

// What is in clear is no fault on this machine, where all tests are.
func TestCheckJudgesUpstreamsInClear(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	for _, test := range []struct {
		mode route.TLSMode
		at   string
		want bool
	}{
		{route.TLSNone, "192.0.2.1:25", true}, {route.TLSOpportunistic, "192.0.2.1:25", true},
		{route.TLSImplicit, "192.0.2.1:465", false}, {route.TLSNone, "127.0.0.1:25", false},
	} {
		r := &report{}
		p.c.upstream(r, route.Upstream{Name: "out", TLS: test.mode}, delivery.Probe{Addr: netip.MustParseAddrPort(test.at), Expires: time.Now().AddDate(1, 0, 0)})
		found := r.close()
		if test.want {
			wantFinding(t, found, "upstream.clear", string(test.mode))
		} else {
			wantNone(t, found, "upstream.clear")
		}
	}
}

// The key and the passwords are read by the check and changed by nobody.
func TestCheckTriesEachUpstream(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	servers := map[string]*smtptest.Server{}
	for _, name := range []string{"a", "b", "c"} {
		servers[name] = smtptest.Start(t, smtptest.Config{TLS: p.ca.ServerConfig(t, "127.0.0.1"), Implicit: true})
		up := route.Upstream{Name: name, Host: "127.0.0.1", Port: servers[name].Port(), TLS: route.TLSImplicit, CA: string(p.ca.PEM())}
		if err := p.routes(t).AddUpstream(t.Context(), up); err != nil {
			t.Fatal(err)
		}
	}
	var order []string
	for _, f := range p.look(t.Context(), "upstream") {
		if f.ID == "upstream.ok" {
			order = append(order, f.Subject)
		}
	}
	if want := []string{"upstream a", "upstream b", "upstream c"}; !slices.Equal(order, want) {
		t.Errorf("%q, want %q", order, want)
	}
	for name, s := range servers {
		if s.Conns() != 1 || s.Reached(smtptest.PhaseQuit) != 1 {
			t.Errorf("%s: %d connections, %d with QUIT", name, s.Conns(), s.Reached(smtptest.PhaseQuit))
		}
	}
}
