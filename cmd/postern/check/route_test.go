package check

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
)

// seen changes what the database says.
func seen(change func(v *mailView)) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { change(p.view) }
}

func accountFaults() []fault {
	return []fault{
		{"account.ok", "1 of 1 user can log in", nothing},
		{"account.ok", "others were not checked", seen(func(v *mailView) { v.more = true })},
		{"account.none", "no user", seen(func(v *mailView) { v.users = nil })},
		{"account.nobody", "1 user,", seen(func(v *mailView) { v.users[0].Enabled = false })},
		{"account.nobody", "1 user,", seen(func(v *mailView) { v.users[0].Credentials = 0 })},
		{"account.no-login", "no working credential: bob@example.com", seen(func(v *mailView) {
			v.users = append(v.users, auth.User{ID: 2, Name: "bob@example.com", Enabled: true})
		})},
		{"account.no-sender", "no address: scanner", withUser("scanner")},
	}
}

func TestCheckFindsFaultsOfTheAccounts(t *testing.T) {
	t.Parallel()
	find(t, accountFaults(), "account", viewed)
}

func routeFaults() []fault {
	return []fault{
		{"route.ok", "1 in all", nothing},
		{"route.none", "none", seen(func(v *mailView) { v.rules = nil })},
		{"route.no-default", "1 route, none", seen(func(v *mailView) { v.rules[0].SenderDomain = "example.com" })},
		{"route.gone", `route 1 names "out"`, seen(func(v *mailView) { v.rules[0].Via = []string{"out"} })},
		{"route.hidden", "route 2 comes after route 1, which", seen(func(v *mailView) { v.rules = append(v.rules, route.Rule{ID: 2, UserID: 4711}) })},
		{"route.paused", "paused since ", seen(func(v *mailView) {
			v.accounts = []upstream.Listed{{Account: upstream.Account{Name: "out"}, PausedAt: new(time.Now())}}
		})},
		{"route.unused", "none names upstream out", seen(func(v *mailView) { v.accounts = []upstream.Listed{{Account: upstream.Account{Name: "out"}}} })},
	}
}

// withKeys gives the patient a database in which a node has the machine's keys, and an upstream's
// password is sealed with the first.
func withKeys(t *testing.T, p *patient) {
	t.Helper()
	p.admit(t)
	sealer, err := p.c.source.Sealer(p.c.cfg)
	if err == nil {
		err = sealer.Use(sealer.Current())
	}
	if err == nil {
		err = upstream.NewStore(p.pool, sealer).Add(t.Context(), upstream.Account{Name: "out", Host: "127.0.0.1", Port: 25, TLS: upstream.TLSRequire, Username: "relay", Password: "right"})
	}
	if err != nil {
		t.Fatal(err)
	}
	p.node(t, "one", sealer.Keys()...)
}

// node starts one that has these keys.
func (p *patient) node(t *testing.T, name string, keys ...string) {
	t.Helper()
	p.sql(t, `with n as (insert into node (name, expires_at) values ($1, clock_timestamp() + interval '1 hour') returning epoch)
		insert into sealing_ring (epoch, node, keys) select epoch, $1, $2 from n`, name, keys)
}

// rotated adds a key to this machine and its node, and takes it into use so long ago.
func rotated(ago time.Duration) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		sealer, err := p.c.source.Sealer(p.c.cfg)
		if err == nil {
			_, err = sealer.Add(func(string) error { return nil })
		}
		if err != nil {
			t.Fatal(err)
		}
		p.sql(t, `update sealing_ring set keys = $1`, sealer.Keys())
		p.sql(t, `insert into sealing_key (id, since) values ($1, clock_timestamp() - $2::interval)`, sealer.Keys()[1], ago)
	}
}

func keyFaults() []fault {
	return []fault{
		{"key.sealed", "this machine can open what is sealed: 1 value", nothing},
		{"key.sealed", "this machine can open what is sealed: 1 value", rotated(23 * time.Hour)},
		{"key.old", "1 value, and key", rotated(25 * time.Hour)},
		{"key.lacking", "missing at two", func(t *testing.T, p *patient) { p.node(t, "two", "12345678") }},
		{"key.lacking", "missing at ", func(t *testing.T, p *patient) {
			p.sql(t, `insert into sealing_key (id) values ('12345678')`)
		}},
		{"key.differ", "secret.key lacks it, two has it", func(t *testing.T, p *patient) {
			sealer, err := p.c.source.Sealer(p.c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			p.node(t, "two", sealer.Current(), "12345678")
		}},
		{"key.unopened", "secret.key: upstream out relay", func(t *testing.T, p *patient) {
			p.write(t, "secret.key", strings.Repeat("x", seal.KeySize))
		}},
		{"key.unopened", "none: upstream out relay", func(t *testing.T, p *patient) { p.c.cfg.SecretKeyFile = filepath.Join(p.dir, "none") }},
	}
}

func TestCheckFindsFaultsOfTheKeys(t *testing.T) {
	t.Parallel()
	find(t, keyFaults(), "key", withKeys)
}

func TestCheckFindsFaultsOfTheRoutes(t *testing.T) {
	t.Parallel()
	find(t, routeFaults(), "route", viewed)
}

// smarthost starts a server with an account and sends all mail there.
func smarthost(change func(*smtptest.Config, *upstream.Account)) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		cfg := smtptest.Config{TLS: p.ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay": "right"}}
		up := upstream.Account{Host: "127.0.0.1", TLS: upstream.TLSRequire, Username: "relay", Password: "right", CA: string(p.ca.PEM())}
		change(&cfg, &up)
		server := smtptest.Start(t, cfg)
		if up.Port == 0 {
			up.Port = server.Port()
		}
		p.upstream(up)
		t.Cleanup(func() {
			if n := server.Reached(smtptest.PhaseMail); n > 0 {
				t.Errorf("the check began %d transactions", n)
			}
		})
	}
}

// tokenhost is smarthost for an account that gets access tokens, which none of these grants
// asks an authority for.
func tokenhost(grant oauth.Grant) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		p.sql(t, `insert into upstream (name, host, port, tls) values ('out', '127.0.0.1', 25, 'none')`)
		if _, err := p.c.source.Sealer(p.c.cfg); err != nil {
			t.Fatal(err)
		}
		smarthost(func(_ *smtptest.Config, up *upstream.Account) { up.Password, up.Grant = "", grant })(t, p)
	}
}

func asIs(*smtptest.Config, *upstream.Account) {}

func upstreamFaults() []fault {
	return []fault{
		{"upstream.ok", "it accepts the account relay", smarthost(asIs)},
		{"upstream.expiring", "its certificate expires at 20", smarthost(asIs)}, // it lives for a day
		{"upstream.lookup", "nowhere.test", smarthost(func(_ *smtptest.Config, up *upstream.Account) { up.Host = "nowhere.test" })},
		{"upstream.unreachable", "refused", func(t *testing.T, p *patient) {
			at := netip.MustParseAddrPort(closedPort(t))
			p.upstream(upstream.Account{Host: "127.0.0.1", Port: int(at.Port()), TLS: upstream.TLSNone})
		}},
		{"upstream.source", "192.0.2.77", smarthost(func(_ *smtptest.Config, up *upstream.Account) { up.Source = "192.0.2.77" })},
		{"upstream.tls", "unknown authority", smarthost(func(cfg *smtptest.Config, up *upstream.Account) { up.CA = "" })},
		{"upstream.tls", "expired", func(t *testing.T, p *patient) {
			smarthost(func(cfg *smtptest.Config, _ *upstream.Account) {
				cfg.TLS = p.ca.LeafBetween(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "127.0.0.1").ServerConfig()
			})(t, p)
		}},
		{"upstream.tls", "does not offer STARTTLS", smarthost(func(cfg *smtptest.Config, _ *upstream.Account) { cfg.TLS = nil })},
		{"upstream.tls", "valid for other.test", func(t *testing.T, p *patient) {
			p.dns.Set("out.test.", "A 127.0.0.1")
			smarthost(func(cfg *smtptest.Config, up *upstream.Account) {
				cfg.TLS, up.Host = p.ca.ServerConfig(t, "other.test"), "out.test"
			})(t, p)
		}},
		{"upstream.account", "535", smarthost(func(_ *smtptest.Config, up *upstream.Account) { up.Password = "wrong" })},
		{"upstream.account", "offers none, and not PLAIN or LOGIN", smarthost(func(cfg *smtptest.Config, _ *upstream.Account) { cfg.Users = nil })},
		{"upstream.token", "the key file is not the JSON file", tokenhost(oauth.Grant{Kind: oauth.ServiceAccount, Authority: "google"})},
		{"upstream.login", "nobody has logged in yet", tokenhost(oauth.Grant{Kind: oauth.RefreshToken, Authority: "google"})},
		{"upstream.renewal", "AADSTS7000222", seen(func(v *mailView) {
			v.secrets = []upstream.Secret{{Upstream: "out", Token: oauth.State{FailingSince: time.Now(), ExpiresAt: time.Now().Add(time.Hour), LastError: "AADSTS7000222: expired"}}}
		})},
		{"upstream.secret", "the last day of its secret is 20", seen(func(v *mailView) {
			v.secrets = []upstream.Secret{{Upstream: "out", Expires: time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, 29)}}
		})},
		{"upstream.secret-expired", "the last day of its secret was 20", seen(func(v *mailView) {
			v.secrets = []upstream.Secret{{Upstream: "out", Expires: time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)}}
		})},
		{"upstream.open", "by node a: auth, account: 535 5.7.8 wrong password; next probe at 20", seen(func(v *mailView) {
			v.breakers = breaker.States{{Upstream: "out", Open: true, Node: "a", NextProbe: time.Now(),
				Cause: breaker.Cause{Stage: "auth", Scope: "account", Reply: "535 5.7.8 wrong password"}}}
		})},
		{"upstream.budget", "4 recipients waiting, the last until -: messages 30/m: 0 left, sessions 3: 3 left", seen(func(v *mailView) { v.budgets = spentBudget() })},
		{"upstream.busy", "sessions 1 over all nodes", func(t *testing.T, p *patient) {
			p.sql(t, `insert into upstream (name, host, port, tls, budget) values ('out', '127.0.0.1', 25, 'none', 'sessions 1')`)
			p.sql(t, `insert into node (name, expires_at) values ('n', now() + interval '1 hour')`)
			p.sql(t, `insert into upstream_budget select 'out', 'sessions', 0, '', epoch, 1 from live_epoch`)
			smarthost(func(_ *smtptest.Config, up *upstream.Account) { up.Budget = "sessions 1" })(t, p)
		}},
		{"upstream.reckoned", "no time zone", seen(func(v *mailView) {
			v.budgets = []budget.Usage{{Upstream: "out", Err: errors.New("the database knows no time zone")}}
		})},
		{"upstream.sessions", "sessions 3 for 4 nodes", seen(func(v *mailView) { v.budgets = spentBudget() })},
		{"upstream.refuses", "554 5.7.1 go away", smarthost(func(cfg *smtptest.Config, _ *upstream.Account) {
			cfg.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("554 5.7.1 go away"))}
		})},
		{"upstream.self", "is a listener of this server", func(t *testing.T, p *patient) {
			p.c.cfg.Listeners[0].Address = "0.0.0.0:2587"
			p.upstream(upstream.Account{Host: "127.0.0.1", Port: 2587, TLS: upstream.TLSNone})
		}},
	}
}

func spentBudget() []budget.Usage {
	limits, _ := budget.Parse("messages 30/m, sessions 3")
	return []budget.Usage{{Upstream: "out", Waiting: 4, Nodes: 4, Limits: []budget.Used{
		{Limit: limits[0], Text: limits[0].String(), Used: 30}, {Limit: limits[1], Text: limits[1].String(), Left: 3},
	}}}
}

func TestCheckFindsFaultsOfTheUpstreams(t *testing.T) {
	t.Parallel()
	find(t, upstreamFaults(), "upstream", viewed)
}

// What is in clear is no fault on this machine, where all tests are.
func TestCheckJudgesUpstreamsInClear(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	for _, test := range []struct {
		mode upstream.TLSMode
		at   string
		want bool
	}{
		{upstream.TLSNone, "192.0.2.1:25", true}, {upstream.TLSOpportunistic, "192.0.2.1:25", true},
		{upstream.TLSImplicit, "192.0.2.1:465", false}, {upstream.TLSNone, "127.0.0.1:25", false},
	} {
		r := &report{}
		p.c.upstream(r, upstream.Account{Name: "out", TLS: test.mode}, connect.Probe{Step: connect.Step{Addr: netip.MustParseAddrPort(test.at)}, Expires: time.Now().AddDate(1, 0, 0)})
		found := r.close()
		if test.want {
			wantFinding(t, found, "upstream.clear", string(test.mode))
		} else {
			wantNone(t, found, "upstream.clear")
		}
	}
}

// What the check says about accounts, routes and upstreams is what the database holds.
func TestCheckReadsTheDatabase(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	sealer, err := p.c.source.Sealer(p.c.cfg)
	if err == nil {
		err = sealer.Use(sealer.Current())
	}
	if err != nil {
		t.Fatal(err)
	}
	routes, accounts, servers := route.NewStore(p.pool), upstream.NewStore(p.pool, sealer), map[string]*smtptest.Server{}
	for _, name := range []string{"c", "a", "b"} {
		servers[name] = smtptest.Start(t, smtptest.Config{TLS: p.ca.ServerConfig(t, "127.0.0.1"), Implicit: true, Users: map[string]string{"relay": "right"}})
		up := upstream.Account{Name: name, Host: "127.0.0.1", Port: servers[name].Port(), TLS: upstream.TLSImplicit, CA: string(p.ca.PEM()),
			Username: "relay", Password: "right"}
		if err := accounts.Add(t.Context(), up); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := routes.Add(t.Context(), route.Rule{Via: []string{"a"}}, 0); err != nil {
		t.Fatal(err)
	}
	users := auth.NewStore(p.pool)
	for _, n := range []auth.NewUser{{Name: "alice@example.com", Password: "a good password"}, {Name: "bob", Senders: []string{"*@example.com"}}} {
		if _, err := users.AddUser(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	found := p.look(t.Context(), "account", "route", "upstream", "spf")
	wantFinding(t, found, "account.ok", "1 of 2 users")
	wantFinding(t, found, "account.no-login", "no working credential: bob")
	wantFinding(t, found, "route.ok", "1 in all")
	wantFinding(t, found, "route.unused", "none names upstream b")
	wantFinding(t, found, "spf.upstream", "v=spf1")
	var order []string
	for _, f := range found {
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
	p.write(t, "secret.key", strings.Repeat("x", seal.KeySize))
	wantFinding(t, p.again().look(t.Context(), "key"), "key.unopened", "these do not open with the key")
}
