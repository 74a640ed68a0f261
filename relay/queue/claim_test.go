package queue

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// A destination gets no more than its share, and a large one does not hide the small.
func TestClaimIsFair(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for range 30 {
		put(t, q, false, "x@big.example")
	}
	for i := range 5 {
		put(t, q, false, fmt.Sprintf("x@small%d.example", i))
	}
	waiting(t, db, 35)
	got := claimAll(t, q, ClaimRequest{Messages: 20, PerDestination: 3})
	domains := make(map[string]int)
	for _, d := range got {
		for _, r := range d.Recipients {
			domains[r.Address.Domain]++
		}
	}
	if len(domains) != 6 || domains["big.example"] != 3 {
		t.Fatalf("claimed %v", domains)
	}
	got, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 20, PerDestination: 3, Busy: []string{"big.example"}})
	if err != nil || len(got) != 0 {
		t.Fatalf("claimed %d of a busy domain, %v", len(got), err)
	}
	total := 3
	for total < 30 {
		got := claimAll(t, q, ClaimRequest{Messages: 20, PerDestination: 10})
		if len(got) > 10 {
			t.Fatalf("claimed %d of one domain", len(got))
		}
		total += len(got)
	}
}

// Behind many domains may be one upstream: mail that waits for it is claimed about in the order in
// which it was accepted.
func TestClaimKeepsOrderOverDomains(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	const total, domains, most = 160, 8, 40
	accepted := make(map[ID]int)
	for i := range total {
		m, _ := put(t, q, false, fmt.Sprintf("x@d%d.example", i%domains))
		accepted[m.ID] = i
	}
	waiting(t, db, total)
	for ahead := 0; len(accepted) > 0; {
		for _, d := range claimAll(t, q, ClaimRequest{Messages: most, PerDestination: most}) {
			ahead = max(ahead, accepted[d.Message.ID])
			delete(accepted, d.Message.ID)
		}
		for _, i := range accepted {
			if ahead-i > most+domains*leastPerDomain {
				t.Fatalf("message %d was claimed, %d is not", ahead, i)
			}
		}
	}
}

// Turns with an upstream that have come go to the mail that was accepted first, whoever had them.
func TestClaimKeepsLinesInOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	const total, come = 6, 2
	var ids []ID
	for i := range total {
		m, d := put(t, q, true, fmt.Sprintf("x@d%d.example", i%2))
		end := outcome(d, 0, Deferred)
		end.Upstream, end.WaitsFor, end.RetryIn = "out", []string{"budget out", "sessions out"}[i%2], time.Hour
		q.Settle(end)
		ids = append(ids, m.ID)
	}
	other, _ := put(t, q, false, "x@other.example") // which stands in no line
	waiting(t, db, total+1)
	for i, id := range ids { // the last two are due
		exec(t, db, `update recipient set next_attempt_at = now() + ($1::integer) * interval '1 minute' where message_id = $2`, total-come-i, id)
	}
	want := ClaimRequest{Messages: 20, PerDestination: 20, Lines: [][]string{{"budget none"}, {"sessions out", "budget out"}}}
	var got []ID
	for _, d := range claimAll(t, q, want) {
		got = append(got, d.Message.ID)
	}
	if !slices.Equal(got, []ID{ids[0], ids[1], other.ID}) {
		t.Errorf("claimed %v of %v", got, ids)
	}
	if n := count(t, db, `select count(distinct next_attempt_at) from recipient where owner is null and next_attempt_at > now()`); n != total-come {
		t.Errorf("%d of %d turns are left", n, total-come)
	}
	if got, err := q.Claim(ctxOf(t), want); err != nil || len(got) != 0 {
		t.Errorf("claimed %d whose turn has not come, %v", len(got), err)
	}
}

// waiting waits until so many rows wait.
func waiting(t *testing.T, db *pgtest.DB, want int) {
	t.Helper()
	eventually(t, "all rows wait", func() bool {
		return count(t, db, `select count(*) from recipient where owner is null and state = 'waiting'`) == want
	})
}

// Recipients of one message come together over domains, but not those of a busy one.
func TestClaimKeepsMessagesTogether(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, _ := put(t, q, false, "a@one.example", "b@two.example", "c@busy.example", "d@one.example")
	waiting(t, db, 4)
	got := claimAll(t, q, ClaimRequest{Messages: 1, PerDestination: 10, Busy: []string{"busy.example"}})
	if len(got) != 1 || len(got[0].Recipients) != 3 {
		t.Fatalf("claimed %+v", got)
	}
	if got := rows(t, db, m.ID); got != "0 waiting owned;1 waiting owned;2 waiting;3 waiting owned" {
		t.Fatalf("rows %q", got)
	}
}

// Two nodes that claim concurrently get each row once.
func TestClaimOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	a := start(t, cfg)
	cfg.Node = "b"
	b := start(t, cfg)
	const messages = 200
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range messages / 20 {
				put(t, a, false, fmt.Sprintf("x@d%d.example", i))
			}
		})
	}
	var mu sync.Mutex
	seen := make(map[ID]int)
	total := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(seen)
	}
	for _, q := range []*Queue{a, b} {
		wg.Go(func() {
			for end := time.Now().Add(patience); total() < messages && time.Now().Before(end); {
				got, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 7, PerDestination: 5})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, d := range got {
					seen[d.Message.ID]++
				}
				mu.Unlock()
				if len(got) == 0 {
					_ = q.Wait(ctxOf(t))
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != messages {
		t.Fatalf("claimed %d of %d", len(seen), messages)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("message %s was claimed %d times", id, n)
		}
	}
}

// Another node hears of new work immediately, and without NOTIFY at the next poll (F16).
func TestWaitHears(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("NoNotify=%v", silent), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cfg := calmConfig(db)
			cfg.NoNotify = silent
			if !silent {
				cfg.Poll = time.Hour
			}
			a := start(t, cfg)
			cfg.Node = "b"
			b := start(t, cfg)
			put(t, a, false, "x@example.net")
			for {
				if err := b.Wait(ctxOf(t)); err != nil {
					t.Fatal(err)
				}
				got, err := b.Claim(ctxOf(t), all)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) == 1 {
					return
				}
			}
		})
	}
}

// Wait ends when the next row falls due, not only at the poll.
func TestWaitForDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	cfg.Poll = time.Hour
	q := start(t, cfg)
	m, d := put(t, q, true, "x@example.net")
	o := outcome(d, 0, Deferred)
	o.RetryIn = 300 * time.Millisecond
	q.Settle(o)
	becomes(t, db, m.ID, "0 waiting")
	for {
		got, err := q.Claim(ctxOf(t), all)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 1 {
			if r := got[0].Recipients[0]; r.Attempts != 1 || r.LastCode != o.Reply.Code {
				t.Fatalf("%d attempts, the last ended with %d", r.Attempts, r.LastCode)
			}
			return
		}
		if err := q.Wait(ctxOf(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// A message with very many recipients is not claimed whole, for what a claim takes
// is held in memory; but all of it in the end.
func TestClaimBoundsRecipients(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	const total = 1500
	list := make([]string, total)
	for i := range list {
		list[i] = fmt.Sprintf("x@d%d.example", i)
	}
	put(t, q, false, list...)
	waiting(t, db, total)
	seen := map[int]bool{}
	want := ClaimRequest{Messages: 200, PerDestination: 100}
	for len(seen) < total {
		got := 0
		for _, d := range claimAll(t, q, want) {
			got += len(d.Recipients)
			for _, r := range d.Recipients {
				if seen[r.N] {
					t.Fatalf("recipient %d came twice", r.N)
				}
				seen[r.N] = true
			}
		}
		if got > claimSibling+want.Messages {
			t.Fatalf("%d recipients in one claim", got)
		}
	}
}

// Held rows are not claimed.
func TestClaimSkipsHeld(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	put(t, q, false, "x@example.net")
	waiting(t, db, 1)
	exec(t, db, `update recipient set held_at = now()`)
	if got, err := q.Claim(ctxOf(t), all); err != nil || len(got) != 0 {
		t.Fatalf("claimed %d held, %v", len(got), err)
	}
	exec(t, db, `update recipient set held_at = null, next_attempt_at = now()`)
	claimAll(t, q, all)
}

// TestH1BusyUsers: a claim leaves the mail of users alone who have their whole share of
// a node's memory, and takes that of others to the same domain.
func TestH1BusyUsers(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	for _, user := range []int64{1, 2, 1} {
		m := message()
		m.UserID = user
		if _, err := q.Enqueue(ctxOf(t), m, rcpts("a@one.example"), content.New([]byte("Subject: x\r\n\r\nbody\r\n")), false); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all wait", func() bool { return count(t, db, `select count(*) from recipient where owner is null`) == 3 })
	got := claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10, BusyUsers: []int64{1}})
	if len(got) != 1 || got[0].Message.UserID != 2 {
		t.Fatalf("claimed %d, want the one of user 2", len(got))
	}
	if got := claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10}); len(got) != 2 {
		t.Errorf("claimed %d when nobody is busy, want 2", len(got))
	}
}

// A refusal in the middle of the message is known as that at the next attempt: its code
// alone may have been the answer to a command.
func TestLastMidText(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net")
	mid, plain := outcome(d, 0, Deferred), outcome(d, 1, Deferred)
	mid.Reply, plain.Reply = smtp.Permanent(552, 3, 4, "100% too big"), smtp.Permanent(552, 5, 3, "too many")
	mid.MidText = true
	q.Settle(mid, plain)
	becomes(t, db, m.ID, "0 waiting;1 waiting")
	exec(t, db, `update recipient set next_attempt_at = now()`)
	for _, r := range claimAll(t, q, all)[0].Recipients {
		if r.LastCode != 552 || r.LastMidText != (r.N == 0) {
			t.Errorf("%+v", r)
		}
	}
}
