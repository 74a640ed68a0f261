package queue

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/queue/insert"
)

// BenchmarkAcceptDeliver is the life of a 5 KB message in this package, from the
// enqueue to the settled delivery, for so many submitting sessions on a durable
// server. Beside the time it reports the CPU of this process and of Postgres for each,
// and what Postgres logs.
func BenchmarkAcceptDeliver(b *testing.B) {
	for _, c := range []struct {
		name       string
		sessions   int
		recipients int
		strict     bool
		limited    int64 // users under three limits
		keyed      bool  // copies are recognised
		feed       string
	}{{"sessions=1", 1, 1, false, 0, false, ""},
		{"sessions=20", 20, 1, false, 0, false, ""},
		{"sessions=20 keyed", 20, 1, false, 0, true, ""},
		{"sessions=20 strict", 20, 1, true, 0, false, ""},
		{"sessions=20 limited", 20, 1, false, 1, false, ""},
		{"sessions=20 limited users=1000", 20, 1, false, 1000, false, ""},
		{"sessions=20 limited users=1000 keyed", 20, 1, false, 1000, true, ""},
		{"sessions=100", 100, 1, false, 0, false, ""},
		{"sessions=100 keyed", 100, 1, false, 0, true, ""},
		{"sessions=20 recipients=50", 20, 50, false, 0, false, ""},
		{"sessions=20 recipients=50 keyed", 20, 50, false, 0, true, ""},
		{"sessions=1 without feed", 1, 1, false, 0, false, withoutFeed},
		{"sessions=1 feed by triggers", 1, 1, false, 0, false, feedByTriggers},
		{"sessions=20 without feed", 20, 1, false, 0, false, withoutFeed},
		{"sessions=20 feed by triggers", 20, 1, false, 0, false, feedByTriggers},
		{"sessions=20 recipients=50 without feed", 20, 50, false, 0, false, withoutFeed},
		{"sessions=20 recipients=50 feed by triggers", 20, 50, false, 0, false, feedByTriggers}} {
		b.Run(c.name, func(b *testing.B) {
			db := pgtest.On(b, pgtest.Server(b, pgserver.Config{}))
			if c.feed != "" {
				exec(b, db, c.feed)
			}
			cfg := calmConfig(db)
			cfg.StrictGate = c.strict
			q := start(b, cfg)
			body := content.New(bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 5000/64))
			backend := newPostgresCPU(b, db)
			var to []string
			var ns []int
			for n := range c.recipients {
				to, ns = append(to, "rcpt"+strconv.Itoa(n)+"@example.net"), append(ns, n)
			}
			log := logged(b, db)
			b.ReportAllocs()
			b.ResetTimer()
			self, theirs := selfCPU(), backend.total()
			run(b, c.sessions, func() {
				m := message()
				if c.keyed {
					m.Key = insert.ContentKey(1, m.Sender, m.MessageID, m.ID[:], time.Hour)
				}
				if c.limited > 0 {
					user := rand.Int64N(c.limited)
					for i, kind := range []quota.Kind{quota.Messages, quota.Recipients, quota.Bytes} {
						m.Charges = append(m.Charges, quota.Limit{Kind: kind, Window: []time.Duration{time.Minute, time.Hour, 24 * time.Hour}[i], Max: 1 << 40, Scope: quota.User, Subject: quota.ID(user)})
					}
				}
				d, err := taken(q.Enqueue(context.Background(), m, rcpts(to...), body, true))
				if err != nil {
					b.Error(err)
					return
				}
				if err := q.Gate(context.Background(), d, ns, ""); err != nil {
					b.Error(err)
				}
				outcomes := make([]Outcome, len(ns))
				outcomes[0] = outcome(d, 0, Delivered)
				for n := range outcomes {
					outcomes[n] = outcomes[0]
					outcomes[n].N, outcomes[n].Recipient = n, d.Recipients[n].Address
				}
				q.Settle(outcomes...)
			})
			eventually(b, "all is settled", func() bool {
				q.inHand.mu.Lock()
				defer q.inHand.mu.Unlock()
				return len(q.inHand.rows) == 0
			})
			b.StopTimer()
			n := float64(b.N)
			b.ReportMetric(float64((selfCPU()-self).Microseconds())/n, "self-µs/op")
			b.ReportMetric(float64((backend.total()-theirs).Microseconds())/n, "pg-µs/op")
			b.ReportMetric(n/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64(logged(b, db)-log)/n, "logged-B/op")
		})
	}
}

// What the feed costs (docs/decisions/events.md): nothing of it, and a row of its own for the rows of each
// statement in place of the column.
const (
	withoutFeed = `do $$ begin
		alter table message drop column feed_at;
		alter table history drop column feed_at;
	end $$`
	feedByTriggers = `do $$ begin
		alter table message drop column feed_at;
		alter table history drop column feed_at;
		create table feed (feed_at bigint not null default feed_now(), source smallint not null, messages uuid[] not null, n integer[]);
		create index on feed (feed_at);
		create function of_messages() returns trigger language plpgsql as 'begin
			insert into feed (source, messages) select 1, array_agg(id) from fresh having count(*) > 0; return null; end';
		create function of_history() returns trigger language plpgsql as 'begin
			insert into feed (source, messages, n) select 2, array_agg(message_id), array_agg(n) from fresh having count(*) > 0; return null; end';
		create trigger feed after insert on message referencing new table as fresh for each statement execute function of_messages();
		create trigger feed after insert on history referencing new table as fresh for each statement execute function of_history();
	end $$`
)

// logged is how much a server has written to its log, in octets.
func logged(b *testing.B, db *pgtest.DB) int {
	return count(b, db, `select (pg_current_wal_insert_lsn() - '0/0')::bigint`)
}

// run spreads b.N calls over goroutines.
func run(b *testing.B, goroutines int, f func()) {
	var wg sync.WaitGroup
	left := make(chan struct{}, b.N)
	for range b.N {
		left <- struct{}{}
	}
	close(left)
	for range goroutines {
		wg.Go(func() {
			for range left {
				f()
			}
		})
	}
	wg.Wait()
}

func selfCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// postgresCPU sums what a server's processes have used.
type postgresCPU struct{ postmaster string }

func newPostgresCPU(b testing.TB, db *pgtest.DB) *postgresCPU {
	pid := count(b, db, `select pg_backend_pid()`)
	return &postgresCPU{field(strconv.Itoa(pid), 1)}
}

// field returns a field of /proc/PID/stat, counted from the state, which is 0.
func field(pid string, i int) string {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return ""
	}
	s := string(data)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	return fields[i]
}

func (p *postgresCPU) total() time.Duration {
	pids, _ := filepath.Glob("/proc/[0-9]*")
	ticks := 0
	for _, dir := range pids {
		pid := filepath.Base(dir)
		own := []int{11, 12}
		if pid == p.postmaster {
			own = []int{11, 12, 13, 14}
		} else if field(pid, 1) != p.postmaster {
			continue
		}
		for _, i := range own {
			n, _ := strconv.Atoi(field(pid, i))
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// BenchmarkClaimBacklog claims fresh mail while a million recipients are deferred, a
// hundred thousand of them due for a destination that is busy. It reports the longest
// claim beside the mean.
func BenchmarkClaimBacklog(b *testing.B) {
	db := pgtest.New(b)
	q := start(b, calmConfig(db))
	fillMillion(b, db)
	busy := []string{"busy.example"}
	var longest time.Duration
	claimed := 0
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		for range 20 {
			put(b, q, false, "x@fresh"+strconv.Itoa(claimed%7)+".example")
		}
		eventually(b, "fresh mail waits", func() bool { return len(q.settles.in) == 0 })
		b.StartTimer()
		begin := time.Now()
		got, err := q.Claim(ctxOf(b), ClaimRequest{Messages: 50, PerDestination: 20, Busy: busy})
		if err != nil {
			b.Fatal(err)
		}
		longest = max(longest, time.Since(begin))
		claimed += len(got)
	}
	b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
	b.ReportMetric(float64(claimed)/float64(b.N), "claimed/op")
}

// fillMillion makes a million deferred recipients, a hundred thousand of them due for
// busy.example.
func fillMillion(b *testing.B, db *pgtest.DB) {
	for _, sql := range []string{
		`insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
			client_addr, client_hello, listener, tls, node, recipients)
			select ('018f0000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, 1, 1, 'a', 'example.com', 1, '', false, '', '', '', now(), '', '', '', '', 'a', 1
			from generate_series(1, 1000000) g`,
		`insert into body select id, 0, 'x' from message`,
		`insert into recipient (message_id, n, user_id, next_attempt_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
			select ('018f0000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, 0, 1,
				case when g % 10 = 0 then now() - interval '1 hour' * random() else now() + interval '4 hours' * random() + interval '1 hour' end,
				now() + interval '5 days', 3, 0,
				case when g % 10 = 0 then 'busy.example' else 'd' || g % 50000 || '.example' end, 'x', 'x', '', ''
			from generate_series(1, 1000000) g`,
		`analyze recipient`,
	} {
		exec(b, db, sql)
	}
}

// BenchmarkStatement is what it takes of this process to make the arguments of a group of outcomes.
func BenchmarkStatement(b *testing.B) {
	for _, n := range []int{1, 64} {
		q := &Queue{cfg: Config{Node: "a"}}
		q.times.Store(&Times{})
		outcomes := make([]ending, n)
		for i := range outcomes {
			outcomes[i] = ending{Outcome: Outcome{Message: NewID(), Recipient: address("bob@example.net"), Result: Delivered}}
		}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			var c endings
			for b.Loop() {
				settleArguments(q, &c, outcomes)
			}
		})
	}
}

func settleArguments(q *Queue, c *endings, group []ending) []any {
	c.fill(q, group, true).delivered(&c.args)
	return c.args.Values
}
