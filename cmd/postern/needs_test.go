package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	netsmtp "net/smtp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"postern/internal/peers"
	"postern/internal/smtptest"
)

const asciiMail = "From: Alice <alice@example.com>\r\nTo: bob@example.net\r\nSubject: plain\r\nMessage-ID: <plain@example.com>\r\n\r\nA line.\r\n"

// useServer routes all mail to a fake server, under TLS and with an account there.
func (s *site) useServer(t *testing.T, extensions ...string) *smtptest.Server {
	t.Helper()
	ca := smtptest.NewCA(t)
	next := smtptest.Start(t, smtptest.Config{
		Extensions: append([]string{}, extensions...), TLS: ca.ServerConfig(t, "127.0.0.1"),
		Users: map[string]string{"relay": "secret"}, AuthOnly: true,
	})
	file := filepath.Join(s.dir, "upstream.pem")
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must(t, "secret", "upstream", "add", "out", "--host", next.Addr(), "--tls", "require", "--ca-file", file,
		"--username", "relay", "--password-stdin")
	s.must(t, "", "route", "add", "--via", "out")
	return next
}

// asGoDoes is a message by Go's own client, which declares all that it is offered.
func (s *site) asGoDoes(t *testing.T, text string, to ...string) {
	t.Helper()
	certificate, err := os.ReadFile(filepath.Join(s.dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certificate)
	c, err := netsmtp.Dial(net.JoinHostPort("127.0.0.1", strconv.Itoa(s.starttls)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	steps := []func() error{
		func() error { return c.StartTLS(&tls.Config{ServerName: "127.0.0.1", RootCAs: pool}) },
		func() error { return c.Auth(netsmtp.PlainAuth("", s.account.name, s.account.password, "127.0.0.1")) },
		func() error { return c.Mail(s.account.name) },
	}
	for _, address := range to {
		steps = append(steps, func() error { return c.Rcpt(address) })
	}
	steps = append(steps, func() error {
		w, err := c.Data()
		if err != nil {
			return err
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		return w.Close()
	}, c.Quit)
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// P01: what a client declares of plain ASCII is no need. One upstream offers what Amazon
// SES does, the other one has no 8BITMIME either.
func TestP01ForeignClients(t *testing.T) {
	t.Parallel()
	for name, extensions := range map[string][]string{"8BITMIME only": {"8BITMIME"}, "nothing": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := installSite(t)
			next := s.useServer(t, extensions...)
			s.serve(t)
			s.asGoDoes(t, asciiMail, "bob@example.net")
			if m := arrivedPlain(t, next, 1); !strings.Contains(string(m.Data), " with UTF8SMTPSA ") {
				t.Errorf("Go's client declared nothing:\n%s", m.Data)
			}
			mail := mailFile(t, asciiMail)
			for i, client := range []string{peers.Smtplib, peers.Nodemailer} {
				send(t, client, s.settings(peers.StartTLS, mail, "bob@example.net"))
				arrivedPlain(t, next, 2+i)
			}
			if n := len(next.Transactions()); n != 3 { // no notice
				t.Errorf("%d messages came", n)
			}
		})
	}
}

// arrivedPlain is the nth message at next, which has to be asciiMail to bob@example.net
// without any declaration.
func arrivedPlain(t *testing.T, next *smtptest.Server, n int) smtptest.Message {
	t.Helper()
	m := next.WaitMessages(t, n)[n-1]
	if m.Mail != "FROM:<alice@example.com>" || !slices.Equal(m.Rcpts, []string{"TO:<bob@example.net>"}) {
		t.Errorf("MAIL %s RCPT %q", m.Mail, m.Rcpts)
	}
	if !strings.HasSuffix(strings.TrimRight(string(m.Data), "\r\n"), "\r\n\r\nA line.") {
		t.Errorf("arrived as %q", m.Data)
	}
	return m
}

// P13, P02: the recipient in an IDN goes in A-labels, and only the one whose local part
// needs UTF-8 fails. Its sender is told, by a way that has no SMTPUTF8 and no 8BITMIME.
func TestP13IDNRecipients(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	next := s.useServer(t)
	s.serve(t)
	s.asGoDoes(t, asciiMail, "bob@bücher.example", "carol@example.net", "jürgen@example.net")
	mail, notice := mailAndNotice(t, next)
	if mail.Mail != "FROM:<alice@example.com>" || !slices.Equal(mail.To(), []string{"bob@xn--bcher-kva.example", "carol@example.net"}) {
		t.Errorf("arrived as MAIL %s to %q", mail.Mail, mail.To())
	}
	received, _ := splitReceived(string(mail.Data))
	id := strings.Fields(received[strings.Index(received, " id "):])[1]
	h := s.finished(t, id)
	for to, want := range map[string]string{
		"bob@xn--bcher-kva.example": "delivered 250 ", "carol@example.net": "delivered 250 ", "jürgen@example.net": "failed 553 5.6.7 ",
	} {
		if got := results(h, to); len(got) == 0 || !strings.HasPrefix(got[0], want) {
			t.Errorf("<%s>: %q, want %s", to, got, want)
		}
	}
	checkBounce(t, s, notice, id, wantedNotice{`utf-8; j\x{FC}rgen@example.net`, "5.6.7",
		"553 5.6.7 Next server does not offer SMTPUTF8, which this address or message needs", "message/rfc822", "A line.", true})
}

// mailAndNotice are the two messages that come, in whatever order. The notice has to come
// without a declaration.
func mailAndNotice(t *testing.T, next *smtptest.Server) (mail smtptest.Message, notice peers.Message) {
	t.Helper()
	list := next.WaitMessages(t, 2)
	if list[0].From() == "" {
		slices.Reverse(list)
	}
	if n := list[1]; n.Mail != "FROM:<>" {
		t.Errorf("the notice arrived as MAIL %s", n.Mail)
	}
	return list[0], peers.Message{From: list[1].From(), To: list[1].To(), Data: list[1].Data}
}

// P03: one recipient of mail that is not ASCII fails, and the way back has no 8BITMIME.
func TestP03OctetsAndTheWayBack(t *testing.T) {
	t.Parallel()
	const fields = "From: Alice <alice@example.com>\r\nMessage-ID: <plain@example.com>\r\n"
	latin1 := fields + "Subject: Gr\xfc\xdfe\r\n\r\nGr\xfc\xdfe\r\n"
	labelled := fields + "Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGr\xfc\xdfe\r\n"
	inUTF8 := fields + "Subject: Grüße\r\n\r\nGrüße\r\n"
	gone := func(c smtptest.Session) smtptest.Action {
		if strings.Contains(c.Command, "gone@") {
			return smtptest.Reply(noMailbox)
		}
		return smtptest.Normal()
	}
	for name, tt := range map[string]struct{ text, returned string }{
		"Latin-1": {latin1, ""}, "Latin-1, labelled": {labelled, "Content-Transfer-Encoding: 8bit"}, "UTF-8": {inUTF8, "Subject: Grüße"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := installSite(t)
			next := s.useServer(t)
			next.On(smtptest.PhaseRcpt, gone)
			s.serve(t)
			id := send(t, peers.Smtplib, s.settings(peers.StartTLS, mailFile(t, tt.text), "bob@example.net", "gone@example.net"))
			mail, notice := mailAndNotice(t, next)
			if _, text := splitReceived(string(mail.Data)); mail.Mail != "FROM:<alice@example.com>" || !strings.HasSuffix(text, tt.text[len(fields):]) {
				t.Errorf("arrived as MAIL %s\n%q", mail.Mail, text)
			}
			checkBounce(t, s, notice, id, noSuch("gone@example.net", "text/rfc822-headers", tt.returned))
		})
	}
}

// P03: a text that was declared as 8BITMIME cannot go where that is not offered (RFC 6152
// section 3); the sender hears of it.
func TestP03DeclaredOctets(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	next := s.useServer(t)
	s.serve(t)
	text := strings.Replace(asciiMail, "A line.", "Zwölf Boxkämpfer", 1)
	s.asGoDoes(t, text, "bob@example.net")
	m := next.WaitMessages(t, 1)[0]
	b := readByGo(t, m.Data)
	id := regexp.MustCompile(`Queue id of the message: (\S+)`).FindStringSubmatch(b.Text)
	if m.Mail != "FROM:<>" || id == nil {
		t.Fatalf("arrived as MAIL %s\n%s", m.Mail, m.Data)
	}
	checkBounce(t, s, peers.Message{To: m.To(), Data: m.Data}, id[1], wantedNotice{"rfc822; bob@example.net", "5.6.3",
		"554 5.6.3 Next server does not offer 8BITMIME, which this message needs", "text/rfc822-headers", "<plain@example.com>", true})
}

// P03: the way back refuses the notice. That is a warning in the log, a count, and a line in
// the traces of the notice and of the mail. One that an operator cancels while no node
// runs is told by the next that does.
func TestP03LostNotice(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	next := s.useServer(t)
	const notHere, later = "550 5.7.1 No bounces here", "451 4.7.1 No bounces now"
	answer := notHere
	var mu sync.Mutex
	next.On(smtptest.PhaseRcpt, func(c smtptest.Session) smtptest.Action {
		mu.Lock()
		defer mu.Unlock()
		if c.Mail == "FROM:<>" {
			return smtptest.Reply(answer)
		}
		return smtptest.Reply(noMailbox)
	})
	d := s.serve(t)
	mail := mailFile(t, asciiMail)
	id := send(t, peers.Smtplib, s.settings(peers.StartTLS, mail, "gone@example.net"))
	lost := d.await(t, &d.stderr, `"level":"WARN","msg":"notice_lost","id":"([^"]+)","about":"`+id+
		`","kind":"failure","recipient":"alice@example.com","code":550,"reply":"`+notHere+`","reason":"failed"`)[1]
	admin := "http://" + d.await(t, &d.stderr, `"msg":"postern is ready".*"admin":"([^"]+)"`)[1]
	page(t, admin+"/metrics", http.StatusOK, `postern_notices_lost_total{reason="failed"} 1`)
	for of, want := range map[string]string{
		id:   "The failure notice " + lost + " was lost (failed: " + notHere + "): <alice@example.com> has not been told.\n\nNothing waits any more; docs/operate.md says",
		lost: "This notice was lost (failed): <alice@example.com> has not been told what became of message " + id + ".\n",
	} {
		if out := s.must(t, "", "trace", of); !strings.Contains(out, want) {
			t.Errorf("the trace of %s lacks %q:\n%s", of, want, out)
		}
	}

	mu.Lock()
	answer = later
	mu.Unlock()
	id = send(t, peers.Smtplib, s.settings(peers.StartTLS, mail, "gone@example.net"))
	notice := d.await(t, &d.stderr, `"msg":"bounced","id":"([^"]+)","about":"`+id)[1]
	s.traceUntil(t, notice, "deferred", hasResult("deferred"))
	d.signal(t, os.Interrupt)
	<-d.ended
	if out := s.must(t, "", "queue", "cancel", notice); !strings.Contains(out, "1 ") {
		t.Errorf("cancel said %s", out)
	}
	d = s.serve(t)
	d.await(t, &d.stderr, `"msg":"notice_lost","id":"`+notice+`","about":"`+id+`",.*"code":451,"reply":"`+later+`","reason":"cancelled"`)
	if n := strings.Count(d.stderr.String(), "notice_lost"); n != 1 {
		t.Errorf("told %d times", n)
	}
}
