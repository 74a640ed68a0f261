package smtp

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	l63 := strings.Repeat("a", 63)
	tests := []struct {
		in   string
		want Address
		out  string // String(), "" for in
		key  string // DomainKey(), "" for Domain
		utf8 bool
	}{
		{in: "a@b", want: Address{"a", "b"}},
		{in: "First.Last+tag@Example.COM", want: Address{"First.Last+tag", "Example.COM"}, key: "example.com"},
		{in: "!#$%&'*+-/=?^_`{|}~@b.example", want: Address{"!#$%&'*+-/=?^_`{|}~", "b.example"}},
		{in: "a%b@c.example", want: Address{"a%b", "c.example"}},
		{in: "host!user@c.example", want: Address{"host!user", "c.example"}},
		{in: `"a b"@c.example`, want: Address{"a b", "c.example"}},
		{in: `"a@b"@c.example`, want: Address{"a@b", "c.example"}},
		{in: `"a"@c.example`, want: Address{"a", "c.example"}, out: "a@c.example"},
		{in: `"a\"\\b"@c.example`, want: Address{`a"\b`, "c.example"}},
		{in: `"\a\ "@c.example`, want: Address{"a ", "c.example"}, out: `"a "@c.example`},
		{in: `"a..b."@c.example`, want: Address{"a..b.", "c.example"}},
		{in: `"x@evil.example> ORCPT=rfc822;y"@c.example`, want: Address{"x@evil.example> ORCPT=rfc822;y", "c.example"}},
		{in: `""@c.example`, want: Address{"", "c.example"}},
		{in: "a@my_host.example", want: Address{"a", "my_host.example"}},
		{in: "a@r3---sn.example", want: Address{"a", "r3---sn.example"}},
		{in: "a@3com.example", want: Address{"a", "3com.example"}},
		{in: "a@[192.0.2.1]", want: Address{"a", "[192.0.2.1]"}},
		{in: "a@[IPv6:2001:DB8:0::1]", want: Address{"a", "[IPv6:2001:DB8:0::1]"}, key: "[ipv6:2001:db8::1]"},
		{in: "a@[ipv6:::1]", want: Address{"a", "[ipv6:::1]"}},
		{in: "пример@пример.example", want: Address{"пример", "пример.example"}, key: "xn--e1afmkfd.example", utf8: true},
		{in: "a@bücher.example", want: Address{"a", "bücher.example"}, out: "a@xn--bcher-kva.example", key: "xn--bcher-kva.example"},
		{in: "a@BÜCHER.example", want: Address{"a", "BÜCHER.example"}, out: "a@xn--bcher-kva.example", key: "xn--bcher-kva.example"},
		{in: "a@faß.example", want: Address{"a", "faß.example"}, out: "a@xn--fa-hia.example", key: "xn--fa-hia.example"},
		{in: "a@XN--BCHER-KVA.example", want: Address{"a", "XN--BCHER-KVA.example"}, key: "xn--bcher-kva.example"},
		{in: "\"\u00e9 x\"@c.example", want: Address{"\u00e9 x", "c.example"}, utf8: true},
		{in: strings.Repeat("a", 128) + "@b", want: Address{strings.Repeat("a", 128), "b"}},
		{in: "a@" + l63 + "." + l63 + "." + l63 + ".example", want: Address{"a", l63 + "." + l63 + "." + l63 + ".example"}},
	}
	for _, tt := range tests {
		got, err := ParseAddress(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v; want %+v", tt.in, got, err, tt.want)
			continue
		}
		out := tt.out
		if out == "" {
			out = tt.in
		}
		if got.String() != out {
			t.Errorf("%q: String() = %q, want %q", tt.in, got.String(), out)
		}
		key := tt.key
		if key == "" {
			key = tt.want.Domain
		}
		if got.DomainKey() != key {
			t.Errorf("%q: DomainKey() = %q, want %q", tt.in, got.DomainKey(), key)
		}
		if got.NeedsUTF8() != tt.utf8 {
			t.Errorf("%q: NeedsUTF8() = %v", tt.in, got.NeedsUTF8())
		}
	}
}

func TestParseAddressRefuses(t *testing.T) {
	t.Parallel()
	l63 := strings.Repeat("a", 63)
	for in, want := range map[string]error{
		"":                                     errAddressEmpty,
		"a":                                    errNoDomain,
		"a@":                                   errNoDomain,
		`"a"`:                                  errNoDomain,
		`"a"b@c`:                               errNoDomain,
		"@b":                                   errLocalEmpty,
		"a@b@c":                                errSecondAt,
		".a@b":                                 errLocalDot,
		"a.@b":                                 errLocalDot,
		"a..b@c":                               errLocalDot,
		"a b@c":                                errLocalOctet,
		"a,b@c":                                errLocalOctet,
		"a\x00@b":                              errLocalOctet,
		"a\r@b":                                errLocalOctet,
		"a\x7f@b":                              errLocalOctet,
		"<a@b":                                 errLocalOctet,
		`a"b"@c`:                               errLocalOctet,
		`a\b@c`:                                errLocalOctet,
		"\xff@b":                               errLocalOctet,
		"a\u0085@b":                            errLocalOctet,
		"a\u00a0b@c":                           errLocalOctet,
		"a\u2028b@c":                           errLocalOctet,
		"a\u202eb@c":                           errLocalOctet,
		`"a`:                                   errLocalQuote,
		`"a\`:                                  errLocalQuote,
		`"a\"@b`:                               errLocalQuote,
		"\"a\rb\"@c":                           errLocalOctet,
		"\"a\\\rb\"@c":                         errLocalOctet,
		"\"a\\\x00b\"@c":                       errLocalOctet,
		"\"a\xffb\"@c":                         errLocalOctet,
		"\"a\\é\"@c":                           errLocalOctet,
		"\"a\u202e\"@c":                        errLocalOctet,
		"a@b>":                                 errDomainOctet,
		"a@b c":                                errDomainOctet,
		"a@b\x00":                              errDomainOctet,
		"a@b\t":                                errDomainOctet,
		"a@b..c":                               errDomainEmpty,
		"a@.b":                                 errDomainEmpty,
		"a@b.":                                 errDomainEmpty,
		"a@-b.example":                         errDomainHyphen,
		"a@b-.example":                         errDomainHyphen,
		"a@192.0.2.1":                          errDomainNumeric,
		"a@1":                                  errDomainNumeric,
		"a@b.123":                              errDomainNumeric,
		"a@\uff11\uff12\uff17.0.0.1":           errDomainNumeric, // fullwidth digits
		"a@b\u3002example":                     errDomainIDN,
		"a@\u2100.example":                     errDomainOctet, // maps to "a/c"
		"a@b\u00ad\u200b.\u00ad":               errDomainEmpty,
		"a@\xff.example":                       errDomainOctet,
		"a@é\xff.example":                      errDomainOctet,
		"a@[192.0.2.256]":                      errLiteral,
		"a@[192.0.2.01]":                       errLiteral,
		"a@[192.0.2.1":                         errLiteral,
		"a@[192.0.2.1]x":                       errLiteral,
		"a@[]":                                 errLiteral,
		"a@[::1]":                              errLiteral,
		"a@[IPv6:]":                            errLiteral,
		"a@[IPv6:192.0.2.1]":                   errLiteral,
		"a@[IPv6:fe80::1%eth0]":                errLiteral,
		"a@[x400:y]":                           errLiteral,
		"a@" + l63 + "a.example":               errDomainLong,
		"a@" + strings.Repeat("ü", 62):         errDomainLong,
		strings.Repeat("a", 129) + "@b":        errLocalLong,
		strings.Repeat("a", 250) + "@example":  errAddressLong,
		"a@" + strings.Repeat("a.", 126) + "a": errAddressLong,
		strings.Repeat("a", 128) + "@" + strings.Repeat("ü.", 19) + "ü": errAddressLong,
		`"` + strings.Repeat(`\a`, 126) + `"@b`:                         errAddressLong,
	} {
		got, err := ParseAddress(in)
		if err != want {
			t.Errorf("%q: %+v, %v; want %v", in, got, err, want)
		}
	}
}

// Old addresses of Japanese providers have dots where no Dot-string has them. Mail to
// them is taken and the local part is quoted on the wire; nobody sends as one unquoted.
func TestParseRecipient(t *testing.T) {
	t.Parallel()
	for in, out := range map[string]string{
		"foo..bar@docomo.example":       `"foo..bar"@docomo.example`,
		"foo.@docomo.example":           `"foo."@docomo.example`,
		".foo@docomo.example":           `".foo"@docomo.example`,
		"...@docomo.example":            `"..."@docomo.example`,
		`"foo..bar"@docomo.example`:     `"foo..bar"@docomo.example`,
		"a..-_b+.@docomo.example":       `"a..-_b+."@docomo.example`,
		"é..x@docomo.example":           `"é..x"@docomo.example`,
		"foo.bar@docomo.example":        "foo.bar@docomo.example",
		`"foo.bar"@docomo.example`:      "foo.bar@docomo.example",
		"foo..bar@bücher.example":       `"foo..bar"@xn--bcher-kva.example`,
		strings.Repeat(".", 128) + "@b": `"` + strings.Repeat(".", 128) + `"@b`,
	} {
		a, err := ParseRecipient(in)
		if err != nil || a.String() != out {
			t.Errorf("%q: %q, %v; want %q", in, a, err, out)
			continue
		}
		checkAddress(t, a)
		quoted, err := ParseRecipient(out)
		if err != nil || quoted.Local != a.Local {
			t.Errorf("%q and %q are %+v and %+v, %v", in, out, a, quoted, err)
		}
		r, err := ParseRcpt("TO:<"+in+"> ORCPT=rfc822;foo..bar@docomo.example", true)
		if err != nil || r.To != a || !strings.HasPrefix(string(r.Append(nil)), "RCPT TO:<"+out+">") || r.ORcpt != "foo..bar@docomo.example" {
			t.Errorf("RCPT: %+v, %v", r, err)
		}
		if r, err := ParseRcpt("TO:<@relay.example:"+in+">", true); err != nil || r.To != a {
			t.Errorf("RCPT by a route: %+v, %v", r, err)
		}
		_, err = ParseMail("FROM:<" + in + "> SMTPUTF8")
		if dotty := in[0] != '"' && checkDotString(in[:strings.IndexByte(in, '@')]) == errLocalDot; (err != nil) != dotty {
			t.Errorf("MAIL with %q: %v", in, err)
		}
	}
	for in, want := range map[string]error{
		"@b": errLocalEmpty, "a..b": errNoDomain, "a..b@": errNoDomain, "a..b@c..d": errDomainEmpty, "a.. b@c": errLocalOctet,
		"a..b@c@d": errSecondAt, strings.Repeat(".", 129) + "@b": errLocalLong, `"a"..b@c`: errNoDomain, "a..<@b": errLocalOctet,
		strings.Repeat(".", 128) + "@" + strings.Repeat("a.", 61) + "a": nil, strings.Repeat(".", 128) + "@" + strings.Repeat("a.", 61) + "aA": errAddressLong,
	} {
		if a, err := ParseRecipient(in); err != want {
			t.Errorf("%q: %+v, %v; want %v", in, a, err, want)
		}
	}
}

// CVE-2025-61725: a long domain literal took seconds elsewhere.
func TestA8LongDomainLiteral(t *testing.T) {
	t.Parallel()
	if _, err := ParseAddress("a@[" + strings.Repeat("a", 262_144) + "]"); err != errAddressLong {
		t.Error(err)
	}
}

func TestAddressNull(t *testing.T) {
	t.Parallel()
	var a Address
	if !a.IsNull() || a.String() != "" || a.NeedsUTF8() || a.DomainKey() != "" {
		t.Errorf("%v %q %v %q", a.IsNull(), a.String(), a.NeedsUTF8(), a.DomainKey())
	}
	if p := (Address{Local: "postmaster"}); p.IsNull() || p.String() != "postmaster" {
		t.Errorf("%v %q", p.IsNull(), p.String())
	}
}

// A value that was never parsed may hold anything; what is written is one mailbox.
func TestA12StringOfWhatWasNeverParsed(t *testing.T) {
	t.Parallel()
	for in, want := range map[Address]string{
		{"a\r\nRCPT TO:<x@y>", "b"}: `"a??RCPT TO:<x@y>"@b`,
		{"a\x00", "b"}:              `"a?"@b`,
		{"a\xff", "b"}:              `"a?"@b`,
		{"a\u202e", "b"}:            `"a?"@b`,
		{"a", "b> SIZE=1\r\nX"}:     "a@b??SIZE=1??X",
		{"a", "b@c"}:                "a@b?c",
		{"é", "b\n"}:                "é@b?",
	} {
		if got := in.String(); got != want {
			t.Errorf("%+v: %q, want %q", in, got, want)
		}
	}
}

func TestDomainKey(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Example.COM.":   "example.com",
		"Bücher.example": "xn--bcher-kva.example",
		"not a domain":   "not a domain",
		"":               "",
	} {
		if got := (Address{"a", in}).DomainKey(); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestValidDomain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{
		"host": true, "host.example": true, "[192.0.2.1]": true, "[IPv6:::1]": true, "hôte.example": true,
		"": false, "x\x1b[2J": false, strings.Repeat("a", 1000): false, "a b": false, "[IPv6:::1": false, "a..b": false, "[": false,
	} {
		if got := ValidDomain(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// checkAddress wants a parsed address to be written as one mailbox that parses back
// to the same, twice over.
func checkAddress(t fataler, a Address) {
	out := a.String()
	again, err := ParseAddress(out)
	if err != nil {
		t.Fatalf("%+v is written %q: %v", a, out, err)
		return
	}
	if again.Local != a.Local || again.DomainKey() != a.DomainKey() || again.String() != out {
		t.Fatalf("%+v is written %q and read %+v", a, out, again)
	}
	if a.NeedsUTF8() == IsASCII(out) {
		t.Fatalf("%+v: NeedsUTF8() = %v, written %q", a, a.NeedsUTF8(), out)
	}
	if !IsASCII(a.DomainKey()) {
		t.Fatalf("%+v: DomainKey() = %q", a, a.DomainKey())
	}
	if strings.ContainsAny(out, "\r\n\x00") {
		t.Fatalf("%+v is written %q", a, out)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"a@b", `"x> SIZE=1"@b`, `"a\"b"@[IPv6:::1]`, "@a.example,@[192.0.2.1]:u@b", "é@bücher.example", "a@b@c",
		`a"@b>`, "postmaster", "", "@@:", "\"a\r\"@b", "a@ｅｘａｍｐｌｅ.com",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddress(s); err == nil {
			checkAddress(t, a)
			if len(a.String()) > maxMailbox+1 {
				t.Fatalf("%q is written with %d octets", s, len(a.String()))
			}
		}
		// What stands between the brackets is the whole path or no path at all.
		path, rest, err := cutPath("TO:<"+s+"> X=1", "TO:")
		if err == nil && "<"+path+">"+rest != "<"+s+"> X=1" {
			t.Fatalf("%q was cut into %q and %q", s, path, rest)
		}
		if a, err := ParseRecipient(s); err == nil {
			checkAddress(t, a)
		}
		r, err := ParseRcpt("TO:<"+s+">", true)
		if err == nil && r.To.Domain != "" {
			checkAddress(t, r.To)
		}
	})
}
