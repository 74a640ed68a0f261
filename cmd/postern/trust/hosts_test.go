package trust

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/relay/connect"
	"postern/relay/transport"
)

// signed are the domains with DNSSEC.
var signed = []string{"dane.test", "broken.test", "forced.test"}

// policies is a world in which each domain has one policy, and nothing is fetched.
func policies(t *testing.T) (cfg connect.Config) {
	t.Helper()
	db := pgtest.New(t)
	zones := &dnstest.Zones{}
	zones.Sign(signed...)
	for _, domain := range []string{"dane.test", "enforce.test", "testing.test", "forced.test", "none.test", "broken.test", "other.test"} {
		zones.AddMX(domain, 10, "mx."+domain)
		zones.AddHost("mx."+domain, "192.0.2.1")
	}
	zones.AddMX("null.test", 0, ".")
	for _, domain := range []string{"dane.test", "forced.test"} {
		zones.Add("_25._tcp.mx." + domain + ". 0 IN TLSA 3 1 1 " + strings.Repeat("ab", 32))
	}
	zones.ServFail("_25._tcp.mx.broken.test", "TLSA")
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
	return cfg
}

// Where the name server does not validate, the mail hosts are shown as what they are, and that DANE is off.
func TestDomainWithoutValidation(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for blind, want := range map[bool]string{true: "dane off: 'postern check --only dns' says why", false: ""} {
		zones := &dnstest.Zones{}
		zones.AddMX("dane.test", 10, "mx.dane.test")
		zones.AddHost("mx.dane.test", "192.0.2.1")
		if zones.Sign("dane.test"); blind {
			zones.Blind()
		}
		cfg := connect.Config{DNS: zones.Resolver(), LookupTime: time.Minute}
		shown, err := Look(t.Context(), db.Pool, cfg, "dane.test")
		var out bytes.Buffer
		if err != nil || shown.Print(&out) != nil {
			t.Fatal(err)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); strings.Contains(got, "dane off") != blind || !strings.Contains(got, want) {
			t.Errorf("blind %t:\n%s", blind, &out)
		}
	}
}

// Each source of a policy has its words, and a host that gets no mail says why.
func TestHosts(t *testing.T) {
	t.Parallel()
	cfg := policies(t)
	for domain, want := range map[string]string{
		"dane.test":    "mx.dane.test dane TLS, with a certificate of its TLSA records: 3 1 1 abababab…",
		"enforce.test": "mx.enforce.test mta-sts TLS, with a certificate for its name from a known authority",
		"other.test":   "mx.other.test mta-sts no mail goes there now: mx.other.test is not a mail host by the MTA-STS policy of other.test",
		"testing.test": "mx.testing.test testing TLS if it is offered, else in clear",
		"forced.test":  "mx.forced.test override TLS, with any certificate",
		"null.test":    "- - mail fails: domain null.test takes no mail (null MX, RFC 7505)",
		"nosuch.test":  "- - mail fails: domain nosuch.test does not exist or has no mail host",
		"none.test":    "mx.none.test none TLS if it is offered, else in clear",
		"broken.test":  "mx.broken.test dane no mail goes there now: DNS gives no answer that can be trusted about the TLSA records of mx.broken.test",
	} {
		hosts, validated, err := Hosts(t.Context(), cfg, domain)
		var out bytes.Buffer
		if err != nil || PrintHosts(&out, hosts) != nil || validated != slices.Contains(signed, domain) {
			t.Errorf("%s: validated %v, %v", domain, validated, err)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); got != "HOST POLICY DEMANDS "+want {
			t.Errorf("%s", got)
		}
	}
}
