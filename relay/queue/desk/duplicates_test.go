package desk

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/queue/insert"
)

// A recipient that a person has cancelled is no duplicate any more; one that is held, or that a
// person has resolved as delivered, is. The trace of the first has its tags, and each copy.
func TestDuplicatesOfOperatedMail(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool).As("root")
	send := func() (queue.Message, queue.Accepted) {
		m := queuetest.Message()
		m.Key = insert.ContentKey(m.UserID, m.Sender, "<1@example.com>", []byte("octets"), time.Hour)
		m.Tags, m.Metadata = []string{`a"\,{}`, "null"}, `{"order":17}`
		got, err := q.Enqueue(queuetest.Context(t), m, queuetest.Recipients("a@example.net", "b@example.net", "c@example.net"), content.New([]byte("x")), false)
		if err != nil {
			t.Fatal(err)
		}
		return m, got
	}
	first, _ := send()
	queuetest.Becomes(t, db, first.ID, "0 waiting;1 waiting;2 waiting")
	if _, err := a.Hold(queuetest.Context(t), Filter{}, false); err != nil {
		t.Fatal(err)
	}
	if _, got := send(); got.Duplicates != 3 || got.First != first.ID {
		t.Errorf("held: %+v", got)
	}
	if n, err := a.Cancel(queuetest.Context(t), Filter{Recipient: "b@example.net"}, false); n != 1 || err != nil {
		t.Fatalf("%d cancelled, %v", n, err)
	}
	queuetest.Exec(t, db, `update recipient set doubt = 'hold' where n = 2`)
	if n, err := a.ResolveDelivered(queuetest.Context(t), Filter{Recipient: "c@example.net"}, false); n != 1 || err != nil {
		t.Fatalf("%d resolved, %v", n, err)
	}
	second, got := send()
	if got.Stored != 1 || got.Duplicates != 2 || got.First != first.ID {
		t.Errorf("cancelled: %+v", got)
	}
	queuetest.Becomes(t, db, second.ID, "1 waiting")
	h, err := a.Trace(queuetest.Context(t), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	copies := 0
	for _, e := range h.Events {
		if e.Result == "duplicate" {
			copies++
			if e.Recipient == "" || !strings.Contains(e.Reply, "submitted again as ") {
				t.Errorf("event %+v", e)
			}
		}
	}
	if copies != 5 {
		t.Errorf("%d copies are in the trace", copies)
	}
	data, err := json.Marshal(h.Message)
	if want := `"tags":["a\"\\,{}","null"],"metadata":{"order":17}`; err != nil || !strings.Contains(string(data), want) {
		t.Errorf("%s, %v, want %s", data, err, want)
	}
}
