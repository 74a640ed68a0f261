package explain

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/relay/connect"
	"postern/relay/route"
	"postern/relay/smtp"
)

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

// Mail hosts are shown once for each domain that mail goes to by MX, or why they are not known.
func TestMailHosts(t *testing.T) {
	t.Parallel()
	var zones dnstest.Zones
	zones.AddMX("one.test", 10, "mx.one.test")
	zones.AddHost("mx.one.test", "192.0.2.1")
	zones.AddMX("null.test", 0, ".")
	zones.ServFail("silent.test", "MX")
	zones.Stall("stalled.test", "MX")
	cfg := connect.Config{DNS: zones.Resolver(), LookupTime: time.Minute}
	for _, test := range []struct{ via, to, want string }{
		{route.MX, "a@one.test b@ONE.test c@null.test d@[192.0.2.1]",
			"mail hosts of one.test: HOST POLICY DEMANDS mx.one.test TLS if it is offered, else in clear mail hosts of null.test: HOST POLICY DEMANDS - - mail fails: domain null.test takes no mail (null MX, RFC 7505)"},
		{route.MX, "a@silent.test", "mail hosts of silent.test: DNS does not answer for silent.test"},
		{"out", "a@one.test", ""},
	} {
		if got := hostsOf(t.Context(), t, cfg, test.via, strings.Fields(test.to)...); !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: %s", test.to, got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got := hostsOf(ctx, t, cfg, route.MX, "a@stalled.test"); got != "mail hosts of stalled.test: DNS does not answer for stalled.test" {
		t.Errorf("%s", got)
	}
}
