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
