package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// A backlog is a queue full of deferred mail, beside an empty one on the same server.
type backlog struct {
	t           *testing.T
	rows        int // recipients that are deferred, one for each message
	full, empty *pgtest.DB
	fullQ       *Queue
	emptyQ      *Queue
	conn        *pgx.Conn // on full, with the settings of the queue's sessions
	cpu         *postgresCPU
}

// backlogDomains is over how many destinations a backlog is spread.
const backlogDomains = 10_000

// loadBacklog inserts deferred mail as the queue would have left it: accepted in the
// last day, tried some times, due in the next hours.
const loadBacklog = `
with new as materialized (select g, ('018f0000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid as id from generate_series($1::int, $2::int) g),
m as (insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
	select id, 1 + g % 10, 1, 'a' || g % 100, 'example.com', 1000, '', false, '', '', '<' || g || '@example.com>', now() - interval '1 day' * random(),
		'192.0.2.1', 'client.example.com', '127.0.0.1:587', 'TLS1.3', 'a', 1 from new),
b as (insert into body select id, 0, convert_to(repeat('0123456789', 100), 'UTF8') from new),
a as (insert into attempt (message_id, n, at, epoch, result, local, domain, reply_code, reply_enhanced, reply_text, remote_mta, node)
	select id, 0, now(), 1, 'deferred', 'r' || g, 'd' || g % $3::int || '.example', 451, '4.7.1', 'Greylisted, try again later', 'mx.example', 'a' from new)
insert into recipient (message_id, n, attempts, accepted_at, next_attempt_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt,
	last_attempt_at, reply_code, reply_enhanced, reply_text, remote_mta, notice_at, user_id)
select id, 0, 3, now() - interval '1 day' * random(), now() + interval '1 hour' + interval '4 hours' * random(), now() + interval '5 days', 3, 0,
	'd' || g % $3::int || '.example', 'r' || g, 'd' || g % $3::int || '.example', '', '', now(), 451, '4.7.1', 'Greylisted, try again later', 'mx.example',
	now() + interval '4 hours', 1 + g % 10
from new`

func newBacklog(t *testing.T, rows int) *backlog {
	server := pgtest.Server(t, pgserver.Config{})
	b := &backlog{t: t, rows: rows, full: pgtest.On(t, server), empty: pgtest.On(t, server)}
	const step = 10_000
	begin := time.Now()
	for from := 1; from <= rows; from += step {
		exec(t, b.full, loadBacklog, from, min(from+step-1, rows), backlogDomains)
	}
	t.Logf("loaded %d deferred recipients in %.0f s", rows, time.Since(begin).Seconds())
	for _, sql := range []string{ // young, and so not to be deleted
		`insert into activity (user_id, hour) select u, now() - h * interval '1 hour' from generate_series(1, $1::int / 100) u, generate_series(1, 100) h`,
		`insert into correspondent (user_id, recipient) select g % 10, sha256(g::text::bytea) from generate_series(1, $1::int) g`,
		`insert into usage_window (scope, subject, kind, window_s, at, n)
			select 1, g, 1, 3600, array[floor(extract(epoch from now()) / 60)::bigint], array[1] from generate_series(1, $1::int) g`,
	} {
		exec(t, b.full, sql, max(10_000, rows/10))
	}
	exec(t, b.full, `vacuum analyze`)
	b.fullQ, b.emptyQ = start(t, calmConfig(b.full)), start(t, calmConfig(b.empty))
	b.conn = working(t, b.full)
	b.cpu = newPostgresCPU(t, b.full)
	return b
}

// TestBacklog lives with a queue of deferred mail; with POSTERN_LONG=1 it is a million
// recipients. It prints figures, and fails when a statement reads what it has no use for.
func TestBacklog(t *testing.T) {
	t.Parallel()
	rows, messages := 10_000, 60
	if os.Getenv("POSTERN_LONG") == "1" {
		rows, messages = 1_000_000, 4000
	}
	b := newBacklog(t, rows)
	b.newMail(messages)
	b.claims("deferred")
	b.chores()
	b.dueAtOnce()
	b.newMail(messages)
	b.forgetting(messages)
	b.deadRows()
	b.operators()
}

const backlogRounds = 5

// newMail compares the life of new mail beside the backlog with that in an empty queue,
// in turns.
func (b *backlog) newMail(messages int) {
	b.round(b.emptyQ, messages/4)
	b.round(b.fullQ, messages/4)
	var alone, beside []life
	for range backlogRounds {
		alone = append(alone, b.round(b.emptyQ, messages))
		beside = append(beside, b.round(b.fullQ, messages))
	}
	b.t.Logf("new mail beside the backlog, to that in an empty queue: %s", compared(beside, alone))
}

// life is what a round of messages took.
type life struct {
	took, cpu time.Duration   // cpu is that of all of Postgres
	waits     []time.Duration // for each commit
}

// compared says how many times as fast one kind of round was as the other, by the middle
// of the rounds, and what it took of Postgres.
func compared(one, other []life) string {
	var rate, cpu []float64
	var waits [2][]time.Duration
	for i := range one {
		rate = append(rate, other[i].took.Seconds()/one[i].took.Seconds())
		cpu = append(cpu, one[i].cpu.Seconds()/max(other[i].cpu.Seconds(), 0.01))
		waits[0], waits[1] = append(waits[0], one[i].waits...), append(waits[1], other[i].waits...)
	}
	slices.Sort(rate)
	slices.Sort(cpu)
	n := len(rate)
	return fmt.Sprintf("rate %.2f (%.2f to %.2f), CPU of Postgres %.2f (%.2f to %.2f), wait for the 250 %s against %s",
		rate[n/2], rate[0], rate[n-1], cpu[n/2], cpu[0], cpu[n-1], spread(waits[0]), spread(waits[1]))
}

// round accepts and delivers messages.
func (b *backlog) round(q *Queue, messages int) life {
	body := NewBody(bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 5000/64))
	left := make(chan struct{}, messages)
	for range messages {
		left <- struct{}{}
	}
	close(left)
	var mu sync.Mutex
	var waits []time.Duration
	var all sync.WaitGroup
	begin, cpu := time.Now(), b.cpu.total()
	for range 20 {
		all.Go(func() {
			for range left {
				sent := time.Now()
				d, err := q.Enqueue(context.Background(), message(), rcpts("bob@example.net"), body, true)
				if err != nil {
					b.t.Error(err)
					return
				}
				mu.Lock()
				waits = append(waits, time.Since(sent))
				mu.Unlock()
				q.Settle(outcome(d, 0, Delivered))
			}
		})
	}
	all.Wait()
	eventually(b.t, "all is settled", func() bool { return b.inHand(q) == 0 })
	return life{time.Since(begin), b.cpu.total() - cpu, waits}
}

func (b *backlog) inHand(q *Queue) int {
	q.held.mu.Lock()
	defer q.held.mu.Unlock()
	return len(q.held.rows)
}

// claims claims fresh mail, beside the backlog and in an empty queue in turns.
func (b *backlog) claims(state string) {
	var full, empty []time.Duration
	for i := range max(20, b.rows/5000) {
		full = append(full, b.claim(b.fullQ, i))
		empty = append(empty, b.claim(b.emptyQ, i))
	}
	b.t.Logf("claim while %d recipients are %s: %s, in an empty queue %s", b.rows, state, spread(full), spread(empty))
	b.cost("look", 5*dueRows, sqlLook, time.Time{}, "", dueRows)
	var domains []string
	for i := range 50 {
		domains = append(domains, "d"+strconv.Itoa(100+i*(backlogDomains/100))+".example")
	}
	b.cost("claim", 10_000, sqlClaim, domains, 20, 50, []string{}, 1, false, claimSibling, []int64{})
}

// claim accepts mail for any node to deliver, and says how long the claim took.
func (b *backlog) claim(q *Queue, i int) time.Duration {
	for range 5 {
		put(b.t, q, false, "x@fresh"+strconv.Itoa(i%7)+".example")
	}
	eventually(b.t, "fresh mail waits", func() bool { return b.inHand(q) == 0 })
	begin := time.Now()
	got, err := q.Claim(ctxOf(b.t), ClaimRequest{Messages: 50, PerDestination: 20})
	took := time.Since(begin)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, d := range got {
		for _, r := range d.Recipients {
			q.Settle(outcome(d, r.N, Delivered))
		}
	}
	return took
}

// spread is the middle, the 99th percentile and the longest.
func spread(d []time.Duration) string {
	d = slices.Clone(d)
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms", ms(d[len(d)/2]), ms(d[len(d)*99/100]), ms(d[len(d)-1]))
}

// cost runs a statement, takes back what it did, and prints what it took.
func (b *backlog) cost(name string, most int64, sql string, args ...any) {
	b.t.Helper()
	tx, err := b.conn.Begin(ctxOf(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	var text []byte
	if err := tx.QueryRow(ctxOf(b.t), `explain (analyze, buffers, format json) `+sql, args...).Scan(&text); err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	var top []struct {
		Plan struct {
			Hit  int64 `json:"Shared Hit Blocks"`
			Read int64 `json:"Shared Read Blocks"`
		}
		Time float64 `json:"Execution Time"`
	}
	if err := json.Unmarshal(text, &top); err != nil {
		b.t.Fatal(err)
	}
	pages := top[0].Plan.Hit + top[0].Plan.Read
	b.t.Logf("%-24s %9.1f ms %9d pages", name, top[0].Time, pages)
	if most > 0 && pages > most {
		b.t.Errorf("%s reads %d pages, at most %d were expected", name, pages, most)
	}
}

// chores costs what nodes do by the clock.
func (b *backlog) chores() {
	b.cost("living epochs", 100, sqlLiving, time.Second, time.Second)
	b.cost("reap", 1000, sqlReap, reapRows)
	b.cost("leftovers", 1000, sqlOwned, 1)
	b.cost("notices", 1000, sqlClaimNotices, 10, 1)
	b.cost("never due", 20, sqlNeverDue)
	b.cost("never told", 20, sqlNeverTold)
	b.cost("orphans", 20*sweepRows, sqlBodies, ID{}, sweepRows)
	exec(b.t, b.full, `update history_walk set past = default, next_at = now()`)
	b.cost("forget history, nothing", 10_000, sqlForget, firstID(time.Now().Add(-50*365*24*time.Hour)), forgetMost, time.Now(), forgetAttempts, time.Second, time.Second)
	exec(b.t, b.full, `update history_walk set past = default, next_at = now()`)
	b.cost("forget history, all live", 30*forgetMost, sqlForget, firstID(time.Now()), forgetMost, time.Now(), forgetAttempts, time.Second, time.Second)
	b.cost("forget nodes", 50, sqlForgetNodes)
	b.cost("forget holds", 50, sqlForgetHolds)
	b.cost("forget usage", 10*forgetRows, sqlForgetUsage, 0, 0, 0, 0, forgetRows)
	b.cost("forget activity", 50, sqlForgetActivity, forgetRows)
	b.cost("forget correspondents", 50, sqlForgetRecipients, forgetRows, 365*24*time.Hour)
}

// forgetting compares the life of new mail while old history is deleted with that while
// it is not, in turns. The history is old and its mail is finished.
func (b *backlog) forgetting(messages int) {
	past(b.t, b.empty, b.rows/5, 60, "false")
	old := func() int {
		return count(b.t, b.empty, `select count(*) from message where accepted_at < now() - interval '30 days'`)
	}
	r := newRetention(b.emptyQ)
	var with, without []life
	deleted, busy := 0, time.Duration(0)
	for range backlogRounds {
		without = append(without, b.round(b.emptyQ, messages))
		before := old()
		exec(b.t, b.empty, `update history_walk set past = default, next_at = now()`)
		ctx, cancel := context.WithCancel(ctxOf(b.t))
		var done sync.WaitGroup
		done.Go(func() { b.forget(ctx, r) })
		l := b.round(b.emptyQ, messages)
		if before > 0 {
			eventually(b.t, "some history is deleted", func() bool { return old() < before })
		}
		cancel()
		done.Wait()
		with = append(with, l)
		deleted += before - old()
		busy += l.took
	}
	b.t.Logf("new mail while history is deleted, to when it is not: %s; %.0f messages/s were deleted, %d at once at last",
		compared(with, without), float64(deleted)/busy.Seconds(), r.rows)
	if deleted == 0 {
		b.t.Error("no history was deleted")
	}
}

// forget is what retention.run does while there is something to be deleted.
func (b *backlog) forget(ctx context.Context, r *retention) {
	defer r.s.Close()
	for ctx.Err() == nil {
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			b.t.Error(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(pause, time.Millisecond)):
		}
	}
}

// dueAtOnce lets all fall due at one moment.
func (b *backlog) dueAtOnce() {
	at := time.Now()
	const step = 20_000
	for from := 1; from <= b.rows; from += step {
		exec(b.t, b.full, `update recipient r set next_attempt_at = $3
			from generate_series($1::int, $2::int) g where r.message_id = ('018f0000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid`, from, from+step-1, at)
	}
	b.claims("due")
}

// deadRows looks at what vacuum has left.
func (b *backlog) deadRows() {
	rows, err := b.full.Pool.Query(ctxOf(b.t), `select relname || ' live ' || n_live_tup || ' dead ' || n_dead_tup || ' vacuums ' || autovacuum_count
			|| ' octets a row ' || pg_total_relation_size(relid) / greatest(n_live_tup, 1)
		from pg_stat_user_tables where n_live_tup + n_dead_tup > 100 order by relname`)
	if err != nil {
		b.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.t.Fatal(err)
	}
	for _, line := range lines {
		b.t.Log(line)
	}
	for _, table := range []string{"recipient", "body", "message", "attempt"} {
		begin := time.Now()
		exec(b.t, b.full, "vacuum "+table)
		b.t.Logf("vacuum %s: %.0f ms", table, time.Since(begin).Seconds()*1000)
	}
}

// operators costs what admins ask for.
func (b *backlog) operators() {
	timed := func(what string, f func() (any, error)) {
		begin := time.Now()
		n, err := f()
		if err != nil {
			b.t.Fatalf("%s: %v", what, err)
		}
		b.t.Logf("%-24s %9.1f ms: %v", what, float64(time.Since(begin).Microseconds())/1000, n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a million rows on a busy machine
	defer cancel()
	a := NewAdmin(b.full.Pool)
	timed("queue list", func() (any, error) { l, err := a.List(ctx, Filter{}); return len(l), err })
	timed("queue list --domain", func() (any, error) { l, err := a.List(ctx, Filter{Domain: "d7.example"}); return len(l), err })
	timed("queue shape", func() (any, error) { l, err := a.Shape(ctx, 20); return len(l), err })
	timed("counts of a user", func() (any, error) { l, err := a.Counts(ctx, 1); return l, err })
	timed("overview for metrics", func() (any, error) { o, err := NewReader(b.full.Pool).Overview(ctx); return len(o.Shares), err })
	timed("queue hold --user", func() (any, error) { return a.HoldUser(ctx, 2, 0, "test") })
	exec(b.t, b.full, `update recipient set notice_at = now() where held_at is not null`)
	b.cost("notices beside held mail", 50, sqlClaimNotices, 10, 1)
	b.cost("catch up with holds", int64(10*b.rows/10+1000), sqlCatchUpHolds, []int64{2})
	b.cost("hold 5,000 of a user", 100*operateRows, sqlHold, append((&Filter{UserID: 3}).args(), operateRows, "hold", "test")...)
	nobody := append((&Filter{UserID: 99}).args(), operateRows, "", "test")
	b.cost("hold nothing of a user", 50, sqlHold, nobody...)
	b.cost("release nothing of a user", 50, sqlRelease, nobody...)
	timed("queue release --user", func() (any, error) { return a.ReleaseUser(ctx, 2) })
	timed("queue retry --domain", func() (any, error) { return a.Retry(ctx, Filter{Domain: "d7.example"}, true) })
}
