package check

import (
	"bytes"
	"strings"
	"testing"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

// A record to publish is in a line of its own, once, however narrow the terminal is.
func TestRecordsStandAlone(t *testing.T) {
	t.Parallel()
	record := `s1._domainkey.example.com. IN TXT ( "v=DKIM1; k=rsa; p=` + strings.Repeat("x", 300) + `" )`
	found := []health.Finding{
		{ID: "dkim.pending", Status: health.Warning, Subject: "key s1 of example.com", Text: "no record", Todo: "publish it", Publish: record},
		{ID: "dkim.left", Status: health.Warning, Subject: "key s1 of example.com", Text: "no record", Todo: "publish it", Publish: record},
		{ID: "dns.ptr", Status: health.OK, Subject: "address 192.0.2.1", Text: "its name is relay.test"},
	}
	for _, width := range []int{0, 40, 80} {
		var out bytes.Buffer
		if err := Print(screen.Writer{Writer: &out, Width: width}, found); err != nil {
			t.Fatal(err)
		}
		if want := "\n\nto publish for key s1 of example.com [dkim.pending]:\n" + record + "\n"; !strings.HasSuffix(out.String(), want) || strings.Count(out.String(), record) != 1 {
			t.Errorf("in %d columns:\n%s", width, &out)
		}
	}
}

// Where a finding has little room beside its subject it stands below it, and a remedy of several stands
// once.
func TestNarrowFindings(t *testing.T) {
	t.Parallel()
	found := []health.Finding{
		{ID: "dkim.record", Status: health.Failed, Subject: "key p20261130-rsa of relay.example.com", Text: "all name servers: no record", Todo: "publish it"},
		{ID: "dkim.record", Status: health.Failed, Subject: "key p20261130-ed25519 of relay.example.com", Text: "all name servers: no record", Todo: "publish it"},
		{ID: "dns.ptr", Status: health.OK, Subject: "address 192.0.2.1", Text: "its name is relay.test"},
	}
	for width, want := range map[int]string{
		80: "        FINDING\nfailed  key p20261130-rsa of relay.example.com\n        all name servers: no record [dkim.record]\n" +
			"failed  key p20261130-ed25519 of relay.example.com\n        all name servers: no record [dkim.record]\n        to do: publish it\nok      address 192.0.2.1: its name is relay.test\n",
		120: "        SUBJECT                                     FINDING\nfailed  key p20261130-rsa of relay.example.com      all name servers: no record [dkim.record]\n" +
			"failed  key p20261130-ed25519 of relay.example.com  all name servers: no record [dkim.record]\n" + strings.Repeat(" ", 52) + "to do: publish it\nok      address 192.0.2.1                           its name is relay.test\n",
	} {
		var out bytes.Buffer
		if err := Print(screen.Writer{Writer: &out, Width: width}, found); err != nil || out.String() != want {
			t.Errorf("in %d columns: %v\n%s\nwant\n%s", width, err, &out, want)
		}
	}
}
