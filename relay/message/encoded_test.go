package message

import (
	"encoding/base64"
	"io"
	"net/netip"
	"strings"
	"testing"

	"postern/relay/smtp"
)

func b64(charset, text string) string {
	return "=?" + charset + "?B?" + base64.StdEncoding.EncodeToString([]byte(text)) + "?="
}

// TestL1Encoded: what is refused as it is does not come in encoded, wherever some reader
// decodes it; and names as clients encode them do.
func TestL1Encoded(t *testing.T) {
	t.Parallel()
	control := "has an encoded word with a control character"
	list := "has an encoded name that is a list"
	charset := "has an encoded word in an unusual charset"
	word := "has something that is not a complete encoded word"
	for _, tt := range []struct{ value, want string }{
		{"=?utf-8?q?x=0D=0ABcc:_v=40victim?= <a@own>", word}, // the colon ends it
		{"=?utf-8?q?x=0D=0ABcc_v=40victim?= <a@own>", control},
		{b64("utf-8", "x\r\nBcc: v@victim") + " <a@own>", control},
		{b64("utf-8", "x\r\n") + " <a@own>", control},
		{"=?utf-8?q?x=00?= <a@own>", control},
		{"=?utf-8?q?x=0B?= <a@own>", control},
		{"=?utf-8?q?x=0C?= <a@own>", control},
		{"=?utf-8?q?x=1B=5B2J?= <a@own>", control},
		{"=?utf-8?q?x=7F?= <a@own>", control},
		{"=?utf-8?q?x=C2=85y?= <a@own>", control},
		{"=?utf-8?q?x=E2=80=A8y?= <a@own>", control},
		{b64("UTF-8", "x\u2029y") + " <a@own>", control},
		{"=?iso-8859-1?q?x=85y?= <a@own>", control},
		{"=?iso-2022-jp?q?x=0Ay?= <a@own>", control},
		{"a@own (=?utf-8?q?x=0A?=)", control},
		{"\"=?utf-8?q?x=0A?=\" <a@own>", control},
		{"\"=?utf-8?q?x =0A?=\" <a@own>", control},
		{"g=?utf-8?q?x?= <a@own>", word},
		{"=?utf-8?q?x=0A?=: a@own;", control},

		{"=?utf-8?q?b=40victim=2C?= <a@own>", list},
		{"=?utf-8?q?b=40victim=3B?= <a@own>", list},
		{"=?utf-8?q?=3Cb=40victim=3E?= <a@own>", list},
		{"=?utf-8?q?=22x=22_b=40victim?= <a@own>", list},
		{"=?utf-8?q?b=40victim?= =?utf-8?q?=2C?= <a@own>", list},
		{"=?utf-8?q?b=40victim?=\r\n =?utf-8?b?LA==?= <a@own>", list},
		{"\"b@victim\" =?utf-8?q?=2C?= <a@own>", list},
		{"\"=?utf-8?q?b=40victim=2C?=\" <a@own>", list},
		{"\"=?utf-8?q?b=40victim=2C x?=\" <a@own>", list},
		{"a@own (=?utf-8?q?=29=2C_b=40victim_=28?=)", list},
		{b64("utf-8*en", "b@victim,") + " <a@own>", list},
		{"=?utf-8?b?YkB2aWN0aW0s====?= <a@own>", list},
		{"=?us-ascii?q?b=40victim=2C?= <a@own>", list},
		{"=?koi8-r?q?b=40victim=2C?= <a@own>", list},
		{"=?gbk?q?b=40victim=2C?= <a@own>", list},
		{b64("iso-2022-jp", "\x1b$B$\"\x1b(Bb@victim,") + " <a@own>", list},

		{"=?cp875?q?=A5=7C=A5=6B?= <a@own>", charset},
		{"=?ibm871?q?=A5=AC=A5=6B?= <a@own>", charset},
		{b64("iso-2022-cn", "\x1b$*Hb@victim,") + " <a@own>", charset},
		{b64("iso-2022-jp", "\x1b$zb@victim,") + " <a@own>", control}, // no shift
		{b64("iso-2022-jp", "\x0eb@victim,\x0f") + " <a@own>", control},
		{b64("iso-2022-jp", "\x1b$B\r\nBcc: x") + " <a@own>", control},
		{b64("iso-2022-kr", "\x1b$)Cb@victim,") + " <a@own>", list},
		{"=?iso-8859-1?q?=E9=85?= <a@own>", control}, // like the beginning of a character in UTF-8
		{"=?latin1?q?=85?= <a@own>", control},
		{"=?utf-8?q?=FF=E2=80=A8?= <a@own>", control},
		{"\"=?utf-8?q?=?utf-8?b?YkB2aWN0aW0s?=\" <a@own>", word}, // Go takes the inner one
		{"=?utf-8?B?QQ==YkB2aWN0aW0s?= <a@own>", word},           // JavaMail reads on
		{"=?utf-8?B?L-L-YkB2aWN0aW0s?= <a@own>", word},           // Node takes - for +
		{"=?utf-8?B?YkB?= =?utf-8?B?2aWN0aW0s?= <a@own>", word},  // and joins words
		{"\"=\\?utf-8?q?b=40victim=2C?=\" <a@own>", list},
		{"\"=?utf-8?q?a?\\=40victim=2Cb?=\" <a@own>", list},
		{"\"=\r\n ?utf-8?q?b=40victim=2C?=\" <a@own>", list},

		{"=?utf-7?q?b+AEA-victim+ACw-?= <a@own>", charset},
		{"=?utf-16?b?AGIAQAB2?= <a@own>", charset},
		{"=?cp037?q?=82=7C=A5=6B?= <a@own>", charset},
		{"=?unicode_escape?q?b=5Cx40v=5Cx2c?= <a@own>", charset},

		{"a@own(x(y)z)", "has a comment in a comment"},
		{"a@own(x(y)z) (w)", "has a comment in a comment"},
		{"a@own (w)(x(y)z)", "has a comment in a comment"},
		{"(x(y)z)a@own", "has a comment in a comment"},
		{"(x(y)z)(w)a@own", "has a comment in a comment"},
		{"<a@own>(x(y)z)", ""},
		{"a@own (x(y)z)", ""},
		{"a@own (x(y)z),b@own", ""},
		{"a@own(x)", ""},

		{"=?utf-8?q?M=C3=BCller=2C_Hans?= <a@own>", ""},
		{"=?utf-8?q?Hans_=22M=C3=BC=22_=3CChef=3E?= <a@own>", ""},
		{"=?utf-8?q?M=C3=BCller_=28m=40x=2Eexample=29?= <a@own>", ""},
		{"=?windows-1252?q?O=92Neill=85?= <a@own>", ""},
		{b64("ISO-2022-JP", "\x1b$B;3ED\x1b(B, \x1b$B@,\"<@O:\x1b(J") + " <a@own>", ""}, // octets like @ , " <
		{b64("ISO-2022-KR", "\x1b$)C\x0e@,\"<\x0f, x") + " <a@own>", ""},
		{b64("gb2312", "\xc0\xee, \xd0\xa1") + " <a@own>", ""},
		{b64("Shift_JIS", "\x8eR\x93c\x81@\x91\xbe\x98Y") + " <a@own>", ""},
		{b64("EUC-JP", "\xbb\xb3\xc5\xc4") + " <a@own>", ""},
		{"=?unknown-8bit?q?x=C4?= <a@own>", ""},
		{"=?X-UNKNOWN?q?M=FCller?= <a@own>", ""},
		{"=?cp437?q?M=81ller?= <a@own>", ""},
		{b64("x-gbk", "\xc0\xee") + " <a@own>", ""},
		{b64("iso-2022-jp", "\x1b(I@,<\x1b(B") + " <a@own>", ""}, // half-width, of Outlook
		{"=?utf-8?b?w6Q?= <a@own>", ""},
		{b64("utf-8", "\u00e4") + "\r\n " + b64("utf-8", "\u00f6\u00fc") + " <a@own>", ""},
		{"=?UTF-8?Q??= <a@own>", ""},
		{"=?utf-8?b?w6Q=?= <a@own>", ""},
		{"\"=?utf-8?Q?M=C3=BCller=2C?= x\" <a@own>", ""},
	} {
		for _, field := range []string{"From", "Sender", "Resent-From"} {
			in := field + ": " + tt.value + "\r\n"
			if field != "From" {
				in = "From: a@own\r\n" + in
			}
			_, err := Prepare(strings.NewReader(in), options)
			switch {
			case tt.want == "" && field != "From": // a list is not for Sender
			case tt.want == "" && err != nil:
				t.Errorf("%q: %v", in, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), "The "+field+" field "+tt.want)):
				t.Errorf("%q: %v, want %s", in, err, tt.want)
			}
		}
	}
}

// TestL1Controls: no control and no line separator is in a field as it is, folded or not,
// and the refusal names the field. Text of other charsets passes.
func TestL1Controls(t *testing.T) {
	t.Parallel()
	const from = "From: a@own\r\n"
	refused := []string{"\u0080", "\u0085", "\u009b", "\u009f", "\u2028", "\u2029", "\x7f"}
	for c := range ' ' {
		if c != '\t' {
			refused = append(refused, string(c))
		}
	}
	for _, bad := range refused {
		for _, name := range []string{"Subject", "X-Mailer", "To", "Reply-To", "Bcc"} {
			for _, in := range []string{from + name + ": x" + bad + "y\r\n", from + name + ": \u00e4\r\n\tx" + bad + "y\r\n"} {
				_, err := Prepare(strings.NewReader(in+"\r\nbody"), options)
				if want := "554 5.6.0 The " + name + " field has a control character; remove it"; err == nil || verdict(nil, err) != want {
					t.Errorf("%q: %v", in, err)
				}
			}
		}
	}
	for _, good := range []string{
		"\t", "\u00a0", "\u00ad", "\u200b", "\u2027", "\u202f", "\u0445 \u0415", // the octet 0x85 is in these
		"\x92\x85", "\x82\xa0\x8a\xc2\x85\xb1", // windows-1252, Shift JIS
	} {
		if _, err := Prepare(strings.NewReader(from+"Subject: x"+good+"y\r\n\r\nbody\x0b\u0085"), options); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	long := strings.Repeat("n", 300)
	_, err := Prepare(strings.NewReader(from+long+": \x0b\r\n"), options)
	if got := verdict(nil, err); len(got) > 200 || !strings.Contains(got, long[:maxName]) {
		t.Errorf("%q", got)
	}
}

// TestL1LongLines: a line of an identity has at most 998 octets, for whoever breaks it would
// make another field of it; ours have fewer. Other fields pass as bodies do.
func TestL1LongLines(t *testing.T) {
	t.Parallel()
	line := func(name string, octets int) string {
		return name + ": \"" + strings.Repeat("x", octets-len(name)-len(`: "" <a@own>`)) + "\" <a@own>\r\n"
	}
	for _, name := range []string{"From", "Sender", "Resent-From", "Resent-Sender"} {
		author := ""
		if name != "From" {
			author = "From: a@own\r\n"
		}
		for _, folded := range []string{"", "\r\n "} {
			if _, err := Prepare(strings.NewReader(author+line(name, maxLine)), options); err != nil {
				t.Errorf("%s, %d octets: %v", name, maxLine, err)
			}
			in := line(name, maxLine+1)
			if folded != "" {
				in = name + ":" + folded + strings.Repeat(" ", maxLine) + "\r\n <a@own>\r\n"
			}
			_, err := Prepare(strings.NewReader(author+in), options)
			if want := "The " + name + " field has a line of more than 998 octets"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, one more, folded %q: %v", name, folded, err)
			}
		}
	}
	for _, in := range []string{"X-SMTPAPI: {" + strings.Repeat("x", 5000) + "}\r\n", "To: " + strings.Repeat("a@own,", 1000) + "a@own\r\n"} {
		if _, err := Prepare(strings.NewReader("From: a@own\r\n"+in), options); err != nil {
			t.Error(err)
		}
	}

	o := options
	o.UTF8, o.Hostname = true, strings.Repeat("h", 63)+strings.Repeat("."+strings.Repeat("h", 63), 3)
	o.Hello, o.Client = o.Hostname, netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666")
	o.TLS = strings.Repeat("(", 255)
	for n := range 501 {
		for _, c := range []string{"x", `"`, `\`, " ", "\u00e4"} {
			o.For = smtp.Address{Local: strings.Repeat(c, n/len(c)), Domain: strings.Repeat("d", 500-n)}
			p, err := Prepare(strings.NewReader("From: a@own\r\n\r\n"), o)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			for l := range strings.SplitSeq(string(text), "\r\n") {
				if len(l) > maxLine {
					t.Fatalf("%d octets: %.80q", len(l), l)
				}
			}
		}
	}
}

// TestL1ControlAnywhere: each octet is judged alike wherever it stands in a line.
func TestL1ControlAnywhere(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		want := c < ' ' && c != '\t' || c == 0x7F
		for at := range 20 {
			text := []byte("printable ASCII, ~~~")
			if text[at] = byte(c); hasControl(text) != want {
				t.Errorf("%q: %t", text, !want)
			}
		}
	}
}
