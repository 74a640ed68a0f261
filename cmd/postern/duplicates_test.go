package main

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"postern/internal/smtptest"
)

// talk is a session of the site's user, by hand.
type talk struct {
	conn net.Conn
	r    *bufio.Reader
}

func (s *site) talk(t *testing.T) *talk {
	t.Helper()
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.implicit)), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &talk{conn, bufio.NewReader(conn)}
	c.reply(t)
	c.say(t, "EHLO client.test")
	c.say(t, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+s.account.name+"\x00"+s.account.password)))
	return c
}

func (c *talk) say(t *testing.T, text string) string {
	t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\r\n", text); err != nil {
		t.Fatal(err)
	}
	return c.reply(t)
}

func (c *talk) reply(t *testing.T) string {
	t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		if len(line) > 3 && line[3] == ' ' {
			return strings.TrimSpace(line)
		}
	}
}

// submit sends a message and returns the reply to it, or none if the connection is cut before.
func (c *talk) submit(t *testing.T, heard bool, text string, to ...string) string {
	t.Helper()
	c.say(t, "MAIL FROM:<alice@example.com>")
	for _, address := range to {
		c.say(t, "RCPT TO:<"+address+">")
	}
	c.say(t, "DATA")
	if heard {
		return c.say(t, text+".")
	}
	if _, err := fmt.Fprintf(c.conn, "%s.\r\n", text); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	return ""
}

// docs/duplicates.md and docs/tags.md, on a running relay: a lost reply, the copies of another
// session, a recipient more, tags, a key of the client's own, and a credential without all that.
func TestDuplicatesPage(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	s.edit(t, func(text string) string { return strings.Replace(text, equalMail, "", 1) })
	next := s.useServer(t)
	s.serve(t)
	const mail = "From: alice@example.com\r\nMessage-ID: <copy@example.com>\r\nX-Postern-Tag: welcome\r\n" +
		"X-Postern-Metadata: {\"order\": 17}\r\nSubject: x\r\n\r\nbody\r\n"
	s.talk(t).submit(t, false, mail, "bob@example.net")
	next.WaitMessages(t, 1)
	found := s.must(t, "", "trace", "<copy@example.com>")
	first := strings.Fields(found)[1]
	for _, want := range []string{"welcome", `{"order":17}`} {
		if !strings.Contains(found, want) {
			t.Errorf("no %s in\n%s", want, found)
		}
	}
	c := s.talk(t)
	if got, want := c.submit(t, true, mail, "bob@example.net"), "250 2.0.0 Ok: duplicate, queued before as "+first; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := s.talk(t).submit(t, true, mail, "bob@example.net", "carol@example.net"); !strings.HasSuffix(got, "; duplicate for 1 of 2 recipients, queued before as "+first) {
		t.Errorf("%q", got)
	}
	if to := next.WaitMessages(t, 2)[1].To(); strings.Join(to, " ") != "carol@example.net" {
		t.Errorf("the copy is sent to %q", to)
	}
	if found := s.must(t, "", "trace", first); strings.Count(found, "duplicate") != 2 {
		t.Errorf("the trace is\n%s", found)
	}

	const keyed = "From: alice@example.com\r\nX-Postern-Idempotency-Key: invoice-2026-0017\r\n\r\n"
	if got := c.submit(t, true, keyed+"one\r\n", "bob@example.net"); !strings.Contains(got, "queued as") {
		t.Errorf("%q", got)
	}
	if got := c.submit(t, true, keyed+"one\r\n", "bob@example.net"); !strings.Contains(got, "Ok: duplicate") {
		t.Errorf("%q", got)
	}
	if got := c.submit(t, true, keyed+"two\r\n", "bob@example.net"); !strings.HasPrefix(got, "554 5.6.0 The idempotency key was used") {
		t.Errorf("%q", got)
	}
	for _, m := range next.WaitMessages(t, 3) {
		if strings.Contains(string(m.Data), "X-Postern") {
			t.Errorf("sent %s", m.Data)
		}
	}
	pageOfDuplicates(t, s, next)
}

// pageOfDuplicates runs the commands of the page, which turn the recognition off for a credential.
func pageOfDuplicates(t *testing.T, s *site, next *smtptest.Server) {
	s.must(t, "", "user", "add", "shop@example.com")
	s.account.name = "shop@example.com"
	for line := range strings.Lines(s.must(t, "", "credential", "add", "shop@example.com", "--generate")) {
		if secret, ok := strings.CutPrefix(line, "secret: "); ok {
			s.account.password = strings.TrimSpace(secret)
		}
	}
	for _, b := range blocksOf(t, "../../docs/duplicates.md") {
		for line := range strings.Lines(b.text) {
			if b.language == "sh" {
				s.must(t, "", strings.Fields(strings.Replace(line, "set 2", "set "+strings.Split(s.account.password, "_")[1], 1))[1:]...)
			}
		}
	}
	if list := s.must(t, "", "credential", "list", "shop@example.com", "--json"); !strings.Contains(list, `"duplicates": "off"`) {
		t.Errorf("credentials %s", list)
	}
	before := len(next.Messages())
	c := s.talk(t)
	for range 2 {
		c.say(t, "MAIL FROM:<shop@example.com>")
		c.say(t, "RCPT TO:<bob@example.net>")
		c.say(t, "DATA")
		if got := c.say(t, "From: shop@example.com\r\nMessage-ID: <copy@example.com>\r\n\r\nbody\r\n."); !strings.Contains(got, "queued as") {
			t.Errorf("%q", got)
		}
	}
	next.WaitMessages(t, before+2)
}
