package dkimtest

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

var (
	field     = regexp.MustCompile(`(?im)^dkim-signature:.*(?:\n[ \t].*)*`)
	signature = regexp.MustCompile(`(?is)\ba=([a-z0-9]+)-sha256;.*?\bd=([^;\s]+);`)
)

// Verified is that of the keys' records.
func (k Keys) Verified(t testing.TB, message []byte) []string {
	t.Helper()
	return k.Records().Verified(t, message)
}

// Verified lists the signatures of a message by domains with records that another implementation
// takes, from the first on, as "rsa example.com". One that it does not take fails the test.
func (r Records) Verified(t testing.TB, message []byte) (list []string) {
	t.Helper()
	all, err := msgauth.VerifyWithOptions(bytes.NewReader(message), &msgauth.VerifyOptions{LookupTXT: r.LookupTXT})
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	header, _, _ := bytes.Cut(message, []byte("\r\n\r\n"))
	found := field.FindAll(header, -1)
	if len(found) != len(all) {
		t.Fatalf("%d signatures, of which %d are looked at", len(found), len(all))
	}
	for i, v := range all {
		if !r.has(v.Domain) {
			continue // the customer's own
		}
		if v.Err != nil {
			t.Errorf("the signature by %s is not valid: %v\n%s", v.Domain, v.Err, found[i])
		}
		if m := signature.FindSubmatch(found[i]); m != nil {
			list = append(list, string(m[1])+" "+string(m[2]))
		}
	}
	return list
}

func (r Records) has(domain string) bool {
	for name := range r {
		if strings.HasSuffix(name, "._domainkey."+domain) {
			return true
		}
	}
	return false
}
