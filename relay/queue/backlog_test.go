package queue

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/longtest"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
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

func newBacklog(t *testing.T, rows int) *backlog {
	server := pgtest.Server(t, pgserver.Config{})
	b := &backlog{t: t, rows: rows, full: pgtest.On(t, server), empty: pgtest.On(t, server)}
	const step = 10_000
	begin := time.Now()
	for from := 1; from <= rows; from += step {
		exec(t, b.full, pgtest.LoadBacklog, from, min(from+step-1, rows), backlogDomains)
	}
	t.Logf("loaded %d deferred recipients in %.0f s", rows, time.Since(begin).Seconds())
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
	if longtest.Run() {
		rows, messages = 1_000_000, 4000
	}
	b := newBacklog(t, rows)
	b.newMail(messages)
	b.claims("deferred")
	b.chores()
	b.dueAtOnce()
	b.newMail(messages)
	b.deadRows()
	b.beside()
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
	body := content.New(bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 5000/64))
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
				d, err := taken(q.Enqueue(context.Background(), message(), rcpts("bob@example.net"), body, true))
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
	q.inHand.mu.Lock()
	defer q.inHand.mu.Unlock()
	return len(q.inHand.rows)
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

func (b *backlog) cost(name string, most int64, sql string, args ...any) {
	b.t.Helper()
	pgtest.Cost(b.t, b.conn, name, most, sql, args...)
}

// chores costs what nodes do by the clock.
func (b *backlog) chores() {
	b.cost("living epochs", 100, sqlLiving, time.Second, time.Second)
	b.cost("reap", 1000, sqlReap, reapRows, DoubtWait)
	b.cost("leftovers", 1000, sqlOwned, 1)
	b.cost("notices", 1000, sqlClaimNotices, 10, 1)
	b.cost("never due", 20, sqlNeverDue)
	b.cost("never told", 20, sqlNeverTold)
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
	for _, table := range []string{"recipient", "body", "message", "history"} {
		begin := time.Now()
		exec(b.t, b.full, "vacuum "+table)
		b.t.Logf("vacuum %s: %.0f ms", table, time.Since(begin).Seconds()*1000)
	}
}

// beside costs what is done while a user is on hold.
func (b *backlog) beside() {
	exec(b.t, b.full, `insert into hold (user_id, reason, made_by) values (2, 'test', 'test')`)
	exec(b.t, b.full, `update recipient set held_at = now(), notice_at = now() where user_id = 2`)
	b.cost("notices beside held mail", 50, sqlClaimNotices, 10, 1)
	b.cost("catch up with holds", int64(10*b.rows/10+1000), sqlCatchUpHolds, []int64{2})
}
