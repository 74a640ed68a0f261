package rig

import (
	"bufio"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
)

// TestSinkWritesDownWhatCame sends messages whose every line begins with a dot or
// ends wrongly: what is written down is what was sent.
func TestSinkWritesDownWhatCame(t *testing.T) {
	t.Parallel()
	texts := []string{
		text("m1", Shape{From: alice, Size: 20 << 10}, true, rand.New(rand.NewPCG(1, 1))),
		"X-Load-Id: m2\r\n\r\n.\r\n..\r\n...\r\n",
		"X-Load-Id: m3\r\n\r\n\n.\n\r.\r\n.\r\r\nend\r\n", // nothing of it ends the data
		"X-Load-Id: m4\r\n\r\n" + strings.Repeat("x", 3<<12) + "." + strings.Repeat("y", 3<<12) + "\r\n",
	}
	sink := NewSink(t, "", 0)
	conn, err := net.Dial("tcp", sink.Addr())
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{conn: conn, in: bufio.NewReader(conn)}
	defer c.Close()
	say := func(code int, line string) {
		t.Helper()
		if err := c.Say(line, code, line); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Expect("greeting", 220); err != nil {
		t.Fatal(err)
	}
	say(250, "EHLO client.test")
	for _, text := range texts {
		say(250, "MAIL FROM:<"+alice+">")
		say(250, "RCPT TO:<"+bob+">")
		say(550, "RCPT TO:<"+RefusedLocal+bob+">")
		say(354, "DATA")
		say(250, trace+strings.TrimSuffix(stuffed(text), "\r\n"))
	}
	got := sink.Received()
	if len(got) != len(texts) {
		t.Fatalf("%d messages, want %d", len(got), len(texts))
	}
	for i, m := range got {
		if m.Sum != sum(texts[i]) || m.Head != trace || !m.Replied || m.Hello != "client.test" || m.From != alice || !slices.Equal(m.To, []string{bob}) {
			t.Errorf("message %d was written down as %+v", i, m)
		}
	}
}

// TestHold keeps a session at a step until it is released.
func TestHold(t *testing.T) {
	t.Parallel()
	sink := NewSink(t, "", 0)
	release := sink.Hold(BeforeData, "a.test")
	passed := make(chan struct{})
	go func() {
		sink.pass(hold{BeforeData, "b.test"}) // another's
		sink.pass(hold{BeforeReply, "a.test"})
		sink.pass(hold{BeforeData, "a.test"})
		close(passed)
	}()
	if !sink.WaitHeld(BeforeData, "a.test", 1) {
		t.Fatal("the session is not held")
	}
	release()
	release()
	<-passed
}

func TestParseBounceWantsAllOfIt(t *testing.T) {
	t.Parallel()
	const report = "Message-ID: <n@a.test>\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"b\"\r\n\r\n" +
		"--b\r\nContent-Type: text/plain\r\n\r\nsorry\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n" +
		"Reporting-MTA: dns; a.test\r\n\r\nFinal-Recipient: rfc822; " + bob + "\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n" +
		"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Load-Id: " + someID + "\r\n\r\n--b--\r\n"
	b := parseBounce("Date: x\r\n" + strings.Replace(report, "\r\n\r\n--b\r\n", "\r\n\r\nThis is MIME.\r\n\r\n--b\r\n", 1))
	if !b.Valid || b.MessageID != "<n@a.test>" || b.About != someID || !slices.Equal(b.Failed, []string{bob}) {
		t.Errorf("parsed as %+v", b)
	}
	for _, part := range []string{"--b--\r\n", "message/delivery-status", "--b\r\nContent-Type: text/rfc822-headers"} {
		if parseBounce(strings.Replace(report, part, "", 1)).Valid {
			t.Errorf("a report without %q is taken for one", part)
		}
	}
}
