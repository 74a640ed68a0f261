package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"postern/internal/pg"
	"postern/relay/smtp"
)

const (
	settleGroup = 512                  // outcomes in one statement
	settleQueue = 8192                 // outcomes that wait before Settle blocks
	settlePause = 5 * time.Millisecond // nobody waits for an outcome: gather a little
)

// ending is what is to become of one row that we own.
type ending struct {
	Outcome
	release bool   // not an attempt: back to waiting
	expired bool   // its lifetime ended while it waited
	bared   bool   // its texts were left out
	aside   string // why the row is set aside; of a release
}

// settles writes the ends of rows in groups, in order, until they are written.
type settles struct {
	q    *Queue
	s    *pg.Dedicated
	in   chan ending
	last chan struct{} // closed when nothing more will come
	done sync.WaitGroup
	cols endings

	fenced atomic.Int64 // outcomes
}

func newSettles(q *Queue) *settles {
	return &settles{q: q, s: dedicated(q.cfg.WorkPool, pg.TuneWork, &q.faults.settle), in: make(chan ending, settleQueue), last: make(chan struct{})}
}

// Settle hands over outcomes; they are written in batches, fenced by their epoch,
// and tried again until they are written or fenced off. It blocks only while too
// many outcomes wait.
func (q *Queue) Settle(outcomes ...Outcome) {
	for _, o := range outcomes {
		if o.At.IsZero() {
			o.At = time.Now()
		}
		q.settles.put(ending{Outcome: o, release: o.NotAnAttempt})
	}
}

// Release gives recipients back without an attempt, due again after the wait. When a reader
// has found the body damaged, they are set aside.
func (q *Queue) Release(d *Delivery, ns []int, wait time.Duration) {
	body, ok := d.Body.(*storedBody)
	for _, n := range ns {
		e := ending{Outcome: Outcome{Message: d.Message.ID, N: n, Epoch: d.Epoch, RetryIn: wait}, release: true}
		if ok && body.damaged.Load() {
			e.aside = textMissing
		}
		q.settles.put(e)
	}
}

// end has a row ended that was claimed and that nobody has in hand yet.
func (q *Queue) end(e ending) {
	q.held.add(e.Message, 1)
	q.settles.put(e)
}

// park gives up the rows of a message that was committed for any node to deliver.
// Its client waits for the 250, so it does not wait for room.
func (s *settles) park(j *job) {
	ends := make([]ending, len(j.rcpts))
	for i := range j.rcpts {
		ends[i] = ending{Outcome: Outcome{Message: j.m.ID, N: j.rcpts[i].N, Epoch: j.epoch}, release: true}
	}
	if cap(s.in)-len(s.in) > len(ends)+settleGroup {
		s.putAll(ends)
		return
	}
	go s.putAll(ends)
}

func (s *settles) putAll(ends []ending) {
	for _, e := range ends {
		s.put(e)
	}
}

func (s *settles) put(e ending) {
	select {
	case s.in <- e:
	case <-s.q.stopped:
		s.q.log.Error("queue: an outcome came after the end and is lost; the next attempt is flagged", "id", e.Message, "rcpt", e.N, "result", e.Result)
	}
}

// run writes until ctx ends, or until what had come before last was closed is written.
func (s *settles) run(ctx context.Context) {
	defer s.s.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-s.in:
			if len(s.in) < settleGroup {
				time.Sleep(settlePause)
			}
			s.write(ctx, gather(first, s.in, settleGroup, nil), false)
		case <-s.last:
			for len(s.in) > 0 {
				s.write(ctx, gather(<-s.in, s.in, settleGroup, nil), false)
			}
			return
		}
	}
}

// write brings a group into the database, however long that takes. again says that
// an earlier attempt may have done so.
func (s *settles) write(ctx context.Context, group []ending, again bool) {
	for wait := 10 * time.Millisecond; ctx.Err() == nil && len(group) > 0; wait = min(2*wait, 5*time.Second) {
		err := s.attempt(group, again)
		if err == nil {
			s.finish(group)
			return
		}
		if pg.CertaintyOf(err) == pg.Uncertain {
			again, group = true, s.leaveReleases(group)
		}
		if pg.OfTheRow(err) && len(group) > 0 {
			if len(group) > 1 {
				s.write(ctx, group[:len(group)/2], again)
				s.write(ctx, group[len(group)/2:], again)
				return
			}
			if !s.yield(&group[0], err) {
				return
			}
		}
		if pg.IsDown(err) {
			s.q.epochs.suspect(err)
		} else {
			s.q.log.Warn("queue: settling is tried again", "outcomes", len(group), "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	if len(group) > 0 {
		s.q.log.Error("queue: outcomes are lost at the end; their next attempts are flagged", "outcomes", len(group))
	}
}

// leaveReleases drops the releases of a group whose fate is in doubt. Nothing records
// a release, so it cannot be told whether it was made; the row may be claimed again
// by now, by this very epoch, and must not be taken from that claim. If it was not made
// the sweep makes it: it releases what nobody here has in hand.
func (s *settles) leaveReleases(group []ending) []ending {
	left := group[:0]
	for _, e := range group {
		if e.release {
			s.q.held.remove(e.Message, 1)
			continue
		}
		left = append(left, e)
	}
	return left
}

// yield makes of an outcome that cannot be written one that asks less of its row, and
// reports false when there is none.
func (s *settles) yield(e *ending, err error) bool {
	switch {
	case e.aside == "" && !e.bared:
		s.q.log.Error("queue: an outcome cannot be written as it is, its texts are left out", "id", e.Message, "rcpt", e.N, "error", err)
		e.Outcome, e.bared = bare(e.Outcome), true
	case e.aside == "":
		e.aside = fmt.Sprintf("its outcome (%s, %d) cannot be written: %v", e.Result, e.Reply.Code, err)
		e.Unknown, e.release = e.Unknown || e.Result == Delivered, true
	default:
		s.q.log.Error("queue: a recipient cannot be set aside, its row cannot be written", "id", e.Message, "rcpt", e.N, "why", e.aside, "error", err)
		s.q.held.remove(e.Message, 1)
		return false
	}
	return true
}

// bare is an outcome without anything that a peer said but its codes.
func bare(o Outcome) Outcome {
	o.Reply.Text, o.RemoteMTA, o.TLS, o.Upstream = "", "", "", ""
	return o
}

func (s *settles) finish(group []ending) {
	s.q.ended(group)
	due, notices := false, false
	for i := range group {
		e := &group[i]
		switch {
		case e.aside != "":
			s.q.log.Error("queue: a recipient is set aside, its mail waits for an admin", "id", e.Message, "rcpt", e.N, "why", e.aside)
		case e.release:
			due = due || e.RetryIn <= 0
		default:
			notices = notices || e.Result == Failed
		}
		s.q.held.remove(e.Message, 1)
	}
	if due || notices {
		s.q.announce()
	}
}

// The columns of a group, common to both statements.
const sqlOutcomes = `
with o as materialized (select * from unnest($1::uuid[], $2::int[], $3::bigint[], $4::text[], $5::timestamptz[], $6::timestamptz[],
	$7::int[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::boolean[], $15::boolean[],
	$16::interval[], $17::boolean[], $18::text[], $19::text[], $20::text[], $21::boolean[])
	as o(message_id, n, epoch, result, at, started_at, code, enhanced, text, mta, addr, tls, upstream, outcome_unknown, dsn_passed,
		retry_in, released, local, domain, waits_for, ours)`

// sqlEndings takes a group as it is, sqlEndingsAgain without what an earlier attempt has
// recorded: those rows may be claimed again by now, by the same epoch.
const (
	sqlEndings      = sqlOutcomes + `),`
	sqlEndingsAgain = sqlOutcomes + `
	where not exists (select from attempt a where a.message_id = o.message_id and a.n = o.n and a.at = o.at and a.epoch = o.epoch)),`
)

// sqlAwaitEndings waits for an earlier attempt that is still under way, so that what
// follows, a statement of its own, sees what it has recorded.
const sqlAwaitEndings = `
select count(*) from (select from unnest($1::uuid[], $2::int[]) o(message_id, n)
	join recipient r on r.message_id = o.message_id and r.n = o.n for update of r) locked`

// The end of both: history for every attempt, the body with the last row of its
// message, and the keys of what was fenced off. An outcome that is written a second
// time finds its history there and is not taken for fenced. ("not in" is hashed; a
// join here would be a loop over all pairs.)
const sqlEnd = `
h as (insert into attempt (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, node, outcome_unknown, possible_duplicate, dsn_passed, fenced)
	select e.message_id, e.n, e.at, e.epoch, e.result, e.started_at, e.local, e.domain, e.code, e.enhanced, e.text,
		e.mta, e.addr, e.tls, e.upstream, $22, e.outcome_unknown, e.duplicate, e.dsn_passed, e.fenced
	from (select k.*, false as fenced from k
		union all
		select o.*, o.outcome_unknown or o.result = 'delivered', true from o
		where (o.message_id, o.n) not in (select k.message_id, k.n from k)) e
	where not e.released
	on conflict do nothing
	returning message_id, n, fenced),
b as (delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id)
select h.message_id, h.n, ` + durably + ` from h where h.fenced
union all select null, null, ` + durably

// sqlDelivered ends rows that were delivered: the row goes, or stays to be told
// of when its sender asked for that and the next hop does not see to it. While others of
// the message are under way, what is to be told is gathered for a while.
const (
	sqlDelivered      = sqlEndings + sqlDeliver
	sqlDeliveredAgain = sqlEndingsAgain + sqlDeliver
)

const sqlDeliver = `
gone as (delete from recipient r using o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'queued' and (r.tell & 4 = 0 or o.dsn_passed)
	returning o.*, r.possible_duplicate as duplicate),
kept as (update recipient r set state = 'delivered', owner = null, dot_possible = false, attempts = attempts + 1,
		notice_at = now() + case when exists (select from recipient s where s.message_id = r.message_id and s.n <> r.n and s.state = 'queued')
			then $23::interval else '0' end,
		last_attempt_at = o.at, reply_code = o.code, reply_enhanced = o.enhanced, reply_text = o.text, remote_mta = o.mta
	from o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'queued' and r.tell & 4 <> 0 and not o.dsn_passed
	returning o.*, r.possible_duplicate),
k as (select * from gone union all select * from kept),` + sqlEnd

// sqlUndelivered ends the other attempts: back to waiting, or failed when the server
// said so or the lifetime is over; a row whose failure nobody wants to hear of is deleted
// immediately. When a notice failed an admin is told (TellLost).
// An outcome that was not an attempt leaves its reason in the row, for the queue's listing and a delay
// notice to show, and nothing in the history.
const (
	sqlUndelivered      = sqlEndings + sqlUndeliver
	sqlUndeliveredAgain = sqlEndingsAgain + sqlUndeliver
)

const sqlUndeliver = `
mine as materialized (
	select o.*, r.possible_duplicate as duplicate, r.tell,
		not o.released and (o.result <> 'deferred' or r.expires_at <= now()) as fails,
		not o.released and o.result = 'deferred' and r.expires_at <= now() as late
	from o join recipient r on r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'queued'
	for update of r),
-- The messages of which recipients go on: more may fail soon, to be told by one notice.
goes_on as materialized (select f.message_id from (select message_id, count(*) as ends from mine where fails group by message_id) f
	where f.ends < (select count(*) from recipient r where r.message_id = f.message_id and r.state = 'queued')),
gone as (delete from recipient r using mine m
	where r.message_id = m.message_id and r.n = m.n and m.fails and m.tell & 1 = 0
	returning r.message_id, r.n),
lost as (update notice t set lost = case when m.late or m.result = 'expired' then 'expired' else 'failed' end, lost_at = now()
	from mine m
	where t.message_id = m.message_id and m.fails and m.tell & 1 = 0 and t.lost is null),
back as (update recipient r set owner = null, dot_possible = false, next_attempt_at = least(now() + m.retry_in, r.expires_at),
		waits_for = nullif(m.waits_for, ''),
		notice_at = case when m.code = 0 or r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else coalesce(r.notice_at, r.accepted_at + $23::interval) end,
		held_at = held_since(r.message_id, r.held_at),
		reply_code = case when m.code > 0 then m.code else r.reply_code end,
		reply_enhanced = case when m.code > 0 then m.enhanced else r.reply_enhanced end,
		reply_text = case when m.code > 0 then m.text else r.reply_text end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and m.released),
kept as (update recipient r set owner = null, dot_possible = false,
		state = case when m.fails then 'failed' else 'queued' end,
		held_at = case when not m.fails then held_since(r.message_id, r.held_at) end, last_upstream = m.upstream,
		waits_for = case when not m.fails then nullif(m.waits_for, '') end,
		possible_duplicate = r.possible_duplicate or m.outcome_unknown,
		attempts = r.attempts + case m.result when 'expired' then 0 else 1 end,
		next_attempt_at = least(now() + m.retry_in, r.expires_at),
		notice_at = case when m.fails then now() + case when m.message_id in (select message_id from goes_on) then $24::interval else '0' end
			when r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else coalesce(r.notice_at, r.accepted_at + $23::interval) end,
		last_attempt_at = case m.result when 'expired' then r.last_attempt_at else m.at end,
		reply_code = case when m.late then 451 else m.code end,
		reply_enhanced = case when m.late then '4.4.7' else m.enhanced end,
		reply_text = case when m.late then 'Delivery time expired, last reply: ' || m.code || ' ' || m.enhanced || ' ' || m.text ||
				case when m.mta <> '' and not m.ours then ' (said by ' || m.mta || ')' else '' end
			when m.result = 'expired' and r.reply_code > 0
				then m.text || ', last reply: ' || r.reply_code || ' ' || r.reply_enhanced || ' ' || r.reply_text ||
				case when r.remote_mta <> '' then ' (said by ' || r.remote_mta || ')' else '' end
			else m.text end,
		remote_mta = case when m.ours or m.late or m.result = 'expired' then '' else m.mta end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and not m.released and not (m.fails and m.tell & 1 = 0)),
k as (select m.message_id, m.n, m.epoch, case when m.late then 'expired' else m.result end as result, m.at, m.started_at, m.code, m.enhanced, m.text, m.mta, m.addr, m.tls, m.upstream,
	m.outcome_unknown, m.dsn_passed, m.retry_in, m.released, m.local, m.domain, m.waits_for, m.ours, m.duplicate from mine m),` + sqlEnd

// attempt writes a group once: one round trip, one transaction.
func (s *settles) attempt(group []ending, again bool) error {
	began := time.Now()
	err := s.q.cfg.Guard.Try("queue: writing outcomes", func() error { return s.transact(group, again) })
	err = s.s.Panicked(err)
	s.q.committed(WorkSettle, len(group), began, err)
	return err
}

func (s *settles) transact(group []ending, again bool) error {
	// Like a commit of mail it is not cancelled by anybody.
	ctx, cancel := context.WithTimeout(context.Background(), s.q.cfg.Budget)
	defer cancel()
	conn, err := s.s.Get(ctx)
	if err != nil {
		return err
	}
	var fenced []fencedKey
	batch := &pgx.Batch{}
	delivered, undelivered := sqlDelivered, sqlUndelivered
	if again {
		delivered, undelivered = sqlDeliveredAgain, sqlUndeliveredAgain
		batch.Queue(sqlAwaitEndings, keysOf(group)...)
	}
	collect := func(rows pgx.Rows) error {
		var key fencedKey
		var unused *string
		_, err := pgx.ForEachRow(rows, []any{&key.id, &key.n, &unused}, func() error {
			if key.id != nil {
				fenced = append(fenced, fencedKey{new(*key.id), new(*key.n)})
			}
			return nil
		})
		return err
	}
	if c := s.cols.fill(group, true); c.len() > 0 {
		batch.Queue(delivered, append(c.args(), s.q.cfg.Node, s.q.cfg.Gather)...).Query(collect)
	}
	rest := &endings{}
	if c := rest.fill(group, false); c.len() > 0 {
		batch.Queue(undelivered, append(c.args(), s.q.cfg.Node, s.q.times.Load().DelayNotice, s.q.cfg.Gather)...).Query(collect)
	}
	for i := range group {
		if e := &group[i]; e.aside != "" {
			batch.Queue(sqlSetAside, e.Message, e.N, e.Epoch, pg.Storable(e.aside), s.q.cfg.Node, e.Unknown, s.q.times.Load().Lifetime)
		}
	}
	err = conn.SendBatch(ctx, batch).Close()
	if err = s.s.End(err); err != nil {
		if !errors.Is(err, pg.ErrNotReplicated) && pg.CertaintyOf(err) == pg.Uncertain {
			s.s.Drop()
		}
		return fmt.Errorf("settle: %w", err)
	}
	s.tellFenced(ctx, conn, fenced)
	return nil
}

// sqlFlagFenced flags the rows that wait, or are owned again, although their fenced outcomes
// say that they were or may have been delivered. Most rows are flagged by whatever ended
// their ownership; not those whose claim a failover has lost. Should this not be written,
// the history still says so.
const sqlFlagFenced = `
update recipient r set possible_duplicate = true from unnest($1::uuid[], $2::int[]) f(message_id, n)
where r.message_id = f.message_id and r.n = f.n and r.state = 'queued' and not r.possible_duplicate
	and exists (select from attempt a where a.message_id = f.message_id and a.n = f.n and a.fenced and a.possible_duplicate)`

// tellFenced logs outcomes that changed no row and flags the rows that there are.
func (s *settles) tellFenced(ctx context.Context, conn *pgx.Conn, fenced []fencedKey) {
	if len(fenced) == 0 {
		return
	}
	s.fenced.Add(int64(len(fenced)))
	ids, ns := make([][16]byte, len(fenced)), make([]int32, len(fenced))
	for i, key := range fenced {
		ids[i], ns[i] = *key.id, int32(*key.n)
		s.q.log.Warn("queue: fenced: an outcome came after its epoch had lost the recipient", "id", *key.id, "rcpt", *key.n)
	}
	if _, err := conn.Exec(ctx, sqlFlagFenced, ids, ns); s.s.End(err) != nil {
		s.q.log.Warn("queue: recipients that may have been delivered are not flagged", "recipients", len(fenced), "error", err)
	}
}

func keysOf(group []ending) []any {
	ids, ns := make([][16]byte, len(group)), make([]int32, len(group))
	for i := range group {
		ids[i], ns[i] = group[i].Message, int32(group[i].N)
	}
	return []any{ids, ns}
}

type fencedKey struct {
	id *ID
	n  *int
}

// endings is the columns of one statement.
type endings struct {
	id                                          [][16]byte
	n, code                                     []int32
	epoch                                       []int64
	result, enhanced, text, mta, addr, tls, via []string
	local, domain, waits                        []string
	at, started                                 []time.Time
	unknown, passed, released, ours             []bool
	retry                                       []time.Duration
}

func (c *endings) len() int { return len(c.id) }

// fill takes the endings of a group that are deliveries, or those that are not.
func (c *endings) fill(group []ending, delivered bool) *endings {
	*c = endings{id: c.id[:0], n: c.n[:0], code: c.code[:0], epoch: c.epoch[:0], result: c.result[:0], enhanced: c.enhanced[:0],
		text: c.text[:0], mta: c.mta[:0], addr: c.addr[:0], tls: c.tls[:0], via: c.via[:0], local: c.local[:0], domain: c.domain[:0], waits: c.waits[:0], ours: c.ours[:0],
		at: c.at[:0], started: c.started[:0], unknown: c.unknown[:0], passed: c.passed[:0], released: c.released[:0], retry: c.retry[:0]}
	for i := range group {
		e := &group[i]
		if e.aside == "" && (e.Result == Delivered && !e.release) == delivered {
			c.add(e)
		}
	}
	return c
}

func (c *endings) add(e *ending) {
	result := string(e.Result)
	switch {
	case e.expired:
		result = "expired"
	case e.release:
		result = string(Deferred)
	}
	addr := ""
	if e.RemoteIP.IsValid() {
		addr = e.RemoteIP.String()
	}
	started := e.StartedAt
	if started.IsZero() {
		started = e.At
	}
	c.id, c.n, c.epoch, c.result = append(c.id, e.Message), append(c.n, int32(e.N)), append(c.epoch, e.Epoch), append(c.result, result)
	c.at, c.started = append(c.at, e.At), append(c.started, started)
	c.code, c.enhanced, c.text = append(c.code, int32(e.Reply.Code)), append(c.enhanced, e.Reply.Enhanced.String()), append(c.text, pg.Storable(e.Reply.Text))
	c.mta, c.addr = append(c.mta, pg.Storable(e.RemoteMTA)), append(c.addr, addr)
	c.tls, c.via = append(c.tls, pg.Storable(e.TLS)), append(c.via, pg.Storable(e.Upstream))
	c.unknown, c.passed = append(c.unknown, e.Unknown), append(c.passed, e.DSNPassed)
	c.retry, c.released = append(c.retry, max(e.RetryIn, 0)), append(c.released, e.release)
	waits := ""
	if e.Suspended {
		waits = Way(e.Upstream, e.Recipient.DomainKey())
	}
	c.waits, c.ours = append(c.waits, pg.Storable(waits)), append(c.ours, e.Ours)
	c.local, c.domain = append(c.local, pg.Storable(e.Recipient.Local)), append(c.domain, pg.Storable(e.Recipient.Domain))
}

func (c *endings) args() []any {
	return []any{c.id, c.n, c.epoch, c.result, c.at, c.started, c.code, c.enhanced, c.text, c.mta, c.addr, c.tls, c.via,
		c.unknown, c.passed, pgtype.FlatArray[time.Duration](c.retry), c.released, c.local, c.domain, c.waits, c.ours}
}

// expiredReply is what a recipient fails with when its lifetime ended while it
// waited (RFC 3463 X.4.7, transient by its class as in RFC 3464 section 4.3).
func expiredReply(lifetime time.Duration) smtp.Reply {
	return smtp.Temporary(451, 4, 7, fmt.Sprintf("Delivery time expired after %s", lifetime))
}
