package dkim_test

import (
	"strings"
	"testing"

	"postern/internal/dkimtest"
	"postern/relay/dkim"
)

func names(keys []dkim.Key) string {
	var all []string
	for _, k := range keys {
		all = append(all, k.Selector+"@"+k.Domain)
	}
	return strings.Join(all, " ")
}

// The domain of a signature is the author's or, within the same organisation, one above it.
func TestFind(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New("example.com", "dept.example.com", "com", "example.co.uk", "co.uk", "localhost", "a.localhost", "xn--bcher-kva.example")
	for author, want := range map[string]string{
		"example.com":           "example.com",
		"dept.example.com":      "dept.example.com",
		"a.b.dept.example.com":  "dept.example.com",
		"other.example.com":     "example.com",
		"example.net":           "",
		"other.com":             "", // com has a key, and is nobody's organisation
		"mail.example.co.uk":    "example.co.uk",
		"other.co.uk":           "",
		"localhost":             "localhost",
		"a.localhost":           "a.localhost",
		"xn--bcher-kva.example": "xn--bcher-kva.example",
		"[192.0.2.1]":           "",
		"":                      "",
	} {
		got := ""
		if found := dkim.Find(keys, author); len(found) > 0 {
			got = found[0].Domain
		}
		if got != want {
			t.Errorf("mail from %s is signed by %q, want %q", author, got, want)
		}
	}
	if dkim.Find(nil, "example.com") != nil {
		t.Error("keys out of nothing")
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	both := dkimtest.New("a")["a"]
	for _, tc := range []struct {
		mode dkim.Mode
		keys []dkim.Key
		want string
	}{
		{dkim.Off, both, ""},
		{dkim.OnlyRSA, both, "r@a"},
		{dkim.Both, both, "r@a e@a"},
		{dkim.OnlyRSA, both[:1], ""},
		{dkim.Both, both[:1], "e@a"},
		{dkim.Both, both[1:], "r@a"},
		{dkim.Both, nil, ""},
		{dkim.Both, []dkim.Key{both[0], {Domain: "a", Selector: "r", Algorithm: dkim.RSA}}, "r@a e@a"},
	} {
		if got := names(tc.mode.Of(tc.keys)); got != tc.want {
			t.Errorf("%s of %s: %q, want %q", tc.mode, names(tc.keys), got, tc.want)
		}
	}
	for _, mode := range []dkim.Mode{"", "RSA", "ed25519"} {
		if mode.Valid() {
			t.Errorf("%q is valid", mode)
		}
	}
}
