package main

import (
	"bytes"
	"encoding/base64"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/peers"
	"postern/relay/queue/desk"
)

// What Postfix and Exim say to RCPT in these tests.
const (
	greylisted = "451 4.2.0 Greylisted, come again"
	noMailbox  = "550 5.1.1 No such mailbox"
)

// upstreamAccount is ours at the upstream. The blanks and signs are there to be
// carried unchanged.
var upstreamAccount = login{"relay@example.com", `s3cret "word" \ $1`}

func TestPostfixUpstream(t *testing.T) {
	t.Parallel()
	testUpstream(t, peers.StartPostfix)
}

func TestEximUpstream(t *testing.T) {
	t.Parallel()
	testUpstream(t, peers.StartExim)
}

// testUpstream has a real mail server as the smarthost behind two relays: one is
// set up well, the other's account at the smarthost is mended by and by.
func testUpstream(t *testing.T, start func(testing.TB, peers.UpstreamConfig) *peers.Upstream) {
	up := start(t, peers.UpstreamConfig{User: upstreamAccount.name, Password: upstreamAccount.password, Answers: peers.Answers{
		"late@example.net": {greylisted}, "gone@example.net": {noMailbox},
		"later@example.net": {greylisted}, "lost@example.net": {noMailbox},
	}})
	wire := tapPort(t, up.Port)
	s := installSite(t)
	s.useUpstream(t, wire, up.CAFile, upstreamAccount)
	s.serve(t)
	t.Run("delivers", func(t *testing.T) { upstreamDelivers(t, s, up) })
	t.Run("defers", func(t *testing.T) { upstreamDefers(t, s, up) })
	t.Run("refuses", func(t *testing.T) { upstreamRefuses(t, s, up) })
	t.Run("mixed", func(t *testing.T) { upstreamMixed(t, s, up) })
	if list := s.waiting(t); len(list) != 0 {
		t.Errorf("the queue still holds %+v", list)
	}
	onlyTLS(t, wire)
	t.Run("mended", func(t *testing.T) { upstreamMended(t, up) })
}

// useUpstream adds the smarthost and the route to it.
func (s *site) useUpstream(t *testing.T, wire *tap, caFile string, as login) {
	t.Helper()
	s.must(t, as.password, "upstream", "add", "out", "--host", wire.address(), "--tls", "require",
		"--ca-file", caFile, "--username", as.name, "--password-stdin")
	s.must(t, "", "route", "add", "--via", "out")
}

// dropUpstream undoes useUpstream.
func (s *site) dropUpstream(t *testing.T) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^(\d+) +all mail +out$`).FindStringSubmatch(s.must(t, "", "route", "list"))
	if m == nil {
		t.Fatal("no route to remove")
	}
	s.must(t, "", "route", "remove", m[1])
	s.must(t, "", "upstream", "remove", "out")
}

const plainMail = "From: Alice <alice@example.com>\r\nTo: bob@example.net\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n" +
	"Date: Sat, 01 Aug 2026 10:00:00 +0000\r\nMessage-ID: <plain@example.com>\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
	"A line.\r\n.\r\n..two dots\r\nZwölf Boxkämpfer\r\n"

// submit hands plainMail in and returns its queue id.
func (s *site) submit(t *testing.T, to ...string) (id string) {
	t.Helper()
	return send(t, peers.Curl, s.settings(peers.Implicit, mailFile(t, plainMail), to...))
}

func upstreamDelivers(t *testing.T, s *site, up *peers.Upstream) {
	sent, wanted := awkwardMail("Postfix folds lines that are too long, and Exim bounces them.")
	to := []string{"bob@example.net", "carol@example.org"}
	id := send(t, peers.Smtplib, s.settings(peers.StartTLS, mailFile(t, sent), to...))
	m := arrival(t, up)
	if slices.Sort(m.To); m.From != s.account.name || !slices.Equal(m.To, to) {
		t.Errorf("arrived from <%s> to %q", m.From, m.To)
	}
	sameMail(t, m, id, wanted)
	h := s.finished(t, id)
	for _, rcpt := range to {
		if got := results(h, rcpt); len(got) != 1 || !strings.HasPrefix(got[0], "delivered 250 ") {
			t.Errorf("<%s>: %q", rcpt, got)
		}
	}
	for _, a := range h.Events {
		if a.Upstream != "out" || a.RemoteMTA != "127.0.0.1" || !strings.HasSuffix(a.TLS, " verified") || !a.DSNPassed {
			t.Errorf("attempt %+v", a)
		}
	}
}

// sameMail wants the upstream's Received field, then ours, then the mail as it was
// written.
func sameMail(t *testing.T, m peers.Message, id, wanted string) {
	t.Helper()
	theirs, rest := splitReceived(string(m.Data))
	if !strings.Contains(strings.ToUpper(theirs), "WITH ESMTPSA") {
		t.Errorf("the upstream saw no TLS or no AUTH: %q", theirs)
	}
	ours, rest := splitReceived(rest)
	if !strings.Contains(ours, " by relay.test with ESMTPSA id "+id+" ") {
		t.Errorf("our field is %q", ours)
	}
	sameText(t, rest, wanted)
}

func upstreamDefers(t *testing.T, s *site, up *peers.Upstream) {
	id := s.submit(t, "late@example.net")
	h := s.traceUntil(t, id, "deferred", hasResult("deferred"))
	if got := results(h, "late@example.net"); len(got) != 1 || !says(got[0], "deferred "+greylisted) {
		t.Errorf("%q", got)
	}
	if len(h.Live) != 1 || h.Live[0].State != desk.StateWaiting || !says(h.Live[0].LastReply, greylisted) {
		t.Fatalf("live: %+v", h.Live)
	}
	if wait := h.Live[0].NextAttemptAt.Sub(*h.Live[0].LastAttemptAt); wait < 50*time.Second || wait > 4*time.Minute {
		t.Errorf("the next attempt is in %v, want about a minute", wait)
	}
	if out := s.must(t, "", "queue", "retry", id); !strings.HasPrefix(out, "1 waiting") {
		t.Error(out)
	}
	m := arrival(t, up)
	if !slices.Equal(m.To, []string{"late@example.net"}) {
		t.Errorf("arrived to %q", m.To)
	}
	sameMail(t, m, id, plainMail)
	h = s.finished(t, id)
	got := results(h, "late@example.net")
	if len(got) != 3 || !strings.HasPrefix(got[1], "retry") || !strings.HasPrefix(got[2], "delivered 250 ") || up.Asked("late@example.net") != 2 {
		t.Errorf("%q after RCPT came %d times", got, up.Asked("late@example.net"))
	}
}

// says compares a line that ends in a reply: Postfix puts words of its own between
// the codes and the text.
func says(got, want string) bool {
	m := replyParts.FindStringSubmatch(want)
	return strings.HasPrefix(got, m[1]) && strings.HasSuffix(got, m[2])
}

var replyParts = regexp.MustCompile(`^(.*\d\.\d\.\d )(.*)$`)

func hasResult(result string) func(*desk.History) bool {
	return func(h *desk.History) bool {
		return slices.ContainsFunc(h.Events, func(a desk.Event) bool { return a.Result == result })
	}
}

// upstreamRefuses: a refused recipient is tried once, and the sender gets one
// notice through the same upstream.
func upstreamRefuses(t *testing.T, s *site, up *peers.Upstream) {
	id := send(t, peers.Curl, s.settings(peers.Implicit, mailFile(t, asciiMail), "gone@example.net"))
	m := arrival(t, up)
	h := s.finished(t, id)
	if got := results(h, "gone@example.net"); len(got) != 2 || !says(got[0], "failed "+noMailbox) || !strings.HasPrefix(got[1], "noticed") {
		t.Errorf("%q", got)
	}
	if n := up.Asked("gone@example.net"); n != 1 {
		t.Errorf("RCPT came %d times", n)
	}
	checkBounce(t, s, m, id, noSuch("gone@example.net", "message/rfc822", "A line."))
}

// upstreamMixed: in one transaction one recipient is taken, one deferred, one
// refused, and each has a fate of its own.
func upstreamMixed(t *testing.T, s *site, up *peers.Upstream) {
	id := s.submit(t, "bob@example.net", "later@example.net", "lost@example.net")
	first, second := arrival(t, up), arrival(t, up)
	if first.From == "" { // the notice may overtake
		first, second = second, first
	}
	if !slices.Equal(first.To, []string{"bob@example.net"}) {
		t.Errorf("taken for %q", first.To)
	}
	sameMail(t, first, id, plainMail)
	checkBounce(t, s, second, id, noSuch("lost@example.net", "text/rfc822-headers", "Content-Transfer-Encoding: 8bit"))

	h := s.traceUntil(t, id, "left with one recipient", func(h *desk.History) bool { return len(h.Live) == 1 })
	if live := h.Live[0]; live.Recipient != "later@example.net" || live.State != desk.StateWaiting {
		t.Errorf("live: %+v", live)
	}
	s.must(t, "", "queue", "retry", id)
	if m := arrival(t, up); !slices.Equal(m.To, []string{"later@example.net"}) {
		t.Errorf("then taken for %q", m.To)
	}
	h = s.finished(t, id)
	for rcpt, want := range map[string][]string{
		"bob@example.net": {"delivered"}, "later@example.net": {"deferred", "retry", "delivered"}, "lost@example.net": {"failed", "noticed"},
	} {
		got := results(h, rcpt)
		for i := range got {
			got[i], _, _ = strings.Cut(got[i], " ")
		}
		if !slices.Equal(got, want) {
			t.Errorf("<%s>: %q, want %q", rcpt, got, want)
		}
	}
}

// upstreamMended: as long as the set-up is wrong the mail waits, nobody gets a
// notice and nothing is said in clear; once it is right the mail goes out.
func upstreamMended(t *testing.T, up *peers.Upstream) {
	s := installSite(t)
	wire := tapPort(t, up.Port)
	stranger := filepath.Join(s.dir, "cert.pem") // our own certificate, which is not the upstream's authority
	s.useUpstream(t, wire, stranger, upstreamAccount)
	s.serve(t)

	id := s.submit(t, "bob@example.net")
	h := s.traceUntil(t, id, "deferred", hasResult("deferred"))
	if got := results(h, "bob@example.net"); got[0] != "deferred 451 4.7.5 127.0.0.1: its certificate is from an unknown authority" {
		t.Errorf("untrusted certificate: %q", got)
	}
	onlyTLS(t, wire)

	wire = tapPort(t, up.Port)
	s.dropUpstream(t)
	s.useUpstream(t, wire, up.CAFile, login{upstreamAccount.name, "wrong"})
	s.retryUntil(t, id, "told 535", func(h *desk.History) bool { // by an attempt, or by what the breaker was told
		return strings.Contains(lastReply(h), "535 ") || len(h.Live) == 1 && strings.Contains(h.Live[0].LastReply, "535 ")
	})
	onlyTLS(t, wire)
	if list := s.waiting(t); len(list) != 1 || list[0].State == desk.StateFailed {
		t.Errorf("wrong password: %+v", list) // it must wait, and no notice be under way
	}

	wire = tapPort(t, up.Port)
	s.dropUpstream(t)
	s.useUpstream(t, wire, up.CAFile, upstreamAccount)
	s.retryUntil(t, id, "finished", (*desk.History).Done)
	m := arrival(t, up) // the first that came: no notice did
	if m.From != s.account.name || !slices.Equal(m.To, []string{"bob@example.net"}) {
		t.Errorf("arrived from <%s> to %q", m.From, m.To)
	}
	sameMail(t, m, id, plainMail)
	onlyTLS(t, wire)
	h = s.trace(t, id)
	got := results(h, "bob@example.net")
	if !strings.HasPrefix(got[len(got)-1], "delivered 250 ") {
		t.Errorf("%q", got)
	}
}

func lastReply(h *desk.History) string {
	for _, a := range slices.Backward(h.Events) {
		if a.Result != "retry" {
			return a.Reply
		}
	}
	return ""
}

// retryUntil makes the message due until its trace is as wanted: a node notices
// within seconds that an upstream was changed, not immediately.
func (s *site) retryUntil(t *testing.T, id, what string, wanted func(*desk.History) bool) desk.History {
	t.Helper()
	return s.traceUntil(t, id, what, func(h *desk.History) bool {
		if wanted(h) {
			return true
		}
		s.must(t, "", "queue", "retry", id)
		return false
	})
}

// onlyTLS wants that nothing but EHLO and STARTTLS went to the upstream in clear.
func onlyTLS(t *testing.T, wire *tap) {
	t.Helper()
	sent := wire.sent()
	if len(sent) == 0 {
		t.Error("there was no connection")
	}
	for _, octets := range sent {
		// A TLS record of the handshake begins with 22 and the major version 3.
		if !bytes.HasPrefix(octets, []byte("EHLO relay.test\r\nSTARTTLS\r\n\x16\x03")) {
			t.Errorf("in clear: %.200q", octets)
		}
		for _, secret := range []string{upstreamAccount.password, "alice@example.com", "Subject:"} {
			if bytes.Contains(octets, []byte(secret)) || bytes.Contains(octets, []byte(base64.StdEncoding.EncodeToString([]byte(secret)))) {
				t.Errorf("%q was sent in clear", secret)
			}
		}
	}
}
