package submission

import (
	"bytes"
	"strings"
	"testing"

	"postern/internal/dkimtest"
	"postern/relay/dkim"
)

// Mail has a body hash if its author's domain has a key, and else none. Another implementation takes
// the signature that is made of the hash and the stored message.
func TestBodyHash(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New("example.com")
	ts := startAs(t, []string{"*@example.com", "*@*.example.com", "*@other.example"}, nil, func(cfg *Config) { cfg.Keys = keys })
	c := ts.login(t)
	submit := func(text []byte) stored {
		t.Helper()
		c.envelope()
		stuffed := bytes.ReplaceAll(text, []byte("\r\n."), []byte("\r\n.."))
		c.send(string(stuffed) + ".\r\n")
		c.expect(250)
		all := ts.queue.all()
		return all[len(all)-1]
	}
	for _, m := range dkimtest.Corpus("sub.example.com", 60) {
		got := submit(m.Octets)
		header, _, _ := strings.Cut(got.Body, "\r\n\r\n")
		fields, err := dkim.Sign([]byte(header+"\r\n"), keys["example.com"], got.BodyHash, got.AcceptedAt)
		if err != nil {
			t.Fatal(err)
		}
		if list := keys.Verified(t, append(fields, got.Body...)); len(list) != 2 {
			t.Errorf("%s: %q", m.Name, list)
		}
		ts.queue.forget()
	}
	for _, m := range dkimtest.Corpus("other.example", 3)[1:] {
		if got := submit(m.Octets); got.BodyHash != nil {
			t.Errorf("%s: a hash for a domain without a key", m.Name)
		}
	}
}
