package bounce

import (
	"bytes"
	"testing"

	"postern/internal/dkimtest"
	"postern/relay/dkim"
	"postern/relay/queue"
)

// A notice has the body hash that signs it, if there is a key for the server's name.
func TestNoticeIsHashed(t *testing.T) {
	t.Parallel()
	keys := dkimtest.New("example.org")
	for hostname, signs := range map[string]bool{"Relay.example.org": true, "relay.test": false} {
		n := notice(queue.NoticeFailure, nil)
		q := &fakeQueue{due: []*queue.Notice{n}}
		if _, err := New(Config{Queue: q, Hostname: hostname, Keys: keys}).round(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := q.enqueued[0]
		if (got.msg.BodyHash != nil) != signs {
			t.Errorf("%s: hash %x", hostname, got.msg.BodyHash)
		}
		if !signs {
			continue
		}
		header, _, _ := bytes.Cut(got.body, []byte("\r\n\r\n"))
		fields, err := dkim.Sign(header, keys["example.org"], got.msg.BodyHash, got.msg.AcceptedAt)
		if err != nil {
			t.Fatal(err)
		}
		if list := keys.Verified(t, append(fields, got.body...)); len(list) != 2 {
			t.Errorf("%q\n%s", list, got.body)
		}
	}
}
