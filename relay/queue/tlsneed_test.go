package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
)

// What a message needs of TLS is in its row.
func TestTLSNeedIsStored(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	want := map[ID]TLSNeed{}
	for _, need := range []TLSNeed{TLSRequired, "", TLSOptional} {
		m := message()
		m.TLSNeed = need
		want[m.ID] = need
		if _, err := q.Enqueue(ctxOf(t), m, rcpts("bob@example.net"), content.New([]byte("Subject: x\r\n\r\n")), false); err != nil {
			t.Fatal(err)
		}
	}
	for len(want) > 0 {
		for _, d := range claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10}) {
			if need, ours := want[d.Message.ID]; !ours || d.Message.TLSNeed != need {
				t.Errorf("%q, want %q", d.Message.TLSNeed, need)
			}
			delete(want, d.Message.ID)
			d.Body.Drop()
			q.Release(d, []int{0}, time.Hour)
		}
	}
}
