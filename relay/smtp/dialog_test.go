package smtp

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// transcript reads what a client sends as a session that refuses nothing would: a
// line at a time, and message data behind each DATA. It notes commands, bodies, the
// codes of refusals, and "+" behind a command at which the client had to wait for
// the reply (RFC 2920 section 3.1, RFC 3207 section 4) and did not.
func transcript(src io.Reader) (got []string) {
	r := NewReader(src)
	for {
		line, err := r.Line(MaxCommandLine)
		if err == nil {
			var c Command
			if c, err = ParseCommand(line); err == nil {
				got = append(got, note(r, c))
				if c.Verb == "DATA" {
					var body []byte
					if body, err = io.ReadAll(r.Data(DataOptions{})); err == nil {
						got = append(got, fmt.Sprintf("%q", body))
					}
				}
			}
		}
		var refusal *Error
		switch {
		case errors.As(err, &refusal):
			got = append(got, fmt.Sprint(refusal.Reply.Code))
		case err != nil:
			return append(got, err.Error())
		}
	}
}

func note(r *Reader, c Command) string {
	switch c.Verb {
	case "DATA", "STARTTLS", "AUTH", "EHLO", "QUIT":
		if r.Buffered() > 0 {
			return c.Verb + "+"
		}
	}
	return c.Verb
}

func TestA23Dialogs(t *testing.T) {
	t.Parallel()
	const mail = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
	for in, want := range map[string]string{
		// What pipelining allows.
		"EHLO h\r\n|" + mail + "|x\r\n.\r\nMAIL FROM:<a@b>\r\n|QUIT\r\n": `EHLO MAIL RCPT DATA "x\r\n" MAIL QUIT EOF`,
		"EHLO h\r\n|" + mail + "|.\r\n" + mail + "|y\r\n.\r\nRSET\r\n":   `EHLO MAIL RCPT DATA "" MAIL RCPT DATA "y\r\n" RSET EOF`,
		"EHLO h\r\n|RSET\r\n" + strings.Repeat("RCPT TO:<c@d>\r\n", 3):   `EHLO RSET RCPT RCPT RCPT EOF`,
		"EHLO h\r\n|" + mail + "|x\r\n.\r|\nNO|OP\r\n":                   `EHLO MAIL RCPT DATA "x\r\n" NOOP EOF`,
		// Talk before its time, which the session can see.
		"EHLO h\r\nMAIL FROM:<a@b>\r\n":              `EHLO+ MAIL EOF`,
		"EHLO h\r\n|STARTTLS\r\nEHLO injected\r\n":   `EHLO STARTTLS+ EHLO EOF`,
		"EHLO h\r\n|STARTTLS\r\n\x16\x03\x01\x02":    `EHLO STARTTLS+ unexpected EOF`,
		"EHLO h\r\n|AUTH PLAIN AGEAYg==\r\nNOOP\r\n": `EHLO AUTH+ NOOP EOF`,
		mail + "x\r\n.\r\nQUIT\r\n":                  `MAIL RCPT DATA+ "x\r\n" QUIT EOF`,
		"QUIT\r\nMAIL FROM:<a@b>\r\n":                `QUIT+ MAIL EOF`,
		// Refusals leave the reader in step.
		"EHLO h\r\n|" + mail + "|x\ny\r\n.\r\nNOOP\r\n":                    `EHLO MAIL RCPT DATA 554 NOOP EOF`,
		"EHLO h\r\n|" + mail + "|x\r\n.\nMAIL FROM:<e@a>\r\n.\r\nNOOP\r\n": `EHLO MAIL RCPT DATA 554 NOOP EOF`,
		"NO\nOP\r\nNOOP\r\n": `500 NOOP EOF`,
		strings.Repeat("x", 3*MaxCommandLine) + "\r\nNOOP\r\n": `500 NOOP EOF`,
		"GET / HTTP/1.1\r\nHost: h\r\n\r\nNOOP\r\n":            `GET 500 500 NOOP EOF`,
		"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nNOOP\r\n":       `PROXY NOOP EOF`,
		"\r\n\r\n\x0d\x0a\x00\x0d\x0aQUIT\x0a\x21\r\nNOOP\r\n": `500 500 500 500 500 NOOP EOF`,
		// A client that goes away is never taken at half its word.
		"EHLO h\r\n|" + mail + "|x\r\n.":   `EHLO MAIL RCPT DATA unexpected EOF`,
		"EHLO h\r\n|" + mail + "|x\r\n.\r": `EHLO MAIL RCPT DATA unexpected EOF`,
		"EHLO h\r\n|MAIL FROM:<a@b>":       `EHLO unexpected EOF`,
	} {
		// "|" is where the client waits for the reply.
		var parts []io.Reader
		for part := range strings.SplitSeq(in, "|") {
			parts = append(parts, strings.NewReader(part))
		}
		if got := strings.Join(transcript(io.MultiReader(parts...)), " "); got != want {
			t.Errorf("%.80q:\n got %s\nwant %s", in, got, want)
		}
		// In single octets nothing is early, and all else is the same.
		whole := strings.ReplaceAll(in, "|", "")
		got := transcript(&pieces{whole, 1})
		if plain := strings.Fields(strings.ReplaceAll(want, "+", "")); !slices.Equal(strings.Fields(strings.Join(got, " ")), plain) {
			t.Errorf("%.80q in single octets: %q", in, got)
		}
	}
}

// A24: every form in which relays were tricked into seeing another domain. Policy
// and routing see what is written, and write what they saw.
func TestA24RecipientForms(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Address{
		"<a%b.example@us.example>":             {"a%b.example", "us.example"},
		"<b.example!a@us.example>":             {"b.example!a", "us.example"},
		`<"a@b.example"@us.example>`:           {"a@b.example", "us.example"},
		`<"a%b.example"@us.example>`:           {"a%b.example", "us.example"},
		"<@us.example:a@b.example>":            {"a", "b.example"},
		"<@us.example,@x.example:a@b.example>": {"a", "b.example"},
		`<"<a@b.example>"@us.example>`:         {"<a@b.example>", "us.example"},
		`<"a\"@b.example> "@us.example>`:       {`a"@b.example> `, "us.example"},
		"<a+b.example@us.example>":             {"a+b.example", "us.example"},
		"<a@[127.0.0.1]>":                      {"a", "[127.0.0.1]"},
		"<postmaster>":                         {Local: "postmaster"},
		// No mailbox at all.
		"<a@b.example@us.example>":     {},
		"<@us.example:@x.example:a@b>": {},
		"<@us.example a@b.example>":    {},
		"<a@us.example> <a@b.example>": {},
		"<a@us.example><a@b.example>":  {},
		"a@us.example <a@b.example>":   {},
		"<a@us.example,b@b.example>":   {},
		"<a(comment)@us.example>":      {},
		"<a@us.example(comment)>":      {},
		"<a>":                          {},
		"<a@>":                         {},
		"<|/bin/sh@us.example>":        {"|/bin/sh", "us.example"},
		"<-oQ/tmp@us.example>":         {"-oQ/tmp", "us.example"},
	} {
		r, err := ParseRcpt("TO:"+in, true)
		if (err != nil) != want.IsNull() || r.To != want && err == nil {
			t.Errorf("%s: %+v, %v; want %+v", in, r.To, err, want)
		}
		if err != nil {
			continue
		}
		c, err := ParseCommand(r.Append(nil))
		if err != nil {
			t.Errorf("%s is written %q: %v", in, r.Append(nil), err)
		}
		if again, err := ParseRcpt(c.Args, true); err != nil || again != r {
			t.Errorf("%s is written %q and read %+v, %v", in, r.Append(nil), again, err)
		}
	}
}
