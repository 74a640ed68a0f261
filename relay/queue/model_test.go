package queue

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// modelRow is what a recipient ought to be.
type modelRow struct {
	state  string // "owned", "waiting", "failed", "delivered", "gone"
	notify smtp.Notify
}

// model drives one queue and knows what its rows ought to be.
type model struct {
	t    *testing.T
	db   *pgtest.DB
	q    *Queue
	rows map[ID][]modelRow
	hand []*Delivery
}

// TestRowsFollowTheTable walks random ways through docs/queue-states.md: after each
// step every row is in the state that the table allows, and a body is stored exactly
// as long as its message has rows.
func TestRowsFollowTheTable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	rapid.Check(t, func(rt *rapid.T) {
		exec(t, db, `delete from recipient; `)
		exec(t, db, `delete from body`)
		m := &model{t: t, db: db, q: q, rows: make(map[ID][]modelRow)}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				m.enqueue(rt)
			case 1:
				m.settle(rt)
			case 2:
				m.claim(rt)
			case 3:
				m.tell(rt)
			case 4:
				m.release(rt)
			}
			m.check(rt)
		}
		for len(m.hand) > 0 {
			m.release(rt)
		}
	})
}

func (m *model) enqueue(rt *rapid.T) {
	msg := message()
	owned := rapid.Bool().Draw(rt, "owned")
	list := rcpts([]string{"a@one.example", "b@two.example", "c@one.example"}[:rapid.IntRange(1, 3).Draw(rt, "rcpts")]...)
	want := make([]modelRow, len(list))
	for i := range list {
		list[i].Notify = rapid.SampledFrom([]smtp.Notify{0, smtp.NotifyNever, smtp.NotifySuccess, smtp.NotifyFailure}).Draw(rt, "notify")
		want[i] = modelRow{"waiting", list[i].Notify}
		if owned {
			want[i].state = "owned"
		}
	}
	d, err := taken(m.q.Enqueue(ctxOf(m.t), msg, list, content.New([]byte("x")), owned))
	if err != nil {
		rt.Fatalf("enqueue: %v", err)
	}
	m.rows[msg.ID] = want
	if d != nil {
		m.hand = append(m.hand, d)
	}
}

// take takes one delivery out of our hands.
func (m *model) take(rt *rapid.T) *Delivery {
	if len(m.hand) == 0 {
		return nil
	}
	i := rapid.IntRange(0, len(m.hand)-1).Draw(rt, "delivery")
	d := m.hand[i]
	m.hand = append(m.hand[:i], m.hand[i+1:]...)
	return d
}

func (m *model) settle(rt *rapid.T) {
	d := m.take(rt)
	if d == nil {
		return
	}
	for _, r := range d.Recipients {
		row := &m.rows[d.Message.ID][r.N]
		o := outcome(d, r.N, rapid.SampledFrom([]Result{Delivered, Deferred, Failed}).Draw(rt, "result"))
		row.state = "gone"
		switch {
		case o.Result == Deferred:
			row.state = "waiting"
		case o.Result == Failed && (row.notify == 0 || row.notify == smtp.NotifyFailure):
			row.state = "failed"
		case o.Result == Delivered && row.notify == smtp.NotifySuccess:
			row.state = "delivered"
		}
		m.q.Settle(o)
		if rapid.Bool().Draw(rt, "twice") { // as after an answer that was lost
			m.q.inHand.add(d.Message.ID, 1)
			m.q.Settle(o)
		}
	}
}

func (m *model) release(rt *rapid.T) {
	d := m.take(rt)
	if d == nil {
		return
	}
	for _, r := range d.Recipients {
		m.q.Release(d, []int{r.N}, 0)
		m.rows[d.Message.ID][r.N].state = "waiting"
	}
}

func (m *model) claim(rt *rapid.T) {
	exec(m.t, m.db, `update recipient set next_attempt_at = now() where state = 'waiting'`)
	got, err := m.q.Claim(ctxOf(m.t), ClaimRequest{Messages: rapid.IntRange(1, 5).Draw(rt, "messages"), PerDestination: 5})
	if err != nil {
		rt.Fatalf("claim: %v", err)
	}
	for _, d := range got {
		for _, r := range d.Recipients {
			row := &m.rows[d.Message.ID][r.N]
			if row.state != "waiting" {
				rt.Fatalf("claimed a row that is %s", row.state)
			}
			row.state = "owned"
		}
	}
	m.hand = append(m.hand, got...)
}

func (m *model) tell(rt *rapid.T) {
	list, err := m.q.ClaimNotices(ctxOf(m.t), 3)
	if err != nil {
		rt.Fatalf("claim notices: %v", err)
	}
	for _, n := range list {
		if rapid.Bool().Draw(rt, "give back") {
			m.q.ReleaseNotice(n, 0)
			continue
		}
		if err := m.q.EnqueueNotice(ctxOf(m.t), n, Message{}, Recipient{}, nil); err != nil {
			rt.Fatalf("notice: %v", err)
		}
		for _, r := range n.Recipients {
			row := &m.rows[n.Message.ID][r.N]
			if row.state != "failed" && row.state != "delivered" {
				rt.Fatalf("told of a row that is %s", row.state)
			}
			row.state = "gone"
		}
	}
}

// check waits until what is settled is written and compares.
func (m *model) check(rt *rapid.T) {
	want := make(map[string]bool)
	bodies := 0
	for id, list := range m.rows {
		live := false
		for n, row := range list {
			if row.state != "gone" {
				want[fmt.Sprintf("%s/%d %s", id, n, row.state)] = true
				live = true
			}
		}
		if live {
			bodies++
		}
	}
	var got string
	for end := time.Now().Add(patience); ; {
		if err := m.db.Pool.QueryRow(ctxOf(m.t), `select coalesce(string_agg(message_id || '/' || n || ' ' ||
			case when state <> 'waiting' then state when owner is null then 'waiting' else 'owned' end, ';'), '') from recipient`).Scan(&got); err != nil {
			rt.Fatal(err)
		}
		if m.written() && equal(got, want) && count(m.t, m.db, `select count(*) from body`) == bodies {
			return
		}
		if time.Now().After(end) {
			rt.Fatalf("rows are %q with %d bodies, want %v with %d", got, count(m.t, m.db, `select count(*) from body`), want, bodies)
		}
	}
}

// written reports that no outcome is under way: what came twice is written twice, before a
// claim may take the row again.
func (m *model) written() bool {
	left := 0
	for _, d := range m.hand {
		left += len(d.Recipients)
	}
	m.q.inHand.mu.Lock()
	defer m.q.inHand.mu.Unlock()
	for _, n := range m.q.inHand.rows {
		left -= n
	}
	return left == 0
}

func equal(got string, want map[string]bool) bool {
	if got == "" {
		return len(want) == 0
	}
	list := strings.Split(got, ";")
	for _, row := range list {
		if !want[row] {
			return false
		}
	}
	return len(list) == len(want)
}
