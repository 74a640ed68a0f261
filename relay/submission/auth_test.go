package submission

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/auth"
	"postern/relay/queue"
	"postern/relay/smtp"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestA25Exchanges sends what no client should; the session goes on each time, and
// a good login still works.
func TestA25Exchanges(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("A", smtp.MaxAuthLine-len("AUTH PLAIN ")-2)
	for name, dialog := range map[string][]string{ // line, code, line, code, …
		"empty":                {"AUTH PLAIN =", "501"},
		"one NUL":              {"AUTH PLAIN AA==", "501"},
		"no NUL":               {"AUTH PLAIN " + b64("abc"), "501"},
		"three NULs":           {"AUTH PLAIN " + b64("\x00a\x00b\x00c"), "501"},
		"empty name":           {"AUTH PLAIN " + b64("\x00\x00secret"), "501"},
		"empty password":       {"AUTH PLAIN " + b64("\x00alice@example.com\x00"), "535"},
		"another authzid":      {"AUTH PLAIN " + b64("bob\x00alice@example.com\x00secret"), "535"},
		"LF in the name":       {"AUTH PLAIN " + b64("\x00a\nb\x00secret"), "501"},
		"not base64":           {"AUTH PLAIN !", "501"},
		"no padding":           {"AUTH PLAIN AGE", "501"},
		"space in it":          {"AUTH PLAIN AG E=", "501"},
		"two spaces":           {"AUTH PLAIN  AGE=", "501"},
		"continuation empty":   {"AUTH PLAIN", "334", "", "501"},
		"LOGIN empty name":     {"AUTH LOGIN", "334", "", "501"},
		"LOGIN empty initial":  {"AUTH LOGIN =", "501"},
		"LOGIN empty password": {"AUTH LOGIN", "334", b64("alice@example.com"), "334", "", "535"},
		"LOGIN cancel":         {"AUTH LOGIN " + b64("alice"), "334", "*", "501"},
		"12,288 octets":        {"AUTH PLAIN " + long, "501"},
		"12,289 octets":        {"AUTH PLAIN " + long + "A", "500"},
		"long continuation":    {"AUTH PLAIN", "334", strings.Repeat("A", smtp.MaxAuthLine), "501"},
		"unknown mechanism":    {"AUTH SCRAM-SHA-256 biws", "504"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t)
			c := ts.dialTLS(t)
			c.cmd(250, "EHLO client.test")
			for i := 0; i < len(dialog); i += 2 {
				c.send(dialog[i] + "\r\n")
				code, text, err := c.reply()
				if err != nil || fmt.Sprint(code) != dialog[i+1] {
					t.Fatalf("%.40q: %d %q, %v; want %s", dialog[i], code, text, err, dialog[i+1])
				}
			}
			c.cmd(250, "NOOP")
			c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
			if ts.log.Count(b64("secret")) != 0 || ts.log.Count(`"secret"`) != 0 {
				t.Error("a secret is in the log")
			}
		})
	}
}

// TestFailedAuthNamesTheUser: an administrator must see whose logins fail.
func TestFailedAuthNamesTheUser(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for _, name := range []string{"alice@example.com", "nobody@example.com"} {
		c := ts.dialTLS(t)
		c.cmd(250, "EHLO client.test")
		c.cmd(535, "AUTH PLAIN "+plain(name, "wrong"))
		if ts.log.Count(`"user":"`+name+`"`) != 1 {
			t.Errorf("%s is not in the log: %s", name, ts.log)
		}
	}
}

// TestA25ShortPassword: one character is a password.
func TestA25ShortPassword(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	ts.verifier.verify = func(_ context.Context, name, password string) (auth.Identity, error) {
		if name == "a" && password == "x" {
			return auth.Identity{Name: name}, nil
		}
		return auth.Identity{}, auth.ErrCredentials
	}
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain("a", "x"))
}

// TestA25Panic: a defect ends its own session, is counted, and nothing else.
func TestA25Panic(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	ts.panics = 2
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) { panic("injected") }
	other := ts.dialTLS(t)
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	c.cmd(421, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	c.expectClosed()
	other.cmd(250, "NOOP")
	ts.verifier.verify = nil
	ts.queue.refuse = func(int, queue.Message) error { panic("injected") }
	c = ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(421)
	c.expectClosed()
	waitFor(t, "two panics", func() bool { return ts.Stats().Panics == 2 })
	if n := ts.log.Count("injected"); n != 1 {
		t.Errorf("%d panics are in the log, want the first of a minute", n)
	}
}

// TestAuthTrouble: only a verdict about the password is 535 (P8), and only that
// counts as a failure; what went wrong is in the log and not in the reply.
func TestAuthTrouble(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		code int
	}{
		{auth.ErrBusy, 454},
		{auth.ErrUnavailable, 454},
		{fmt.Errorf("pq: internal detail: %w", auth.ErrUnavailable), 454},
		{errors.New("internal detail"), 454},
		{context.DeadlineExceeded, 454},
		{fmt.Errorf("bob: %w", auth.ErrCredentials), 535},
	} {
		ts := startServer(t)
		ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) { return auth.Identity{}, tc.err }
		c := ts.dialTLS(t)
		c.cmd(250, "EHLO client.test")
		for range 3 {
			text := c.cmd(tc.code, "AUTH PLAIN "+plain("alice@example.com", "secret"))
			if strings.Contains(text, "detail") || strings.Contains(text, "bob") {
				t.Errorf("%v: the client heard %q", tc.err, text)
			}
		}
		again := 454
		if tc.code == 535 {
			again = 421 // three failures
		}
		c.cmd(again, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	}
}

// TestAuthWithoutQueue: while nothing can be accepted nobody is let in, however good
// and well remembered the password is, and that is no failure of the client's.
func TestAuthWithoutQueue(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	ts.queue.available = &smtp.Error{Reply: smtp.Temporary(451, 3, 0, "away"), Err: errors.New("no database")}
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	for range 4 {
		c.cmd(454, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	}
	ts.queue.mu.Lock()
	ts.queue.available = nil
	ts.queue.mu.Unlock()
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
}

// TestQueueTrouble: P8 at MAIL and at the dot. The reply of the queue is passed on
// when it is temporary; nothing else is, and the transaction is over.
func TestQueueTrouble(t *testing.T) {
	t.Parallel()
	full := &smtp.Error{Reply: smtp.Temporary(452, 3, 1, "Disk full"), Err: errors.New("53100")}
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{full, 452, "4.3.1 Disk full"},
		{errors.New("internal detail"), 451, "4.3.0 "},
		{context.DeadlineExceeded, 451, "4.3.0 "},
		{&smtp.Error{Reply: smtp.Permanent(554, 0, 0, "never")}, 451, "4.3.0 "},
	} {
		ts := startServer(t)
		ts.handoff.room = 10
		ts.queue.refuse = func(int, queue.Message) error { return tc.err }
		c := ts.login(t)
		ts.queue.mu.Lock()
		ts.queue.available = tc.err
		ts.queue.mu.Unlock()
		if text := c.cmd(tc.code, "MAIL FROM:<alice@example.com>"); !strings.HasPrefix(text, tc.text) {
			t.Errorf("MAIL, %v: %q", tc.err, text)
		}
		c.cmd(451, "RCPT TO:<bob@example.net>") // as a client says that pipelines
		c.cmd(451, "DATA")
		c.cmd(250, "RSET")
		c.cmd(503, "RCPT TO:<bob@example.net>")
		ts.queue.mu.Lock()
		ts.queue.available = nil
		ts.queue.mu.Unlock()
		c.envelope()
		c.send(smallMessage + ".\r\n")
		if text := c.expect(tc.code); !strings.HasPrefix(text, tc.text) {
			t.Errorf("dot, %v: %q", tc.err, text)
		}
		c.cmd(503, "RCPT TO:<bob@example.net>")
		if n := ts.handoff.finish(); n != 0 || ts.queue.len() != 0 {
			t.Errorf("%v: %d messages were handed over, %d are queued", tc.err, n, ts.queue.len())
		}
	}
}

// TestHandoff: with room messages are born owned and handed over once, without it
// they wait.
func TestHandoff(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	ts.handoff.room = 2
	c := ts.login(t)
	for range 4 {
		c.envelope()
		c.send(smallMessage + ".\r\n")
		c.expect(250)
	}
	var owned []bool
	for _, m := range ts.queue.all() {
		owned = append(owned, m.Owned)
	}
	if fmt.Sprint(owned) != "[true true false false]" {
		t.Errorf("owned: %v", owned)
	}
	if n := ts.handoff.finish(); n != 2 {
		t.Errorf("%d were handed over, want 2", n)
	}
}

// TestMessage looks at what reaches the queue: the envelope, the facts and the body.
func TestMessage(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb")
	c.cmd(250, "RCPT TO:<postmaster>")
	c.cmd(250, "RCPT TO:<bob@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;robert+40example.net")
	c.cmd(354, "DATA")
	c.send("From: alice@example.com\r\nBcc: eve@example.org\r\nMessage-ID: <1@client.test>\r\n\r\nGrüße\r\n..dot\r\n.\r\n")
	id := strings.TrimPrefix(c.expect(250), "2.0.0 Ok: queued as ")
	m := ts.queue.all()[0]
	if m.ID.String() != id || m.UserID != 7 || m.CredentialID != 9 || m.Sender.String() != "alice@example.com" ||
		m.BodyType != smtp.Body8BitMIME || !m.EightBit || m.UTF8 || m.Ret != smtp.ReturnHeaders || m.EnvID != "a+b" ||
		m.MessageID != "<1@client.test>" || m.ClientHello != "client.test" || m.Listener != "submissions" ||
		m.ClientAddr.String() != "127.0.0.1" || m.AcceptedAt.IsZero() || !strings.HasPrefix(m.TLS, "TLS1.3 TLS_") {
		t.Errorf("message: %+v", m.Message)
	}
	if len(m.Rcpts) != 2 || m.Rcpts[0].Address.String() != "postmaster@relay.test" || m.Rcpts[1].N != 1 ||
		m.Rcpts[1].Notify != smtp.NotifySuccess|smtp.NotifyDelay || m.Rcpts[1].ORcpt != "robert@example.net" {
		t.Errorf("recipients: %+v", m.Rcpts)
	}
	if !strings.HasPrefix(m.Body, "Received: from client.test (") || !strings.Contains(m.Body, "\r\nDate: ") ||
		strings.Contains(m.Body, "eve@") || !strings.HasSuffix(m.Body, "\r\n\r\nGrüße\r\n.dot\r\n") {
		t.Errorf("body: %q", m.Body)
	}
	if ts.log.Count(`"msg":"accepted"`) != 1 || ts.log.Count(id) != 1 {
		t.Errorf("log: %s", ts.log)
	}
}

// TestP01NeedsFollowFromTheText: what is stored of a declaration is what the text and
// the envelope bear out.
func TestP01NeedsFollowFromTheText(t *testing.T) {
	t.Parallel()
	type needs struct {
		UTF8, EightBit bool
		BodyType       smtp.BodyType
	}
	const ascii, body, header, latin1 = "Subject: x\r\n\r\ntext\r\n", "Subject: x\r\n\r\nGr\u00fc\u00dfe\r\n", "Subject: Gr\u00fc\u00dfe\r\n\r\ntext\r\n", "Subject: Gr\xfc\xdfe\r\n\r\n\xfc\r\n"
	both := needs{true, true, smtp.Body8BitMIME}
	ts := startAs(t, []string{"alice@example.com", "älice@example.com"}, nil)
	c := ts.login(t)
	for i, tt := range []struct {
		mail, rcpt, text string
		want             needs
	}{
		{"<alice@example.com>", "<bob@example.net>", ascii, needs{}},
		{"<alice@example.com> BODY=8BITMIME SMTPUTF8", "<bob@example.net>", ascii, needs{}},
		{"<alice@example.com> BODY=7BIT", "<bob@example.net>", ascii, needs{}},
		{"<alice@example.com> SMTPUTF8", "<bob@b\u00fccher.example>", ascii, needs{}},
		{"<alice@example.com> BODY=8BITMIME SMTPUTF8", "<bob@example.net>", body, needs{false, true, smtp.Body8BitMIME}},
		{"<alice@example.com> BODY=7BIT SMTPUTF8", "<bob@example.net>", body, needs{false, true, ""}},
		{"<alice@example.com>", "<bob@example.net>", body, needs{false, true, ""}},
		{"<alice@example.com> BODY=8BITMIME SMTPUTF8", "<bob@example.net>", header, both},
		{"<alice@example.com>", "<bob@example.net>", header, needs{false, true, ""}},
		{"<alice@example.com> BODY=8BITMIME SMTPUTF8", "<bob@example.net>", latin1, needs{false, true, smtp.Body8BitMIME}},
		{"<\u00e4lice@example.com> SMTPUTF8", "<bob@example.net>", ascii, needs{true, false, ""}},
	} {
		c.cmd(250, "MAIL FROM:"+tt.mail)
		c.cmd(250, "RCPT TO:"+tt.rcpt)
		c.cmd(354, "DATA")
		c.send("From: alice@example.com\r\n" + tt.text + ".\r\n")
		c.expect(250)
		m := ts.queue.all()[i]
		if got := (needs{m.UTF8, m.EightBit, m.BodyType}); got != tt.want {
			t.Errorf("%s to %s, %q: %+v, want %+v", tt.mail, tt.rcpt, tt.text, got, tt.want)
		}
		// The name of the protocol says how it came, not what it needs (RFC 6531 section 3.7.3).
		if declared := strings.Contains(m.Body, " with UTF8SMTPSA "); declared != strings.Contains(tt.mail, "SMTPUTF8") {
			t.Errorf("%s: received by %.200q", tt.mail, m.Body)
		}
	}
}

// TestTLSNeed: REQUIRETLS is stored as a need, and counts more than the field TLS-Required.
func TestTLSNeed(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	for i, tt := range []struct {
		params, field string
		want          smtp.TLSNeed
	}{
		{"", "", ""},
		{" REQUIRETLS", "", smtp.TLSRequired},
		{"", "TLS-Required: No\r\n", smtp.TLSOptional},
		{" REQUIRETLS", "TLS-Required: No\r\n", smtp.TLSRequired},
	} {
		c.cmd(250, "MAIL FROM:<alice@example.com>"+tt.params)
		c.cmd(250, "RCPT TO:<bob@example.net>")
		c.cmd(354, "DATA")
		c.send("From: alice@example.com\r\n" + tt.field + "\r\nx\r\n.\r\n")
		c.expect(250)
		if got := ts.queue.all()[i].TLSNeed; got != tt.want {
			t.Errorf("%q and %q: %q", tt.params, tt.field, got)
		}
	}
}

// TestHideClient keeps the client's name and address out of Received.
func TestHideClient(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.HideClient = true })
	c := ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(250)
	if body := ts.queue.all()[0].Body; strings.Contains(body, "127.0.0.1") || strings.Contains(body, "client.test") {
		t.Errorf("body: %q", body)
	}
}

// TestA24NoRelayByAddress: nobody is trusted for where he comes from.
func TestA24NoRelayByAddress(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for _, from := range []string{"127.0.0.1", "127.1.2.3"} {
		c := dialFrom(t, ts, from)
		c.expect(220)
		c.cmd(250, "EHLO client.test")
		c.cmd(530, "MAIL FROM:<alice@example.com>")
		c.cmd(530, "RCPT TO:<bob@example.net>")
		c.startTLS()
		c.cmd(250, "EHLO client.test")
		c.cmd(530, "MAIL FROM:<alice@example.com>")
		c.cmd(500, "XCLIENT ADDR=127.0.0.1")
		c.cmd(500, "XFORWARD ADDR=127.0.0.1")
	}
	c := dialFrom(t, ts, "127.0.0.1")
	c.expect(220)
	c.cmd(500, "PROXY TCP4 127.0.0.1 127.0.0.1 1 2") // no PROXY protocol is spoken here
}

// TestA23Pipelining: however commands arrive, each is answered once and in order,
// and a group's replies leave together.
func TestA23Pipelining(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	group := "MAIL FROM:<alice@example.com>\r\nRCPT TO:<b1@example.net>\r\nRCPT TO:<b2@example.net>\r\nDATA\r\n"
	c.send(group)
	c.expect(250)
	if n := c.r.Buffered(); n == 0 {
		t.Error("the replies of a group did not come in one TLS record")
	}
	c.expect(250)
	c.expect(250)
	c.expect(354)
	c.send(smallMessage + ".\r\n" + group) // the next message right behind this one
	for _, code := range []int{250, 250, 250, 250, 354} {
		c.expect(code)
	}
	c.send(smallMessage + ".\r\nQUIT\r\n")
	c.expect(250)
	c.expect(221)
	c.expectClosed()
	if n := ts.queue.len(); n != 2 {
		t.Errorf("%d messages are queued, want 2", n)
	}
}

// TestA23DataRefused: the body of a refused message is never taken for commands,
// whichever way DATA was refused.
func TestA23DataRefused(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	const inject = "RSET\r\nMAIL FROM:<alice@example.com>\r\nRCPT TO:<v@example.net>\r\nDATA\r\nx\r\n.\r\n"
	for _, before := range []string{
		"DATA\r\n",
		"MAIL FROM:<eve@example.org>\r\nRCPT TO:<v@example.net>\r\nDATA\r\n",
		"MAIL FROM:<alice@example.com>\r\nRCPT TO:<a@b@c>\r\nDATA\r\n",
	} {
		c := ts.login(t)
		c.send(before + inject)
		codes := ""
		for {
			code, _, err := c.reply()
			if err != nil {
				break
			}
			codes += fmt.Sprint(code, " ")
		}
		if n := strings.Count(before, "\r\n"); strings.Count(codes, " ") != n {
			t.Errorf("%d commands were answered by %s", n, codes)
		}
	}
	if n := ts.queue.len(); n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

// TestDisconnectInData (crash points 1 to 4 of the accept side): a client that goes
// leaves nothing.
func TestDisconnectInData(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for _, at := range []string{"", "RCPT TO:<bob@example.net>\r\n", "DATA", "half", "dot"} {
		c := ts.login(t)
		c.cmd(250, "MAIL FROM:<alice@example.com>")
		if at != "" {
			c.cmd(250, "RCPT TO:<bob@example.net>")
		}
		switch at {
		case "DATA":
			c.cmd(354, "DATA")
		case "half":
			c.cmd(354, "DATA")
			c.send(sized(2 << 20)[:1<<20+100])
		case "dot":
			c.cmd(354, "DATA")
			c.send(smallMessage + ".\r")
		}
		c.conn.Close()
	}
	waitFor(t, "the sessions are gone", func() bool { return ts.Stats().Open == 0 })
	if st := ts.Stats(); ts.queue.len() != 0 || st.Memory != 0 || st.TempFiles != 0 {
		t.Errorf("%d messages are queued, %+v", ts.queue.len(), st)
	}
}
