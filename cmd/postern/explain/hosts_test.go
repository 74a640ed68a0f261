package explain

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/relay/connect"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/transport"
)

// policies is a world in which each domain has one policy, and nothing is fetched.
func policies(t *testing.T) (zones *dnstest.Zones, cfg connect.Config) {
	t.Helper()
	db := pgtest.New(t)
	zones = &dnstest.Zones{}
	zones.Sign("dane.test", "broken.test", "forced.test")
	for _, domain := range []string{"dane.test", "enforce.test", "testing.test", "forced.test", "none.test", "broken.test", "other.test"} {
		zones.AddMX(domain, 10, "mx."+domain)
		zones.AddHost("mx."+domain, "192.0.2.1")
	}
	for _, domain := range []string{"dane.test", "forced.test"} {
		zones.Add("_25._tcp.mx." + domain + ". 0 IN TLSA 3 1 1 " + strings.Repeat("ab", 32))
	}
	zones.ServFail("_25._tcp.mx.broken.test", "TLSA")
	zones.ServFail("silent.test", "MX")
	zones.AddMX("null.test", 0, ".")
	for domain, policy := range map[string]string{"enforce.test": "'enforce', '{mx.enforce.test}'", "other.test": "'enforce', '{mx.elsewhere.test}'", "testing.test": "'testing', '{mx.testing.test}'"} {
		zones.AddTXT("_mta-sts."+domain, "v=STSv1; id=1;")
		_, err := db.Pool.Exec(t.Context(), `insert into sts_policy (domain, id, mode, mx, fetched_at, expires_at, tried_id, due_at)
			values ('`+domain+`', '1', `+policy+`, now(), now() + interval '7 days', '1', now() + interval '1 day')`)
		if err != nil {
			t.Fatal(err)
		}
	}
	o := transport.Override{Domain: "forced.test", Level: transport.Encrypted, Reason: "their key"}
	if _, err := transport.SetOverride(t.Context(), db.Pool, "root", o, time.Hour); err != nil {
		t.Fatal(err)
	}
	cfg = connect.Config{DNS: zones.Resolver(), LookupTime: time.Minute}
	finder := transport.New(transport.Config{DB: db.Pool, DNS: cfg.DNS, Fetch: cfg.Fetcher()})
	t.Cleanup(func() { _ = finder.Close(context.Background()) })
	cfg.Policies = finder
	return zones, cfg
}

// hostsOf is what is printed about the mail hosts of recipients.
func hostsOf(ctx context.Context, t *testing.T, cfg connect.Config, via string, recipients ...string) string {
	t.Helper()
	var q Question
	e := &Message{}
	for _, to := range recipients {
		address, err := smtp.ParseRecipient(to)
		if err != nil {
			t.Fatal(err)
		}
		q.To, e.Routes = append(q.To, address), append(e.Routes, messageWay{Via: via})
	}
	e.hosts(ctx, cfg, q)
	var out bytes.Buffer
	if err := e.printHosts(&out); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

func TestWhatMailHostsMustProve(t *testing.T) {
	t.Parallel()
	zones, cfg := policies(t)
	for domain, want := range map[string]string{
		"dane.test":    "mx.dane.test dane TLS, with a certificate of its TLSA records: 3 1 1 abababab…",
		"enforce.test": "mx.enforce.test mta-sts TLS, with a certificate for its name from a known authority",
		"other.test":   "mx.other.test mta-sts no mail goes there now: mx.other.test is not a mail host by the MTA-STS policy of other.test",
		"testing.test": "mx.testing.test testing TLS if it is offered",
		"forced.test":  "mx.forced.test override TLS, with any certificate",
		"none.test":    "mx.none.test none TLS if it is offered",
		"broken.test":  "mx.broken.test dane no mail goes there now: DNS gives no answer that can be trusted about the TLSA records of mx.broken.test",
	} {
		if got := hostsOf(t.Context(), t, cfg, route.MX, "a@"+domain, "b@"+strings.ToUpper(domain)); got != "mail hosts of "+domain+": HOST POLICY DEMANDS "+want {
			t.Errorf("%s", got)
		}
	}
	if got := hostsOf(t.Context(), t, cfg, route.MX, "a@silent.test"); !strings.HasPrefix(got, "mail hosts of silent.test: DNS gives no answer about silent.test") {
		t.Errorf("%s", got)
	}
	if got := hostsOf(t.Context(), t, cfg, route.MX, "a@null.test"); got != "mail hosts of null.test: domain null.test takes no mail (null MX, RFC 7505)" {
		t.Errorf("%s", got)
	}
	if got := hostsOf(t.Context(), t, cfg, "out", "a@none.test"); got != "" {
		t.Errorf("by an upstream: %s", got)
	}
	zones.Stall("none.test", "MX")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got := hostsOf(ctx, t, cfg, route.MX, "a@none.test"); !strings.HasPrefix(got, "mail hosts of none.test: DNS gives no answer about none.test") {
		t.Errorf("%s", got)
	}
}
