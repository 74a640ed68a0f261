package message

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"postern/relay/smtp"
)

var relay = smtp.Address{Local: "relay", Domain: "example.com"}

// rewritten is a message with its edits made.
func rewritten(t *testing.T, text string, author smtp.Address) (now string, utf8 bool) {
	t.Helper()
	edits, utf8, err := Rewrite(iotest.OneByteReader(strings.NewReader(text)), author)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	at := int64(0)
	for _, e := range edits {
		if e.At < at || e.At+e.Cut > int64(len(text)) {
			t.Fatalf("edit at %d, of %d octets, after %d of %d", e.At, e.Cut, at, len(text))
		}
		b.WriteString(text[at:e.At])
		b.Write(e.Put)
		at = e.At + e.Cut
	}
	b.WriteString(text[at:])
	return b.String(), utf8
}

func TestRewrite(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 980)
	for name, test := range map[string]struct{ before, after string }{
		"bare":       {"From: a@b.test\r\n", "From: relay@example.com\r\nReply-To: a@b.test\r\n"},
		"name":       {"FROM: \"A, B\" <a@b.test>\r\n", "From: \"A, B\" <relay@example.com>\r\nReply-To: \"A, B\" <a@b.test>\r\n"},
		"comment":    {"From: a@b.test (Alice)\r\n", "From: relay@example.com (Alice)\r\nReply-To: a@b.test (Alice)\r\n"},
		"encoded":    {"From: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <a@b.test>\r\n", "From: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <relay@example.com>\r\nReply-To: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <a@b.test>\r\n"},
		"folded":     {"From:\r\n Alice\r\n\tLiddell <a@b.test>\r\n", "From:\r\n Alice\r\n\tLiddell <relay@example.com>\r\nReply-To:\r\n Alice\r\n\tLiddell <a@b.test>\r\n"},
		"no space":   {"From:a@b.test\r\n", "From:relay@example.com\r\nReply-To:a@b.test\r\n"},
		"like one":   {"From: \"a@b.test\" <a@b.test>\r\n", "From: relay@example.com\r\nReply-To: \"a@b.test\" <a@b.test>\r\n"},
		"twice":      {"From: a@b.test <a@b.test>\r\n", "From: relay@example.com\r\nReply-To: a@b.test <a@b.test>\r\n"},
		"in comment": {"From: A (a@b.test) <a@b.test>\r\n", "From: relay@example.com\r\nReply-To: A (a@b.test) <a@b.test>\r\n"},
		"several":    {"From: A <a@b.test>,\r\n c@d.test\r\nSender: A <a@b.test>\r\n", "From: relay@example.com\r\nReply-To: A <a@b.test>,\r\n c@d.test\r\n"},
		"group":      {"From: Team: A <a@b.test>;\r\n", "From: relay@example.com\r\nReply-To: Team: A <a@b.test>;\r\n"},
		"nobody":     {"From: Team:;\r\n", "From: relay@example.com\r\n"},
		"sender":     {"Sender: x@y.test\r\nFrom: A <a@b.test>\r\nSubject: s\r\n", "From: A <relay@example.com>\r\nReply-To: A <a@b.test>\r\nSubject: s\r\n"},
		"folded sender": {"Sender: x\r\n <x@y.test>\r\nFrom: A <a@b.test>\r\n",
			"From: A <relay@example.com>\r\nReply-To: A <a@b.test>\r\n"},
		"reply-to":          {"From: A <a@b.test>\r\nreply-to: c@d.test\r\n", "From: A <relay@example.com>\r\nreply-to: c@d.test\r\n"},
		"already":           {"From: A <Relay@EXAMPLE.com>\r\nSender: x@y.test\r\n", "From: A <Relay@EXAMPLE.com>\r\n"},
		"two":               {"From: a@b.test\r\nFrom: c@d.test\r\n", "From: relay@example.com\r\nReply-To: a@b.test\r\n"},
		"none":              {"Subject: s\r\n", "From: relay@example.com\r\nSubject: s\r\n"},
		"resent":            {"Resent-From: r@b.test\r\nFrom: a@b.test\r\nFrom-Us: x\r\n", "Resent-From: r@b.test\r\nFrom: relay@example.com\r\nReply-To: a@b.test\r\nFrom-Us: x\r\n"},
		"quoted":            {"From: <\"a b\"@b.test>\r\n", "From: <relay@example.com>\r\nReply-To: <\"a b\"@b.test>\r\n"},
		"unread":            {"From: a@b.test <c@d.test>\r\n", "From: relay@example.com\r\nReply-To: a@b.test <c@d.test>\r\n"},
		"long":              {"From: " + long + " <a@b.test>\r\n", "From: relay@example.com\r\nReply-To:\r\n  " + long + " <a@b.test>\r\n"},
		"IDN":               {"From: A <a@bücher.test>, c@d.test\r\n", "From: relay@example.com\r\nReply-To: A <a@xn--bcher-kva.test>, c@d.test\r\n"},
		"trailing fold":     {"From: A <a@b.test>\r\n \r\n", "From: A <relay@example.com>\r\nReply-To: A <a@b.test>\r\n"},
		"trailing fold tab": {"From: a@b.test \r\n\t\r\n", "From: relay@example.com\r\nReply-To: a@b.test\r\n"},
		"trailing folds":    {"From: A <a@b.test>,c@d.test\r\n \t\r\n  \r\n", "From: relay@example.com\r\nReply-To: A <a@b.test>,c@d.test\r\n"},
		"encoded @": {"From: =?utf-8?q?ceo=40bank=2Etest?= <a@b.test>\r\n",
			"From: relay@example.com\r\nReply-To: =?utf-8?q?ceo=40bank=2Etest?= <a@b.test>\r\n"},
		"encoded @ in base64": {"From: =?utf-8?b?Y2VvQGJhbmsudGVzdA==?= <a@b.test>\r\n",
			"From: relay@example.com\r\nReply-To: =?utf-8?b?Y2VvQGJhbmsudGVzdA==?= <a@b.test>\r\n"},
		"encoded @ behind": {"From: a@b.test (=?utf-8?q?ceo=40bank?=)\r\n",
			"From: relay@example.com\r\nReply-To: a@b.test (=?utf-8?q?ceo=40bank?=)\r\n"},
		"long IDN": {"From: " + strings.Repeat("A <a@ü.test>,", 70) + "\r\n \"x, y\" <b@ü.test>\r\n",
			"From: relay@example.com\r\nReply-To: " + strings.Repeat("A <a@xn--tda.test>,\r\n ", 69) + "A <a@xn--tda.test>,\r\n \"x, y\" <b@xn--tda.test>\r\n"},
		"long IDN group": {"From: G:" + strings.Repeat("a@ü.test,", 75) + "b@ü.test;\r\n",
			"From: relay@example.com\r\nReply-To: G:" + strings.Repeat("a@xn--tda.test,\r\n ", 75) + "b@xn--tda.test;\r\n"},
		"long name, IDN": {"From: " + long[:940] + " <a@" + strings.Repeat("ü.", 10) + "test>\r\n",
			"From: " + long[:940] + " <relay@example.com>\r\nReply-To: " + long[:940] + " <a@" + strings.Repeat("ü.", 10) + "test>\r\n"},
		"UTF-8": {"From: Ä <ä@b.test>\r\n", "From: Ä <relay@example.com>\r\nReply-To: Ä <ä@b.test>\r\n"},
		"UTF-8, IDN": {"From: Ä <a@bücher.test>\r\nReply-To: a@b.test\r\n",
			"From: Ä <relay@example.com>\r\nReply-To: a@b.test\r\n"},
	} {
		for _, end := range []string{"\r\nFrom: body@b.test\r\nSender: x@y.test\r\n", ""} {
			got, utf8 := rewritten(t, test.before+end, relay)
			if hasLongLine([]byte(got)) {
				t.Errorf("%s: a line of more than %d octets", name, maxLine)
			}
			if got != test.after+end {
				t.Errorf("%s: %q, want %q", name, got, test.after+end)
			}
			if want := hasUTF8([]byte(test.after)); utf8 != want {
				t.Errorf("%s: UTF-8 %v, want %v", name, utf8, want)
			}
			if end == "" {
				continue
			}
			// What comes out passes what comes in, and is not changed again.
			if name == "unread" {
				continue
			}
			p, err := Prepare(strings.NewReader("Date: Sat, 01 Aug 2026 10:00:00 +0000\r\nMessage-ID: <a@b>\r\n"+got), Options{ID: "id", Hostname: "relay.test", UTF8: true})
			if err != nil {
				t.Errorf("%s: %v of %q", name, err, got)
			} else if len(p.From) != 1 || !same(p.From[0], relay) {
				t.Errorf("%s: from %v", name, p.From)
			}
			if again, _ := rewritten(t, got, relay); again != got {
				t.Errorf("%s: %q, once more %q", name, got, again)
			}
		}
	}
}

// A header section of 50 KB, before a body that is not read.
func TestRewriteReadsTheHeaderOnly(t *testing.T) {
	t.Parallel()
	head := strings.Repeat("X-Field: "+strings.Repeat("x", 90)+"\r\n", 500)
	failing := iotest.ErrReader(errors.New("the body was read"))
	edits, _, err := Rewrite(io.MultiReader(strings.NewReader(head+"From: A <a@b.test>\r\n"+head+"\r\n"), failing), relay)
	if err != nil || len(edits) != 1 || edits[0].At != int64(len(head)) || !bytes.HasPrefix(edits[0].Put, []byte("From: A <relay@")) {
		t.Errorf("%v, %v", edits, err)
	}
	if _, _, err := Rewrite(io.MultiReader(strings.NewReader(head), failing), relay); err == nil || !strings.Contains(err.Error(), "was read") {
		t.Errorf("a header section that cannot be read: %v", err)
	}
}
