package submission

import (
	"context"
	"strings"
	"testing"

	"postern/auth"
	"postern/policy/quota"
)

// startAs is a server whose user has these sender patterns and limits.
func startAs(t *testing.T, senders []string, limits []quota.Limit, change ...func(*Config)) *testServer {
	ts := startServer(t, change...)
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) {
		return auth.Identity{UserID: 7, CredentialID: 9, Name: "alice@example.com", Senders: senders, Limits: limits}, nil
	}
	return ts
}

// A16: nobody sends as somebody else, by whatever header. What the header's grammar
// refuses is tested in relay/message.
func TestA16Identity(t *testing.T) {
	t.Parallel()
	ts := startAs(t, []string{"a@own.example", "b@own.example", "*@*.own.example", "<>"}, nil)
	c := ts.login(t)
	tests := []struct {
		name, mail, header string
		want               string // code and enhanced code
		rule               string // of the refusal
	}{
		{"own", "<a@own.example>", "From: a@own.example", "250 2.0.0", ""},
		{"own, not as in MAIL", "<a@own.example>", "From: b@own.example", "250 2.0.0", ""},
		{"two From", "<a@own.example>", "From: a@own.example\r\nFrom: b@victim.example", "554 5.6.0", ""},
		{"two addresses", "<a@own.example>", "From: a@own.example, b@victim.example", "550 5.7.1", "header From"},
		{"name that is an address", "<a@own.example>", "From: b@victim.example <a@own.example>", "554 5.6.0", ""},
		{"quoted name that is an address", "<a@own.example>", "From: \"b@victim.example\" <a@own.example>", "250 2.0.0", ""},
		{"space before the colon", "<a@own.example>", "From : a@own.example", "554 5.6.0", ""},
		{"lower case", "<a@own.example>", "from: b@victim.example", "550 5.7.1", "header From"},
		{"upper case", "<a@own.example>", "FROM: b@victim.example", "550 5.7.1", "header From"},
		{"colon in a fold", "<a@own.example>", "From: a@own.example\r\nFrom\r\n : b@victim.example", "554 5.6.0", ""},
		{"first line starts with a space", "<a@own.example>", " From: b@victim.example\r\nFrom: a@own.example", "554 5.6.0", ""},
		{"blank line of spaces", "<a@own.example>", "From: a@own.example\r\n \r\nFrom: b@victim.example", "554 5.6.0", ""},
		{"NUL", "<a@own.example>", "From:\x00 a@own.example", "554 5.6.0", ""},
		{"bare CR", "<a@own.example>", "From: a@own.example\rFrom: b@victim.example", "554 5.6.0", ""},
		{"bare LF", "<a@own.example>", "From: a@own.example\nFrom: b@victim.example", "554 5.6.0", ""},
		{"group", "<a@own.example>", "From: g: a@own.example, b@victim.example;", "550 5.7.1", "header From"},
		{"own group", "<a@own.example>", "From: g: a@own.example, b@own.example;", "250 2.0.0", ""},
		{"comment", "<a@own.example>", "From: (b) b@victim.example (a)", "550 5.7.1", "header From"},
		{"encoded word in an address", "<a@own.example>", "From: =?utf-8?q?a?=@own.example", "554 5.6.0", ""},
		{"source route", "<a@own.example>", "From: <@victim.example:a@own.example>", "554 5.6.0", ""},
		{"8-bit", "<a@own.example>", "From: \u00e4@own.example", "554 5.6.0", ""},
		{"homograph", "<a@own.example>", "From: a@\u043ewn.example", "554 5.6.0", ""},
		{"homograph with SMTPUTF8", "<a@own.example> SMTPUTF8", "From: a@\u043ewn.example", "550 5.7.1", "header From"},
		{"homograph in A-labels", "<a@own.example>", "From: a@xn--wn-emc.example", "550 5.7.1", "header From"},
		{"missing From", "<a@own.example>", "Subject: x", "554 5.6.0", ""},
		{"Sender", "<a@own.example>", "From: a@own.example\r\nSender: b@victim.example", "550 5.7.1", "header Sender"},
		{"Sender before From", "<a@own.example>", "Sender: b@victim.example\r\nFrom: a@own.example", "550 5.7.1", "header Sender"},
		{"Resent-From", "<a@own.example>", "Resent-From: b@victim.example\r\nFrom: a@own.example", "550 5.7.1", "header Resent-From"},
		{"second Resent-From", "<a@own.example>", "From: a@own.example\r\nResent-From: a@own.example\r\nResent-From: b@victim.example", "550 5.7.1", "header Resent-From"},
		{"Resent-Sender", "<a@own.example>", "From: a@own.example\r\nResent-Sender: b@victim.example", "550 5.7.1", "header Resent-Sender"},
		{"domain literal", "<a@own.example>", "From: a@[192.0.2.1]", "550 5.7.1", "header From"},
		{"null path", "<>", "From: a@own.example", "250 2.0.0", ""},
		{"null path as another", "<>", "From: b@victim.example", "550 5.7.1", "header From"},
		{"null path in From", "<>", "From: <>", "554 5.6.0", ""},
	}
	for _, tt := range tests {
		before, logged := ts.queue.len(), len(ts.log.String())
		c.cmd(250, "MAIL FROM:"+tt.mail)
		c.cmd(250, "RCPT TO:<bob@example.net>")
		c.cmd(354, "DATA")
		c.send(tt.header + "\r\n\r\ntext\r\n.\r\nNOOP\r\n")
		code, text, err := c.reply()
		if err != nil || !strings.HasPrefix(tt.want, itoa(code)) || !strings.HasPrefix(text, tt.want[4:]+" ") {
			t.Fatalf("%s: %d %s, %v; want %s", tt.name, code, text, err, tt.want)
		}
		c.expect(250) // NOOP: in step
		queued := 0
		if code == 250 {
			queued = 1
		}
		if n := ts.queue.len() - before; n != queued {
			t.Errorf("%s: %d messages are queued", tt.name, n)
		}
		if line := ts.log.String()[logged:]; tt.rule != "" && !strings.Contains(line, `"rule":"`+tt.rule+`"`) {
			t.Errorf("%s: the log has no rule: %s", tt.name, line)
		}
	}
	for _, m := range ts.queue.all() {
		if want := "sender " + m.Sender.String(); m.Rule != want && !(m.Sender.IsNull() && m.Rule == "sender <>") {
			t.Errorf("rule %q, want %q", m.Rule, want)
		}
	}
}

// Redirecting: with the option, whoever resends may pass on another's message as it is.
// The trace says why.
func TestRedirect(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) {
		return auth.Identity{UserID: 7, CredentialID: 9, Name: "alice@example.com",
			Senders: []string{"a@own.example", "office@own.example"}, Resend: []string{"office@own.example"}}, nil
	}
	c := ts.login(t)
	const theirs = "From: b@victim.example\r\nSender: c@victim.example\r\nDKIM-Signature: v=1\r\nMessage-ID: <1@x>\r\nDate: x"
	for _, tt := range []struct{ name, mail, header, want, rule string }{
		{"another's", "<a@own.example>", "Resent-From: office@own.example\r\nResent-Date: y\r\n" + theirs, "250 2.0.0", "sender a@own.example, resend office@own.example"},
		{"one's own", "<a@own.example>", "Resent-From: a@own.example\r\nFrom: office@own.example", "250 2.0.0", "sender a@own.example"},
		{"without the option", "<a@own.example>", "Resent-From: a@own.example\r\n" + theirs, "550 5.7.1", "header From"},
		{"not first", "<a@own.example>", "Resent-From: b@victim.example\r\nReceived: x\r\nResent-From: office@own.example\r\n" + theirs, "550 5.7.1", "header From"},
		{"not resent", "<office@own.example>", theirs, "550 5.7.1", "header From"},
		{"another envelope", "<b@victim.example>", "", "550 5.7.1", "sender none"},
		{"another's, in two ways", "<a@own.example>", "Resent-From: office@own.example\r\nFrom: b@victim.example <c@victim.example>", "554 5.6.0", ""},
	} {
		logged := len(ts.log.String())
		c.send("MAIL FROM:" + tt.mail + "\r\n")
		code, text, err := c.reply()
		if tt.header != "" {
			c.cmd(250, "RCPT TO:<bob@example.net>")
			c.cmd(354, "DATA")
			c.send(tt.header + "\r\n\r\ntext\r\n.\r\n")
			code, text, err = c.reply()
		}
		if err != nil || !strings.HasPrefix(itoa(code)+" "+text, tt.want+" ") {
			t.Errorf("%s: %d %s, %v; want %s", tt.name, code, text, err, tt.want)
		}
		if line := ts.log.String()[logged:]; tt.rule != "" && !strings.Contains(line, `"rule":"`+tt.rule+`"`) {
			t.Errorf("%s: the log lacks the rule: %s", tt.name, line)
		}
		if messages := ts.queue.all(); code == 250 && (messages[len(messages)-1].Rule != tt.rule || !strings.HasSuffix(messages[len(messages)-1].Body, tt.header[strings.LastIndex(tt.header, "From:"):]+"\r\n\r\ntext\r\n")) {
			t.Errorf("%s: queued %+v", tt.name, messages[len(messages)-1])
		}
	}
	if n := ts.queue.len(); n != 2 {
		t.Errorf("%d messages are queued", n)
	}
}

// A program that writes an mbox file's line or a byte order mark before its message: it is
// removed, and the log and the trace say so.
func TestRemovedPreamble(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	for _, tt := range []struct{ preamble, logged string }{
		{"\ufeff", `"removed":"bom"}`},
		{">From alice@example.com Mon Jan  5 10:00:00 2026\r\n", `"removed":"mbox"}`},
		{"\ufeffFrom alice@example.com Mon Jan  5 10:00:00 2026\r\n", `"removed":"bom mbox"}`},
		{"", ""},
	} {
		logged := len(ts.log.String())
		c.envelope()
		c.send(tt.preamble + smallMessage + ".\r\n")
		c.expect(250)
		messages := ts.queue.all()
		if body := messages[len(messages)-1].Body; !strings.HasSuffix(body, smallMessage) || strings.Contains(body, "Mon Jan") || strings.Contains(body, "\ufeff") {
			t.Errorf("%q: body %q", tt.preamble, body)
		}
		var traced string
		if tt.logged != "" {
			traced = "; removed " + strings.Trim(strings.TrimPrefix(tt.logged, `"removed":`), `"}`)
		}
		if rule := messages[len(messages)-1].Rule; !strings.HasSuffix(rule, traced) || traced == "" && strings.Contains(rule, "removed") {
			t.Errorf("%q: the rule is %q", tt.preamble, rule)
		}
		if line := ts.log.String()[logged:]; !strings.Contains(line, tt.logged) || tt.logged == "" && strings.Contains(line, "removed") {
			t.Errorf("%q: %s", tt.preamble, line)
		}
	}
}

func itoa(code int) string {
	return string([]byte{byte('0' + code/100), byte('0' + code/10%10), byte('0' + code%10)})
}

// A16: of what a user writes into the header only what is documented is removed.
func TestA16OtherFields(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	c.envelope()
	const stays = "DKIM-Signature: v=1; d=victim.example; b=x\r\nFrom: alice@example.com\r\nDate: x\r\nMessage-ID: <1@a>\r\n"
	c.send("Return-Path: <eve@example.org>\r\n" + stays + "Bcc: carol@example.net\r\nX-Last: y\r\n\r\ntext\r\n.\r\n")
	c.expect(250)
	if got := ts.queue.all()[0].Body; !strings.HasSuffix(got, "+0000\r\n"+stays+"X-Last: y\r\n\r\ntext\r\n") && !strings.HasSuffix(got, stays+"X-Last: y\r\n\r\ntext\r\n") {
		t.Errorf("body %q", got)
	}
	if got := ts.queue.all()[0].Body; strings.Contains(got, "Return-Path") || strings.Contains(got, "carol") {
		t.Errorf("body %q", got)
	}
}
