package submission

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern/relay/queue"
	"postern/relay/queue/insert"
	"postern/relay/smtp"
)

const sent = "Message-ID: <1@example.com>\r\nFrom: alice@example.com\r\n"

// sendIt sends a message and returns how the queue was given it.
func sendIt(t *testing.T, c *client, ts *testServer, text string) stored {
	t.Helper()
	c.envelope()
	c.send(text + "\r\nbody\r\n.\r\n")
	c.expect(250)
	all := ts.queue.all()
	return all[len(all)-1]
}

// A message has the key of its user, sender, Message-ID and octets, the same whenever it is sent;
// what the relay adds and removes is not of them. Without a Message-ID of the client's there is none.
func TestDuplicateKey(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Duplicates = time.Hour })
	c := ts.login(t)
	first := sendIt(t, c, ts, sent).Key
	if first.Of == [16]byte{} || first.Content != [16]byte{} || first.Window != time.Hour {
		t.Fatalf("key %+v", first)
	}
	for text, same := range map[string]bool{
		sent: true,
		"Bcc: bob@example.net\r\nX-Postern-Tag: x\r\n" + sent:        true,
		sent + "Subject: x\r\n":                                      false,
		"Message-ID: <2@example.com>\r\nFrom: alice@example.com\r\n": false,
	} {
		if got := sendIt(t, c, ts, text).Key; (got == first) != same || got.Window != time.Hour {
			t.Errorf("%q: key %+v after %+v", text, got, first)
		}
	}
	for _, text := range []string{"From: alice@example.com\r\n", "Message-ID:\r\nFrom: alice@example.com\r\n"} {
		if got := sendIt(t, c, ts, text).Key; got != (insert.Key{}) {
			t.Errorf("%q: key %+v", text, got)
		}
	}
	// A key of the client's own stands for the content, and needs no Message-ID.
	with := func(key, rest string) insert.Key {
		return sendIt(t, c, ts, "X-Postern-Idempotency-Key: "+key+"\r\nFrom: alice@example.com\r\n"+rest).Key
	}
	a := with("a", "")
	if a.Window != 24*time.Hour || a.Content == [16]byte{} || a != with("a", "") {
		t.Errorf("key %+v", a)
	}
	if b := with("b", ""); b.Of == a.Of || b.Content != a.Content {
		t.Errorf("another key: %+v after %+v", b, a)
	}
	if b := with("a", "Subject: x\r\n"); b.Of != a.Of || b.Content == a.Content {
		t.Errorf("other content: %+v after %+v", b, a)
	}
}

// The window is the credential's, else the configuration's, and 0 turns the recognition by content
// off; a client's own key counts all the same.
func TestDuplicateWindow(t *testing.T) {
	t.Parallel()
	ten, off := 10*time.Minute, time.Duration(0)
	for name, tc := range map[string]struct {
		configured time.Duration
		credential *time.Duration
		want       time.Duration
	}{"default": {time.Hour, nil, time.Hour}, "off": {0, nil, 0}, "of the credential": {time.Hour, &ten, ten}, "off for it": {time.Hour, &off, 0}, "on for it": {0, &ten, ten}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, func(cfg *Config) { cfg.Limits.Duplicates = tc.configured })
			ts.verifier.id.Duplicates = tc.credential
			c := ts.login(t)
			if got := sendIt(t, c, ts, sent).Key; got.Window != tc.want || (got.Of != [16]byte{}) != (tc.want > 0) {
				t.Errorf("key %+v", got)
			}
			if got := sendIt(t, c, ts, "X-Postern-Idempotency-Key: a\r\n"+sent).Key; got.Window != 24*time.Hour {
				t.Errorf("key %+v", got)
			}
		})
	}
}

// The client hears which message is queued, and nothing of a duplicate is logged as accepted.
func TestDuplicateReply(t *testing.T) {
	t.Parallel()
	first := queue.NewID()
	for _, tc := range []struct {
		copies int
		want   string
		log    string
	}{
		{2, "2.0.0 Ok: duplicate, queued before as " + first.String(), "duplicate"},
		{1, "; duplicate for 1 of 2 recipients, queued before as " + first.String(), "accepted duplicate"},
	} {
		ts := startServer(t)
		ts.queue.copies = func(queue.Message) (int, queue.ID) { return tc.copies, first }
		c := ts.login(t)
		c.cmd(250, "MAIL FROM:<alice@example.com>")
		c.cmd(250, "RCPT TO:<a@example.net>")
		c.cmd(250, "RCPT TO:<b@example.net>")
		c.cmd(354, "DATA")
		c.send(sent + "\r\nbody\r\n.\r\n")
		if got := c.expect(250); !strings.HasSuffix(strings.TrimSpace(got), tc.want) {
			t.Errorf("%q, want %q", got, tc.want)
		}
		for _, event := range []string{"accepted", "duplicate"} {
			if got := ts.log.Count(`"msg":"` + event + `"`); got != strings.Count(tc.log, event) {
				t.Errorf("%d events %s in %s", got, event, ts.log)
			}
		}
		if log := ts.log.String(); !strings.Contains(log, `"first":"`+first.String()+`"`) {
			t.Errorf("logged %s", log)
		}
	}
	ts := startServer(t)
	ts.queue.refuse = func(int, queue.Message) error {
		other := &insert.OtherContent{First: first}
		return &smtp.Error{Reply: smtp.Permanent(554, 6, 0, other.Error()), Err: errors.Join(other)}
	}
	c := ts.login(t)
	c.envelope()
	c.send(sent + "\r\nbody\r\n.\r\n")
	c.expect(554)
}

// Tags and metadata are the message's.
func TestTags(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	got := sendIt(t, c, ts, "X-Postern-Tag: a\r\nX-Postern-Tag: b\"\\\r\nX-Postern-Metadata: {\"n\": 1}\r\n"+sent)
	if strings.Join(got.Tags, " ") != `a b"\` || got.Metadata != `{"n":1}` || strings.Contains(got.Body, "X-Postern") {
		t.Errorf("%q %q in %q", got.Tags, got.Metadata, got.Body)
	}
	c.envelope()
	c.send("X-Postern-Metadata: 1\r\n" + sent + "\r\nbody\r\n.\r\n")
	c.expect(554)
}
