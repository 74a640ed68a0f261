package smtp

import (
	"errors"
	"strings"
	"testing"
)

// refusal returns the beginning "code enhanced" of an *Error's reply.
func refusal(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *Error", err)
	}
	if strings.ContainsAny(e.Reply.Text, "\r\n") || e.Reply.Text == "" {
		t.Fatalf("reply text %q", e.Reply.Text)
	}
	code, _, _ := strings.Cut(e.Reply.String(), e.Reply.Text)
	return strings.TrimSpace(code)
}

func TestParseCommand(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Command{
		"NOOP":                {"NOOP", ""},
		"noop":                {"NOOP", ""},
		"NoOp \t ":            {"NOOP", ""},
		"MAIL FROM:<a@b> X=1": {"MAIL", "FROM:<a@b> X=1"},
		"EHLO  host":          {"EHLO", "host"},
		"EHLO m\xfcller-pc":   {"EHLO", "m\xfcller-pc"},
		"STARTTLSfoo":         {"STARTTLSFOO", ""},
		"auth PLAIN =":        {"AUTH", "PLAIN ="},
		"xclient ADDR=::1":    {"XCLIENT", "ADDR=::1"},
	} {
		if got, err := ParseCommand([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", " ", " NOOP", "\tNOOP", "MAIL\tFROM:<a@b>", "NOOP x\x1b[2J", "NOOP a\tb", "NOOP \x7f", "123", "MAIL:", "\x16\x03\x01",
		"ﬁle", "É", strings.Repeat("A", 33), "PROXY-1", "@", "[", "`", "{",
	} {
		got, err := ParseCommand([]byte(in))
		if r := refusal(t, err); r != "500 5.5.2" {
			t.Errorf("%q: %+v, %q", in, got, r)
		}
	}
}

func TestParseMail(t *testing.T) {
	t.Parallel()
	ab := Address{"a", "b.example"}
	for in, want := range map[string]MailCommand{
		"FROM:<>":             {},
		"FROM:<a@b.example>":  {From: ab},
		"from: <a@b.example>": {From: ab},
		"FROM:<@x.example,@[IPv6:::1]:a@b.example>":    {From: ab},
		"FROM:<a@b.example>  SIZE=10  ":                {From: ab, Size: 10},
		"FROM:<a@b.example> SIZE=0":                    {From: ab},
		"FROM:<a@b.example> SIZE=9223372036854775807":  {From: ab, Size: 9223372036854775807},
		"FROM:<a@b.example> SIZE=00000000000000000001": {From: ab, Size: 1},
		"FROM:<a@b.example> body=8bitmime":             {From: ab, Body: Body8BitMIME},
		"FROM:<a@b.example> BODY=7BIT RET=hdrs":        {From: ab, Body: Body7Bit, Ret: ReturnHeaders},
		"FROM:<> RET=FULL ENVID=a+2Bb+3dc+20d":         {Ret: ReturnFull, EnvID: "a+b=c d"},
		"FROM:<a@b.example> requiretls":                {From: ab, RequireTLS: true},
		"FROM:<a@b.example> AUTH=<>":                   {From: ab, Auth: "<>"},
		"FROM:<a@b.example> AUTH=e+3Dmc2@c":            {From: ab, Auth: "e=mc2@c"},
		`FROM:<"a> SIZE=1"@b.example> SIZE=2`:          {From: Address{"a> SIZE=1", "b.example"}, Size: 2},
		"FROM:<é@b.example> SMTPUTF8":                  {From: Address{"é", "b.example"}, UTF8: true},
		"FROM:<a@bücher.example> smtputf8":             {From: Address{"a", "bücher.example"}, UTF8: true},
		"FROM:<a@b.example> SMTPUTF8":                  {From: ab, UTF8: true},
	} {
		if got, err := ParseMail(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestBracketed(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"FROM:a@b":                 "FROM:<a@b>",
		"to: a@b":                  "to:<a@b>",
		"FROM:a@b SIZE=1 BODY=x":   "FROM:<a@b> SIZE=1 BODY=x",
		`TO:"a b"@c NOTIFY=NEVER`:  `TO:<"a b"@c> NOTIFY=NEVER`,
		`TO:"a\" b"@c NOTIFY=x`:    `TO:<"a\" b"@c> NOTIFY=x`,
		"TO:postmaster":            "TO:<postmaster>",
		"FROM:<a@b> SIZE=1":        "FROM:<a@b> SIZE=1",
		"FROM: <a@b>":              "FROM: <a@b>",
		"FROM:":                    "FROM:",
		"FROM: ":                   "FROM: ",
		"FROM":                     "FROM",
		"":                         "",
		"FROM:a@[IPv6:::1] SIZE=1": "FROM:<a@[IPv6:::1]> SIZE=1",
	} {
		if got := Bracketed(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	// What is no address is none with brackets around it either.
	for _, in := range []string{"a@b>", "a@b> SIZE=1", "Alice <a@b>", "a@b <c@d>", "a@b c@d", `"a`, `"a b`, "a@b\t", ">", "a@b<c@d>", `a"b c"@d>`} {
		if m, err := ParseMail(Bracketed("FROM:" + in)); err == nil {
			t.Errorf("%q is taken for %+v", in, m)
		}
		if r, err := ParseRcpt(Bracketed("TO:"+in), false); err == nil {
			t.Errorf("%q is taken for %+v", in, r)
		}
	}
}

func TestParseMailRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                      "501 5.5.4",
		"FROM":                                  "501 5.5.4",
		"TO:<a@b>":                              "501 5.5.4",
		"FROM:":                                 "501 5.5.4",
		"FROM:a@b":                              "501 5.5.4",
		"FROM:<a@b":                             "501 5.5.4",
		"FROM:a@b>":                             "501 5.5.4",
		"FROM:<a@b>SIZE=1":                      "501 5.5.4",
		"FROM:<a@b>>":                           "501 5.5.4",
		"FROM:<<a@b>>":                          "501 5.5.4",
		`FROM:<"a@b>`:                           "501 5.5.4",
		`FROM:<a"@b> SIZE=1`:                    "501 5.5.4",
		`FROM:<a\> SIZE=1`:                      "501 5.1.7",
		"FROM:< >":                              "501 5.1.7",
		"FROM:<postmaster>":                     "501 5.1.7",
		"FROM:<a b@c>":                          "501 5.1.7",
		"FROM:<a@b@c>":                          "501 5.1.7",
		"FROM:<a@192.0.2.1>":                    "501 5.1.7",
		"FROM:<\"a\rb\"@x>":                     "501 5.1.7",
		"FROM:<@x.example>":                     "501 5.1.7",
		"FROM:<@x.example:>":                    "501 5.1.7",
		"FROM:<@x_,y:a@b>":                      "501 5.1.7",
		"FROM:<@x y:a@b>":                       "501 5.1.7",
		"FROM:<@[192.0.2.1:a@b>":                "501 5.1.7",
		"FROM:<@[192.0.2.1]":                    "501 5.5.4",
		"FROM:<@[192.0.2.1]>":                   "501 5.1.7",
		"FROM:<\xff@b> SMTPUTF8":                "501 5.1.7",
		"FROM:<é@b>":                            "553 5.6.7",
		"FROM:<a@bücher.example>":               "553 5.6.7",
		"FROM:<a@b> SIZE":                       "501 5.5.4",
		"FROM:<a@b> SIZE=":                      "501 5.5.4",
		"FROM:<a@b> SIZE=-1":                    "501 5.5.4",
		"FROM:<a@b> SIZE=1x":                    "501 5.5.4",
		"FROM:<a@b> SIZE=1 size=2":              "501 5.5.4",
		"FROM:<a@b> SIZE=9223372036854775808":   "552 5.3.4",
		"FROM:<a@b> SIZE=99999999999999999999":  "552 5.3.4",
		"FROM:<a@b> SIZE=100000000000000000000": "501 5.5.4",
		"FROM:<a@b> BODY":                       "501 5.5.4",
		"FROM:<a@b> BODY=BINARYMIME":            "501 5.5.4",
		"FROM:<a@b> SMTPUTF8=1":                 "501 5.5.4",
		"FROM:<a@b> SMTPUTF8 SMTPUTF8":          "501 5.5.4",
		"FROM:<a@b> RET=NONE":                   "501 5.5.4",
		"FROM:<a@b> REQUIRETLS=1":               "501 5.5.4",
		"FROM:<a@b> ENVID=":                     "501 5.5.4",
		"FROM:<a@b> ENVID=+00":                  "501 5.5.4",
		"FROM:<a@b> ENVID=+0D+0A":               "501 5.5.4",
		"FROM:<a@b> ENVID=+":                    "501 5.5.4",
		"FROM:<a@b> ENVID=a+2":                  "501 5.5.4",
		"FROM:<a@b> ENVID=+GG":                  "501 5.5.4",
		"FROM:<a@b> ENVID=+-1":                  "501 5.5.4",
		"FROM:<a@b> ENVID=a=b":                  "501 5.5.4",
		"FROM:<a@b> ENVID=+FF":                  "501 5.5.4",
		"FROM:<a@b> ENVID=é SMTPUTF8":           "501 5.5.4",
		"FROM:<a@b> ENVID=" + strings.Repeat("a", 101): "501 5.5.4",
		"FROM:<a@b> AUTH":                        "501 5.5.4",
		"FROM:<a@b> AUTH=+0A":                    "501 5.5.4",
		"FROM:<a@b> NOTIFY=NEVER":                "555 5.5.4",
		"FROM:<a@b> XYZ=1":                       "555 5.5.4",
		"FROM:<a@b> =1":                          "501 5.5.4",
		"FROM:<a@b> -X=1":                        "501 5.5.4",
		"FROM:<a@b> X\x00=1":                     "501 5.5.4",
		"FROM:<a@b>" + strings.Repeat(" A=1", 2): "501 5.5.4",
	} {
		got, err := ParseMail(in)
		if r := refusal(t, err); r != want {
			t.Errorf("%q: %+v, %q; want %q", in, got, r, want)
		}
	}
	var many strings.Builder
	for range 21 {
		many.WriteString(" X" + strings.Repeat("A", many.Len()%60+1))
	}
	if _, err := ParseMail("FROM:<a@b>" + many.String()); refusal(t, err) != "501 5.5.4" {
		t.Error(err)
	}
}

func TestParseRcpt(t *testing.T) {
	t.Parallel()
	ab := Address{"a", "b.example"}
	for in, want := range map[string]RcptCommand{
		"TO:<a@b.example>":                                {To: ab},
		"to: <a@b.example> ":                              {To: ab},
		"TO:<@x.example:a@b.example>":                     {To: ab},
		"TO:<postmaster>":                                 {To: Address{Local: "postmaster"}},
		"TO:<Postmaster> NOTIFY=NEVER":                    {To: Address{Local: "Postmaster"}, Notify: NotifyNever},
		"TO:<a@b.example> notify=never":                   {To: ab, Notify: NotifyNever},
		"TO:<a@b.example> NOTIFY=DELAY,success,FAILURE":   {To: ab, Notify: NotifySuccess | NotifyFailure | NotifyDelay},
		"TO:<a@b.example> ORCPT=RFC822;Bob+2Bx@c.example": {To: ab, ORcptType: "rfc822", ORcpt: "Bob+x@c.example"},
		"TO:<a@b.example> ORCPT=rfc822;+22a+20b+22@c":     {To: ab, ORcptType: "rfc822", ORcpt: `"a b"@c`},
		"TO:<a@b.example> ORCPT=utf-8;\\x{E9}@c":          {To: ab, ORcptType: "utf-8", ORcpt: "é@c"},
		"TO:<a@b.example> ORCPT=utf-8;é\\x{3D}@c":         {To: ab, ORcptType: "utf-8", ORcpt: "é=@c"},
		"TO:<a@b.example> ORCPT=x400;c+3Dus":              {To: ab, ORcptType: "x400", ORcpt: "c=us"},
		"TO:<é@b.example>":                                {To: Address{"é", "b.example"}},
		`TO:<"x@evil.example> ORCPT=rfc822;y"@b.example>`: {To: Address{"x@evil.example> ORCPT=rfc822;y", "b.example"}},
	} {
		if got, err := ParseRcpt(in, true); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseRcptRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                   "501 5.5.4",
		"FROM:<a@b>":                         "501 5.5.4",
		"TO:a@b":                             "501 5.5.4",
		"TO:<a@b":                            "501 5.5.4",
		"TO:<a@b>x":                          "501 5.5.4",
		"TO:<>":                              "501 5.1.3",
		"TO:<a>":                             "501 5.1.3",
		"TO:<postmaster@>":                   "501 5.1.3",
		"TO:<a@b@c>":                         "501 5.1.3",
		"TO:<@x.example,a@b>":                "501 5.1.3",
		"TO:<é@b>":                           "553 5.6.7",
		"TO:<a@b> NOTIFY":                    "501 5.5.4",
		"TO:<a@b> NOTIFY=":                   "501 5.5.4",
		"TO:<a@b> NOTIFY=,":                  "501 5.5.4",
		"TO:<a@b> NOTIFY=SUCCESS,":           "501 5.5.4",
		"TO:<a@b> NOTIFY=SUCCESS,SUCCESS":    "501 5.5.4",
		"TO:<a@b> NOTIFY=NEVER,SUCCESS":      "501 5.5.4",
		"TO:<a@b> NOTIFY=ALWAYS":             "501 5.5.4",
		"TO:<a@b> NOTIFY=NEVER NOTIFY=NEVER": "501 5.5.4",
		"TO:<a@b> ORCPT":                     "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822":              "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;":             "501 5.5.4",
		"TO:<a@b> ORCPT=;a@b":                "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;a+0Ab":        "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;a+00b":        "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;+C3+A9@b":     "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;a\\b":          "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{0}":        "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{0A}":       "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{D800}":     "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{110000}":   "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{202E}":     "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;\\x{41":        "501 5.5.4",
		"TO:<a@b> ORCPT=utf-8;+FF":           "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;é@b":          "501 5.5.4",
		"TO:<a@b> ORCPT=rfc822;" + strings.Repeat("a", 494): "501 5.5.4",
		"TO:<a@b> SIZE=1": "555 5.5.4",
	} {
		got, err := ParseRcpt(in, false)
		if r := refusal(t, err); r != want {
			t.Errorf("%q: %+v, %q; want %q", in, got, r, want)
		}
	}
	for _, in := range []string{"TO:<a@b> ORCPT=utf-8;" + strings.Repeat("é", 90), "TO:<a@b> ORCPT=rfc822;é@b", "TO:<a@b> ORCPT=utf-8;\xff", "TO:<a@b> ORCPT=utf-8;\u202e"} {
		if _, err := ParseRcpt(in, true); refusal(t, err) != "501 5.5.4" {
			t.Errorf("%q with SMTPUTF8: %v", in, err)
		}
	}
}

// A12: what was decoded is checked after decoding, and nothing of it can leave its
// place when it is written again.
func TestA12DecodedArguments(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		octet := string([]byte{'+', hexDigits[c>>4], hexDigits[c&15]})
		want := c >= ' ' && c <= '~'
		if _, err := ParseMail("FROM:<> ENVID=a" + octet); (err == nil) != want {
			t.Errorf("ENVID=a%s: %v", octet, err)
		}
		if _, err := ParseMail("FROM:<> AUTH=a" + octet); (err == nil) != want {
			t.Errorf("AUTH=a%s: %v", octet, err)
		}
		if _, err := ParseRcpt("TO:<a@b> ORCPT=rfc822;a"+octet, true); (err == nil) != want {
			t.Errorf("ORCPT=rfc822;a%s: %v", octet, err)
		}
		raw := string([]byte{byte(c)})
		if a, err := ParseAddress("\"a\\" + raw + "b\"@x"); (err == nil) != want {
			t.Errorf("quoted pair of %q: %+v, %v", raw, a, err)
		}
	}
}

func TestA12AppendOfWhatWasNeverParsed(t *testing.T) {
	t.Parallel()
	evil := "x\r\nRCPT TO:<v@w>\x00é"
	m := MailCommand{From: Address{evil, evil}, Size: 1, Body: BodyType(evil), UTF8: true, Ret: Return(evil), EnvID: evil, Auth: evil}
	r := RcptCommand{To: Address{evil, evil}, Notify: 0xFF, ORcptType: evil, ORcpt: evil}
	u := RcptCommand{To: Address{"a", "b"}, ORcptType: "utf-8", ORcpt: evil}
	for _, line := range []string{string(m.Append(nil)), string(r.Append(nil)), string(u.Append(nil))} {
		if strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("%q", line)
		}
	}
}

func TestAppend(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"MAIL FROM:<>": "",
		"MAIL from: <A@b> body=7bit size=5 ret=full envid=a+2bb auth=<> smtputf8": "MAIL FROM:<A@b> SIZE=5 BODY=7BIT SMTPUTF8 RET=FULL ENVID=a+2Bb AUTH=<>",
		`MAIL FROM:<"a> X=1"@b>`:                                          "",
		"MAIL FROM:<@x.example:a@b>":                                      "MAIL FROM:<a@b>",
		"MAIL FROM:<a@bücher.example> SMTPUTF8":                           "MAIL FROM:<a@xn--bcher-kva.example> SMTPUTF8",
		"MAIL FROM:<é@bücher.example> SMTPUTF8":                           "",
		"RCPT TO:<postmaster>":                                            "",
		"RCPT TO:<a@b> NOTIFY=NEVER":                                      "",
		"RCPT TO:<a@b> NOTIFY=DELAY,FAILURE,SUCCESS ORCPT=RFC822;a+2Bb@c": "RCPT TO:<a@b> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;a+2Bb@c",
		`RCPT TO:<a@b> ORCPT=utf-8;é\x{3d}\x{5c}@c`:                       `RCPT TO:<a@b> ORCPT=utf-8;\x{E9}\x{3D}\x{5C}@c`,
	} {
		if want == "" {
			want = in
		}
		if got := rewritten(t, in); got != want {
			t.Errorf("%q is written %q, want %q", in, got, want)
		}
	}
}

// rewritten parses a MAIL or RCPT line and writes it again.
func rewritten(t *testing.T, line string) string {
	t.Helper()
	c, err := ParseCommand([]byte(line))
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if c.Verb == "MAIL" {
		m, err := ParseMail(c.Args)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return string(m.Append(nil))
	}
	r, err := ParseRcpt(c.Args, true)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return string(r.Append(nil))
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"NOOP\r\n", "MAIL FROM:<a@b> SIZE=1\r\nRSET\r\n", "NO\nOP\r\nX\r\n", "\x16\x03\x01\r\n", "A\r\r\nB\r\n", strings.Repeat("x", 40) + "\r\nQUIT\r\n"} {
		f.Add([]byte(s), byte(1), byte(20))
	}
	f.Fuzz(func(t *testing.T, in []byte, step, limit byte) {
		r := NewReader(&pieces{string(in), int(step) + 1})
		rest := string(in)
		for {
			want, after, found := cutTrueLine(rest)
			line, err := r.Line(int(limit))
			if !found {
				var e *Error
				if err == nil || errors.As(err, &e) {
					t.Fatalf("%q has no end, but %q, %v", rest, line, err)
				}
				return
			}
			rest = after
			legal := len(want)+2 <= int(limit) && !strings.ContainsAny(want, "\r\n\x00")
			if legal != (err == nil) || legal && string(line) != want {
				t.Fatalf("%q, %v; want %q", line, err, want)
			}
			if !legal {
				if refusal(t, err) != "500 5.5.2" {
					t.Fatal(err)
				}
				continue
			}
			c, err := ParseCommand(line)
			if err == nil && (c.Verb == "" || c.Verb != strings.ToUpper(c.Verb) || strings.TrimSpace(c.Args) != c.Args && IsASCII(c.Args)) {
				t.Fatalf("%q is %+v", line, c)
			}
			refusal(t, err)
		}
	})
}

// cutTrueLine cuts s at its first CRLF.
func cutTrueLine(s string) (line, rest string, found bool) { return strings.Cut(s, "\r\n") }

func FuzzMailParams(f *testing.F) {
	for _, s := range []string{"FROM:<a@b> SIZE=10 BODY=8BITMIME", "FROM:<é@b> SMTPUTF8 ENVID=+2B AUTH=<>", "FROM:<\"a> X\"@b> RET=HDRS", "FROM: <>", "FROM:<@a:b@c>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		m, err := ParseMail(args)
		if refusal(t, err) != "" {
			return
		}
		line := m.Append(nil)
		c, err := ParseCommand(line)
		if err != nil {
			t.Fatalf("%+v is written %q: %v", m, line, err)
		}
		again, err := ParseMail(c.Args)
		if err != nil || again.From.Local != m.From.Local || again.From.DomainKey() != m.From.DomainKey() {
			t.Fatalf("%+v is written %q and read %+v, %v", m, line, again, err)
		}
		again.From, m.From = Address{}, Address{}
		if again != m {
			t.Fatalf("%+v is written %q and read %+v", m, line, again)
		}
		if !printableASCII(m.EnvID) || !printableASCII(m.Auth) || m.Size < 0 {
			t.Fatalf("%+v", m)
		}
	})
}

func FuzzRcptParams(f *testing.F) {
	for _, s := range []string{"TO:<a@b> NOTIFY=NEVER", "TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb", "TO:<é@b> ORCPT=utf-8;\\x{E9}é", "TO:<postmaster>"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, args string, utf8 bool) {
		r, err := ParseRcpt(args, utf8)
		if refusal(t, err) != "" {
			return
		}
		line := r.Append(nil)
		c, err := ParseCommand(line)
		if err != nil {
			t.Fatalf("%+v is written %q: %v", r, line, err)
		}
		again, err := ParseRcpt(c.Args, utf8)
		if err != nil || again.To.Local != r.To.Local || again.To.DomainKey() != r.To.DomainKey() {
			t.Fatalf("%+v is written %q and read %+v, %v", r, line, again, err)
		}
		again.To, r.To = Address{}, Address{}
		if again != r {
			t.Fatalf("%+v is written %q and read %+v", r, line, again)
		}
	})
}

// A25: whatever AUTH is given, the line comes through as it was or is refused; what
// it means is for the exchange.
func TestA25AuthLines(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"PLAIN =", "PLAIN AA==", "PLAIN", "plain AGEAYg==", "PLAIN !", "PLAIN AGEAYg", "PLAIN AGEA Yg==", "*", "LOGIN YQ==",
		"X-UNKNOWN", "", "PLAIN " + strings.Repeat("A", MaxAuthLine-len("AUTH PLAIN \r\n")),
	} {
		r := NewReader(strings.NewReader("AUTH " + args + "\r\nNOOP\r\n"))
		line, err := r.Line(MaxAuthLine)
		if err != nil {
			t.Errorf("%.40q: %v", args, err)
			continue
		}
		if c, err := ParseCommand(line); err != nil || c != (Command{"AUTH", args}) {
			t.Errorf("%.40q: %.40q, %v", args, c.Args, err)
		}
		if line, err := r.Line(MaxCommandLine); string(line) != "NOOP" {
			t.Errorf("%.40q: then %q, %v", args, line, err)
		}
	}
	for _, args := range []string{"PLAIN AG\rEAYg==", "PLAIN AG\nEAYg==", "PLAIN \x00", "PLAIN " + strings.Repeat("A", MaxAuthLine-len("AUTH PLAIN \r\n")+1)} {
		r := NewReader(strings.NewReader("AUTH " + args + "\r\nNOOP\r\n"))
		if line, err := r.Line(MaxAuthLine); refusal(t, err) != "500 5.5.2" {
			t.Errorf("%.40q: %.40q, %v", args, line, err)
		}
		if line, err := r.Line(MaxCommandLine); string(line) != "NOOP" {
			t.Errorf("%.40q: then %q, %v", args, line, err)
		}
	}
}
