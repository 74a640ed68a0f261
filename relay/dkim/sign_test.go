package dkim_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"postern/internal/dkimtest"
	"postern/relay/dkim"
)

const domain = "example.com"

var at = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

// sign returns a message with its signatures.
func sign(t testing.TB, message []byte, keys []dkim.Key) []byte {
	t.Helper()
	header, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
	if len(header)+4 <= len(message) {
		header = message[:len(header)+2]
	}
	hash := dkim.NewBodyHash()
	if _, err := hash.Write(body); err != nil {
		t.Fatal(err)
	}
	fields, err := dkim.Sign(header, keys, hash.Sum(), at)
	if err != nil {
		t.Fatal(err)
	}
	return append(fields, message...)
}

// verify returns what the oracle says of each signature of our domain.
func verify(t testing.TB, message []byte, keys dkimtest.Keys) (verdicts []error) {
	t.Helper()
	all, err := msgauth.VerifyWithOptions(bytes.NewReader(message), &msgauth.VerifyOptions{LookupTXT: keys.Records().LookupTXT})
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for _, v := range all {
		if v.Domain == domain {
			verdicts = append(verdicts, v.Err)
		}
	}
	return verdicts
}

// Another implementation takes all signatures of the whole corpus.
func TestSignaturesVerify(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New(domain)
	for _, m := range dkimtest.Corpus(domain, dkimtest.Size) {
		verdicts := verify(t, sign(t, m.Octets, dkim.Both.Of(keys[domain])), keys)
		if len(verdicts) != 2 || errors.Join(verdicts...) != nil {
			t.Errorf("%s: %v", m.Name, verdicts)
		}
	}
}

const short = "From: Alice <alice@example.com>\r\nSubject: hello\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\n\r\nthe text\r\n"

// Changes that a signature must not survive, and some that it must.
func TestChangesAfterSigning(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New(domain)
	signed := string(sign(t, []byte(short), dkim.Both.Of(keys[domain])))
	before := func(line string) func(string) string { return func(m string) string { return line + "\r\n" + m } }
	behind := func(line string) func(string) string {
		return func(m string) string { return strings.Replace(m, "\r\n\r\n", "\r\n"+line+"\r\n\r\n", 1) }
	}
	instead := func(from, to string) func(string) string {
		return func(m string) string { return strings.ReplaceAll(m, from, to) }
	}
	for _, tc := range []struct {
		name   string
		change func(string) string
		valid  bool
	}{
		{"nothing", func(m string) string { return m }, true},
		{"From before", before("From: mallory@example.org"), false},
		{"From behind", behind("From: mallory@example.org"), false},
		{"Subject before", before("Subject: other"), false},
		{"Subject behind", behind("Subject: other"), false},
		{"To before", before("To: eve@example.org"), false},
		{"To behind", behind("To: eve@example.org"), false},
		{"Cc before", before("Cc: eve@example.org"), false},
		{"Reply-To behind", behind("Reply-To: eve@example.org"), false},
		{"Date before", before("Date: Mon, 2 Nov 2026 11:00:00 +0000"), false},
		{"Subject removed", instead("Subject: hello\r\n", ""), false},
		{"Subject changed", instead("hello", "Hello"), false},
		{"a byte of the body", instead("the text", "The text"), false},
		{"a line behind the body", func(m string) string { return m + "more\r\n" }, false},
		{"an octet behind the body", func(m string) string { return m + "." }, false},
		{"the time of the signature", instead("; t=", "; t=1"), false},
		{"empty lines behind the body", func(m string) string { return m + "\r\n \r\n" }, true},
		{"white space of the body", instead("the text", "the \t text \t"), true},
		{"white space of a field", instead("Subject: hello", "SUBJECT:\r\n\thello  "), true},
		{"trace", before("Received: from a by b; Mon, 2 Nov 2026 10:00:01 +0000"), true},
		{"a list's fields", before("List-Id: <list.example.org>\r\nSender: owner@example.org"), true},
	} {
		changed := tc.change(signed)
		if tc.name != "nothing" && changed == signed {
			t.Fatalf("%s changes nothing", tc.name)
		}
		verdicts := verify(t, []byte(changed), keys)
		if len(verdicts) != 2 {
			t.Fatalf("%s: %d signatures", tc.name, len(verdicts))
		}
		for _, err := range verdicts {
			if (err == nil) != tc.valid {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

// The text of a signature, in full. Ed25519 is deterministic, and the key is fixed.
func TestSignatureField(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New(domain)
	message := "List-Id: <l.example>\r\n" + strings.Replace(short, "Subject", "List-Id: <m.example>\r\nX-Other: x\r\nCONTENT-Type: text/plain\r\nContent-Length: 10\r\nSubject", 1)
	got, _, _ := strings.Cut(string(sign(t, []byte(message), keys[domain][:1])), "List-Id")
	const want = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n" +
		"\td=example.com; s=e; t=1793613600;\r\n" +
		"\th=from:from:reply-to:subject:subject:to:cc:list-id:list-id:content-type:\r\n" +
		"\t content-type:date:date;\r\n" +
		"\tbh=8LXlQl5exgTTSdlJpK6igwL1ZRHsfWf8UnX8FVPSrtE=;\r\n" +
		"\tb=uFqN9bZKsctPy+0EyBsZjZ4qeUErFxlDNjUoASH+Ppl8ykkFJHa/2uRSFFp/d8N2jKsx7qGvGB\r\n" +
		"\t bVHniiA84+Bg==\r\n"
	if got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	for line := range strings.SplitSeq(got, "\r\n") {
		if len(line) > 78 {
			t.Errorf("a line of %d octets: %s", len(line), line)
		}
	}
}

// A retry sends the same octets.
func TestSameArgumentsSameOctets(t *testing.T) {
	t.Parallel()
	keys := dkim.Both.Of(dkimtest.New(domain)[domain])
	for _, m := range dkimtest.Corpus(domain, 50)[1:] {
		if !bytes.Equal(sign(t, m.Octets, keys), sign(t, m.Octets, keys)) {
			t.Errorf("%s: the signatures differ", m.Name)
		}
	}
}

func TestSignatureOfALongHeader(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New(domain)
	var b strings.Builder
	b.WriteString("From: alice@example.com\r\n")
	for i := range 990 {
		fmt.Fprintf(&b, "List-%d%s: x\r\n", i, strings.Repeat("x", 200))
	}
	b.WriteString("List-\u212aelvin: not ASCII\r\nList-" + strings.Repeat("y", 980) + ": x\r\n\r\n")
	signed := sign(t, []byte(b.String()), keys[domain])
	if verdicts := verify(t, signed, keys); len(verdicts) != 2 || errors.Join(verdicts...) != nil {
		t.Error(verdicts)
	}
	for line := range bytes.SplitSeq(signed, []byte("\r\n")) {
		if len(line) > 998 {
			t.Errorf("a line of %d octets", len(line))
		}
	}
}

// A header with thousands of names, or of fields of one name, makes no signature that is longer than
// other mail.
func TestSignatureOfManyNames(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New(domain)
	for _, name := range []string{"Content-XN", "Resent-To"} {
		text := []byte("From: a@" + domain + "\r\nSubject: s\r\n")
		for i := range 20_000 {
			text = append(text, strings.ReplaceAll(name, "N", strconv.Itoa(i))+":\r\n"...)
		}
		signed := sign(t, append(text, "\r\nbody\r\n"...), dkim.Both.Of(keys[domain]))
		if more := len(signed) - len(text) - 8; more > 32<<10 {
			t.Errorf("%s: signatures of %d octets", name, more)
		}
		for _, err := range verify(t, signed, keys) {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func BenchmarkSign(b *testing.B) {
	keys := dkimtest.New(domain)[domain]
	message := dkimtest.Corpus(domain, 9)[8].Octets
	header := message[:bytes.Index(message, []byte("\r\n\r\n"))+2]
	hash := dkim.NewBodyHash().Sum()
	for _, mode := range []struct {
		name string
		keys []dkim.Key
	}{{"ed25519", keys[:1]}, {"rsa", keys[1:]}, {"both", keys}} {
		b.Run(mode.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := dkim.Sign(header, mode.keys, hash, at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
