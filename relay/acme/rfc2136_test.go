package acme

import (
	"strings"
	"testing"
	"time"

	"github.com/libdns/libdns"

	"postern/internal/acmetest"
)

func provider(server *acmetest.DNS) *RFC2136 {
	return &RFC2136{
		Server: server.Addr(), KeyName: acmetest.KeyName, KeyAlgorithm: acmetest.KeyAlgorithm,
		KeySecret: acmetest.KeySecret, Resolver: server.Addr(),
	}
}

func TestUpdates(t *testing.T) {
	t.Parallel()
	server := acmetest.NewDNS(t)
	p := provider(server)
	long := strings.Repeat("x", 600)
	one, two := libdns.TXT{Name: "_acme-challenge.mail", Text: "one", TTL: time.Minute}, libdns.TXT{Name: "_acme-challenge.mail", Text: long}
	for _, record := range []libdns.Record{one, two} {
		added, err := p.AppendRecords(t.Context(), "test.", []libdns.Record{record})
		if err != nil || len(added) != 1 {
			t.Fatal(added, err)
		}
	}
	if got := server.Texts("_acme-challenge.mail.test"); len(got) != 2 || got[1] != long {
		t.Errorf("records: %q", got)
	}
	if _, err := p.DeleteRecords(t.Context(), "test.", []libdns.Record{two}); err != nil {
		t.Fatal(err)
	}
	if got := server.Texts("_acme-challenge.mail.test"); len(got) != 1 || got[0] != "one" {
		t.Errorf("after one was deleted: %q", got)
	}
	if _, err := p.AppendRecords(t.Context(), "test.", []libdns.Record{libdns.RR{Name: "x", Type: "A", Data: "127.0.0.1"}}); err == nil {
		t.Error("a record that is no TXT is written")
	}
	// The zone of the configuration is the one that is updated.
	p.Zone = "elsewhere"
	if _, err := p.AppendRecords(t.Context(), "test.", []libdns.Record{one}); err == nil || !strings.Contains(err.Error(), "NOTZONE") {
		t.Errorf("another zone: %v", err)
	}
}

// TestUpdatesRefused: every refusal says what to look at, and nothing that is not
// signed is believed.
func TestUpdatesRefused(t *testing.T) {
	t.Parallel()
	server := acmetest.NewDNS(t)
	record := []libdns.Record{libdns.TXT{Name: "x", Text: "y"}}
	for name, test := range map[string]struct {
		change func(*RFC2136)
		says   string
	}{
		"another secret":    {func(p *RFC2136) { p.KeySecret = "YW5vdGhlci1zZWNyZXQtYW5vdGhlci1zZWNyZXQ=" }, "key"},
		"another name":      {func(p *RFC2136) { p.KeyName = "nobody" }, "key"},
		"another algorithm": {func(p *RFC2136) { p.KeyAlgorithm = "hmac-sha512" }, "key"},
		"no server":         {func(p *RFC2136) { p.Server = "127.0.0.1:1" }, "127.0.0.1:1"},
	} {
		p := provider(server)
		test.change(p)
		if _, err := p.AppendRecords(t.Context(), "test.", record); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := server.Texts("x.test"); len(got) != 0 {
		t.Errorf("records without a key: %q", got)
	}
	server.LeaveUnsigned()
	if _, err := provider(server).AppendRecords(t.Context(), "test.", record); err == nil || !strings.Contains(err.Error(), "sign") {
		t.Errorf("an answer that is not signed: %v", err)
	}
}

func TestValidTSIGSecret(t *testing.T) {
	t.Parallel()
	if err := ValidTSIGSecret(acmetest.KeySecret); err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"", "not base64!", "c2hvcnQ="} {
		if ValidTSIGSecret(secret) == nil {
			t.Errorf("%q passes", secret)
		}
	}
}
