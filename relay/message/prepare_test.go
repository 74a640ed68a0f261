package message

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/relay/smtp"
)

var options = Options{
	ID:            "0199e0c4-0000-7000-8000-000000000001",
	Hostname:      "relay.test",
	Now:           time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC),
	Hello:         "laptop.example",
	Client:        netip.MustParseAddr("192.0.2.7"),
	TLS:           "TLS1.3 TLS_AES_128_GCM_SHA256",
	Authenticated: true,
}

const (
	received = "Received: from laptop.example ([192.0.2.7])\r\n" +
		"\tby relay.test with ESMTPSA id 0199e0c4-0000-7000-8000-000000000001\r\n" +
		"\t(TLS1.3 TLS_AES_128_GCM_SHA256);\r\n" +
		"\tMon, 2 Nov 2026 03:04:05 +0000\r\n"
	date      = "Date: Mon, 2 Nov 2026 03:04:05 +0000\r\n"
	messageID = "Message-ID: <0199e0c4-0000-7000-8000-000000000001@relay.test>\r\n"
)

func lines(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func TestPrepareRepairs(t *testing.T) {
	t.Parallel()
	const have = "Date: x\nMessage-ID: <1@a>\nFrom: a@b\n"
	tests := []struct {
		name, in, want string // want without Received
	}{
		{"complete", have + "Subject: s\n\nbody\n", have + "Subject: s\n\nbody\n"},
		{"no date", "From: a@b\nMessage-ID: <1@a>\n\nb\n", "+dFrom: a@b\nMessage-ID: <1@a>\n\nb\n"},
		{"no id", "Date: x\nFrom: a@b\n\nb\n", "+iDate: x\nFrom: a@b\n\nb\n"},
		{"names in any case", "dAtE: x\nmessage-id: <1@a>\nFROM: a@b\nBCC: x@y\n\nb\n", "dAtE: x\nmessage-id: <1@a>\nFROM: a@b\n\nb\n"},
		{"bcc folded", have + "Bcc: a@b,\n c@d,\n\te@f\nTo: g@h\n\n", have + "To: g@h\n\n"},
		{"bcc empty", have + "Bcc:\n\n", have + "\n"},
		{"bcc twice, first and last", "Bcc: 1\n" + have + "Bcc: 2\n\nb\n", have + "\nb\n"},
		{"resent-bcc and return-path", "Return-Path: <e@v>\nResent-Bcc: x\n" + have + "\n", have + "\n"},
		{"bcc in the body stays", have + "\nBcc: x\n", have + "\nBcc: x\n"},
		{"alike names stay", have + "Bccx: 1\nX-Bcc: 2\n\n", have + "Bccx: 1\nX-Bcc: 2\n\n"},
		{"no blank line, no body", have, have},
		{"no blank line, last field removed", have + "Bcc: x\n", have},
		{"a line that is no field ends the header", have + "no field\nBcc: y\n", have + "\nno field\nBcc: y\n"},
		{"a removed field before a line that is none", have + "Bcc: y\nno field\n", have + "\nno field\n"},
		{"8-bit as it came", have + "Subject: \xff\xfe\xe9\n\n\x80\n", have + "Subject: \xff\xfe\xe9\n\n\x80\n"},
		{"8-bit in a name ends the header", have + "S\xc3\xa9: x\n\n", have + "\nS\xc3\xa9: x\n\n"},
		{"hostile names", have + "__proto__: x\nconstructor:\n\n", have + "__proto__: x\nconstructor:\n\n"},
		{"dots stay", have + "\n.\n..\n", have + "\n.\n..\n"},
		{"empty field values", "Date:\nMessage-ID:\nFrom: a@b\n\n", "Date:\nMessage-ID:\nFrom: a@b\n\n"},
		{"a blank folded line in the last field", have + "Subject: x\n \n\nb\n", have + "Subject: x\n \n\nb\n"},
		{"From behind a removed field", "Bcc: " + strings.Repeat("x", 40) + "\n" + have + "Bcc: y\n\n", have + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := received + strings.NewReplacer("+d", date, "+i", messageID).Replace(lines(tt.want))
			for _, r := range []io.Reader{
				strings.NewReader(lines(tt.in)),
				iotest.OneByteReader(strings.NewReader(lines(tt.in))),
				iotest.DataErrReader(strings.NewReader(lines(tt.in))),
			} {
				p, err := Prepare(r, options)
				if err != nil {
					t.Fatal(err)
				}
				var body bytes.Buffer
				p.Body = &body
				got, err := io.ReadAll(p)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, string(got)); diff != "" {
					t.Error(diff)
				}
				if _, behind, _ := strings.Cut(want, "\r\n\r\n"); body.String() != behind {
					t.Errorf("the body is %q, want %q", &body, behind)
				}
			}
		})
	}
}

// What stands before the header is removed when it is a byte order mark or an mbox
// file's line, and only there.
func TestPreamble(t *testing.T) {
	t.Parallel()
	const have = "Date: x\r\nMessage-ID: <1@a>\r\nFrom: a@b\r\nBcc: c@d\r\n\r\n"
	const want = "Date: x\r\nMessage-ID: <1@a>\r\nFrom: a@b\r\n\r\n"
	const body = "\ufeff\r\nFrom x\r\n>From y\r\n"
	for preamble, facts := range map[string]Facts{
		"":                                       {},
		"\ufeff":                                 {ByteOrderMark: true},
		"From a@b Thu Jan  1 00:00:00 1970\r\n":  {MboxLine: true},
		">From a@b Thu Jan  1 00:00:00 1970\r\n": {MboxLine: true},
		"From \r\n":                              {MboxLine: true},
		"From a@b Thu Jan  1 00:00:00 1970 remote from x: y\xff\r\n": {MboxLine: true},
		"\ufeffFrom - Thu Jan  1 00:00:00 1970\r\n":                  {ByteOrderMark: true, MboxLine: true},
	} {
		facts.MessageID, facts.Fields, facts.From, facts.EightBit = "<1@a>", 4, at("a@b"), true
		for _, r := range []io.Reader{
			strings.NewReader(preamble + have + body),
			iotest.OneByteReader(strings.NewReader(preamble + have + body)),
		} {
			p, err := Prepare(r, options)
			if err != nil {
				t.Fatalf("%q: %v", preamble, err)
			}
			got, err := io.ReadAll(p)
			if err != nil || string(got) != received+want+body {
				t.Errorf("%q: %q, %v", preamble, got, err)
			}
			if diff := cmp.Diff(facts, p.Facts); diff != "" {
				t.Errorf("%q: %s", preamble, diff)
			}
		}
	}
}

// A byte order mark that is removed makes no message one of UTF-8.
func TestPreambleNeedsNothing(t *testing.T) {
	t.Parallel()
	p, err := Prepare(strings.NewReader("\ufeffFrom: a@b\r\n\r\nx\r\n"), options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(p); err != nil || p.UTF8 || p.EightBit {
		t.Errorf("UTF8 %v, EightBit %v, %v", p.UTF8, p.EightBit, err)
	}
}

func TestPrepareOnlyCRLFEndsALine(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"\r", "\n", "\n\r", "\r\r\n"} {
		in := "From: a@b\r\nMessage-ID: <1@a>" + end + "Bcc: y\r\n\r\nbody"
		_, err := Prepare(strings.NewReader(in), options)
		if err == nil || !strings.Contains(err.Error(), "The Message-ID field has a control character") {
			t.Errorf("%q: %v", end, err)
		}
	}
	in := "From: a@b\r\nDate: x\r\nMessage-ID: <1@a>\r\n\n\r\n\r\nbody"
	p, err := Prepare(strings.NewReader(in), options)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(p)
	// "\n\r\n" is a line that is no field, so an empty line goes before it.
	want := received + "From: a@b\r\nDate: x\r\nMessage-ID: <1@a>\r\n\r\n\n\r\n\r\nbody"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

// at makes addresses of a list with spaces between them.
func at(list string) []smtp.Address {
	var addrs []smtp.Address
	for s := range strings.FieldsSeq(list) {
		local, domain, _ := strings.Cut(s, "@")
		addrs = append(addrs, smtp.Address{Local: local, Domain: domain})
	}
	return addrs
}

func TestPrepareFacts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want Facts
	}{
		{"From: a@b, c@d\nSender: e@f\nReceived: 1\nReceived: 2\n\tmore\nDate: d\nMessage-ID: <x@y>\n\nFrom: z@z\n",
			Facts{MessageID: "<x@y>", Fields: 6, From: at("a@b c@d"), Sender: at("e@f"), Received: 2}},
		{"Resent-From: a@b\nResent-Sender: c@d\nResent-From: e@f\nMessage-ID: <x@y>\nfRoM: g@h\n",
			Facts{MessageID: "<x@y>", Fields: 5, From: at("g@h"), ResentFrom: at("a@b e@f"), ResentSender: at("c@d"), Redirector: at("a@b c@d")}},
		{"From: a@b\nMessage-ID:\n <folded@id>\n\n", Facts{MessageID: "<folded@id>", Fields: 2, From: at("a@b")}},
		{"From: a@b\nMessage-ID: <a\xffb>\n\n", Facts{MessageID: "<ab>", Fields: 2, EightBit: true, From: at("a@b")}},
		{"From: a@b\nMessage-ID: " + strings.Repeat("x", 900) + "\n\n", Facts{MessageID: strings.Repeat("x", 255), Fields: 2, From: at("a@b")}},
		{"From: a@b\nMessage-ID: <x@y>\ntls-required:  NO \n\n", Facts{MessageID: "<x@y>", Fields: 3, From: at("a@b"), TLSOptional: true}},
		{"From: a@b\nMessage-ID: <x@y>\nTLS-Required: Yes\n\n", Facts{MessageID: "<x@y>", Fields: 3, From: at("a@b")}},
		{"From:\n a@b\n\n", Facts{MessageID: "<" + options.ID + "@relay.test>", IDAdded: true, Fields: 1, From: at("a@b")}},
	}
	for _, tt := range tests {
		p, err := Prepare(strings.NewReader(lines(tt.in)), options)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, p.Facts); diff != "" {
			t.Errorf("%.40q: %s", tt.in, diff)
		}
	}
}

// TestP01FactsOfTheText: what is said of octets is said of the message as it goes on.
func TestP01FactsOfTheText(t *testing.T) {
	t.Parallel()
	const from, long = "From: a@b\n", 3 * firstBuffer
	tests := []struct {
		name, in       string
		utf8, eightBit bool
	}{
		{"ASCII", from + "Subject: =?utf-8?q?=C3=A4?=\n\ntext\n", false, false},
		{"header", from + "Subject: \u00e4\n\ntext\n", true, true},
		{"the last octets of a header", from + "Subject: xxxxxxx\u20ac\n", true, true},
		{"header in Latin-1", from + "Subject: M\xfcller\n\ntext\n", false, true},
		{"header in Latin-1 and UTF-8", from + "Subject: \xfc \u00e4\n\ntext\n", true, true},
		{"body", from + "\ntext \u00e4\n", false, true},
		{"the last octet of a body", from + "\ntext\n\xe4", false, true},
		{"far behind the header", from + "\n" + strings.Repeat("0123456789\n", long) + "\xff\n" + strings.Repeat("x\n", long), false, true},
		{"a long ASCII body", from + "\n" + strings.Repeat("0123456789\n", long), false, false},
		{"in a field that is removed", from + "Bcc: \u00e4 <c@d>\n\ntext\n", false, false},
		{"in a line that is no field", from + "\u00e4\ntext\n", false, true},
	}
	for _, tt := range tests {
		p, err := Prepare(strings.NewReader(lines(tt.in)), options)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		out, err := io.ReadAll(p)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if p.UTF8 != tt.utf8 || p.EightBit != tt.eightBit {
			t.Errorf("%s: UTF8 %v, EightBit %v, want %v and %v", tt.name, p.UTF8, p.EightBit, tt.utf8, tt.eightBit)
		}
		if is := strings.IndexFunc(string(out), func(r rune) bool { return r >= 0x80 }) >= 0; is != p.EightBit {
			t.Errorf("%s: the octets say %v", tt.name, is)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	const from = "From: a@b\n"
	tests := []struct {
		name string
		in   string
		want string // code and enhanced code; "" is accepted
	}{
		{"50 Received", from + strings.Repeat("Received: x\n", 50), ""},
		{"51 Received", strings.Repeat("Received: x\n", 51), "554 5.4.6"},
		{"1,000 fields", from + strings.Repeat("X: x\n", 999), ""},
		{"1,001 fields", from + strings.Repeat("X: x\n", 1000), "554 5.6.0"},
		{"1,001 fields in the body", from + "\n" + strings.Repeat("X: x\n", 1001), ""},
		{"largest header", from + "X:" + strings.Repeat("x", DefaultMaxHeader-4-len(from)-1) + "\n\nb\n", ""},
		{"header one octet larger", from + "X:" + strings.Repeat("x", DefaultMaxHeader-3-len(from)-1) + "\n\nb\n", "552 5.3.4"},
		{"header without an end", "X:" + strings.Repeat("x", 1<<20), "552 5.3.4"},
		{"large body", from + "X: x\n\n" + strings.Repeat("x", 1<<20), ""},
		{"large first line of a body", strings.Repeat("x", 1<<20), "552 5.3.4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := lines(tt.in)
			p, err := Prepare(strings.NewReader(in), options)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(p); err != nil || !bytes.HasSuffix(got, []byte(in)) {
					t.Fatalf("the message changed, err %v", err)
				}
				return
			}
			var refused *smtp.Error
			if !errors.As(err, &refused) {
				t.Fatalf("err = %v, want a refusal", err)
			}
			if got := refused.Reply.String(); !strings.HasPrefix(got, tt.want+" ") {
				t.Errorf("reply %q, want %s", got, tt.want)
			}
		})
	}
}

func TestPrepareSourceErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	for _, head := range []string{"", "Subj", "Subject: x\r\n", "From: a@b\r\n\r\nbody"} {
		r := io.MultiReader(strings.NewReader(head), iotest.ErrReader(broken))
		p, err := Prepare(r, options)
		if err == nil {
			_, err = io.Copy(io.Discard, p)
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %q: err = %v, want %v", head, err, broken)
		}
	}
}

func TestReceived(t *testing.T) {
	t.Parallel()
	with := func(change func(*Options)) Options {
		o := options
		change(&o)
		return o
	}
	tests := []struct {
		name string
		opt  Options
		want string // a part of the field
	}{
		{"literal", with(func(o *Options) { o.Hello = "[IPv6:2001:db8::1]" }), "from [IPv6:2001:db8::1] ([192.0.2.7])"},
		{"literal v4", with(func(o *Options) { o.Hello = "[192.0.2.1]" }), "from [192.0.2.1] ([192.0.2.7])"},
		{"v4 in v6", with(func(o *Options) { o.Client = netip.MustParseAddr("::ffff:192.0.2.9") }), "([192.0.2.9])"},
		{"v6 client with zone", with(func(o *Options) { o.Client = netip.MustParseAddr("fe80::1%eth0") }), "([IPv6:fe80::1])"},
		{"hidden", with(func(o *Options) { o.HideClient = true }), "Received: from unknown\r\n\tby"},
		{"clear", with(func(o *Options) { o.TLS = "" }), "with ESMTPA id"},
		{"clear, nobody", with(func(o *Options) { o.TLS, o.Authenticated = "", false }), "with ESMTP id"},
		{"utf8", with(func(o *Options) { o.UTF8 = true }), "with UTF8SMTPSA id"},
		{"comment", with(func(o *Options) { o.TLS = `x)\(` + "\x1b\r\n" }), `(x\)\\\(???)`},
	}
	for _, hello := range []string{"", "a b", "x\x1b[2J", "a\r\nX: y", "(c)", "a_b", "-a", "a..b", "a.", "[::1]", "[IPv6:1.2.3.4]", "[1.2.3.4", "[IPv6:fe80::1%e]", "bücher.example", strings.Repeat("a.", 200) + "a", strings.Repeat("a", 64)} {
		tests = append(tests, struct {
			name string
			opt  Options
			want string
		}{"hello " + hello, with(func(o *Options) { o.Hello = hello }), "from unknown ([192.0.2.7])"})
	}
	for _, tt := range tests {
		if got := string(appendReceived(nil, tt.opt)); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q lacks %q", tt.name, got, tt.want)
		}
	}
}

// A13: nothing that a client can choose makes Received more than one field.
func TestA13ReceivedIsOneField(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		o := options
		o.Hello = "a" + string([]byte{byte(c)}) + "b"
		o.TLS = o.Hello
		field := appendReceived(nil, o)
		if n := bytes.Count(field, []byte("\r\n")) - bytes.Count(field, []byte("\r\n\t")); n != 1 {
			t.Errorf("octet %#x: %q", c, field)
		}
		rest := strings.NewReplacer("\r\n\t", "", "\r\n", "").Replace(string(field))
		if i := strings.IndexFunc(rest, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Errorf("octet %#x: %q", c, field)
		}
	}
}

func TestReceivedFor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		to   smtp.Address
		utf8 bool
		want string // "" for no clause
	}{
		{smtp.Address{}, false, ""},
		{smtp.Address{Local: "bob", Domain: "b.example"}, false, "\r\n\tfor <bob@b.example>;\r\n"},
		{smtp.Address{Local: "b b", Domain: "b.example"}, false, "\r\n\tfor <\"b b\"@b.example>;\r\n"},
		{smtp.Address{Local: "bób", Domain: "b.example"}, false, ""},
		{smtp.Address{Local: "bób", Domain: "b.example"}, true, "\r\n\tfor <bób@b.example>;\r\n"},
		{smtp.Address{Local: "b\r\nX: y", Domain: "b.example"}, true, ""},
	}
	for _, tt := range tests {
		o := options
		o.For, o.UTF8 = tt.to, tt.utf8
		got := string(appendReceived(nil, o))
		if strings.Contains(got, "for <") != (tt.want != "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}
