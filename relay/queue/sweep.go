package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	reapRows    = 1000 // rows that one statement takes back
	sweepRows   = 2000 // messages whose body or history one statement looks at
	sweepEvery  = time.Minute
	epochMemory = "1 hour" // how long a dead epoch is remembered: longer than any commit in flight
)

// sweeps puts right what a crash or a lost answer left behind, and forgets old history.
type sweeps struct {
	q *Queue
	s *session

	seen     map[int64]beatSeen // of other epochs, to be sure that they are silent
	suspects map[ID]bool        // rows of ours that nobody held at the last round
	bodies   ID                 // where the walk over the bodies is
	slow     time.Time          // when the slow chores are next
}

type beatSeen struct {
	beat  time.Time // the database's word for its last heartbeat
	since time.Duration
}

func newSweeps(q *Queue) *sweeps {
	return &sweeps{q: q, s: newSession(q.cfg.WorkPool, tuneWork), seen: make(map[int64]beatSeen)}
}

func (s *sweeps) run(ctx context.Context) {
	defer s.s.close()
	s.slow = time.Now().Add(sweepEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.q.cfg.Heartbeat):
		}
		if err := s.round(ctx); err != nil && ctx.Err() == nil {
			s.s.drop()
			if !s.q.epochs.suspectIfDown(err) {
				s.q.log.Warn("queue: sweeping is tried again", "error", err)
			}
		}
	}
}

func (s *sweeps) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := s.s.get(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(s.reap(ctx, conn), s.leftovers(ctx, conn))
	if err == nil && time.Now().After(s.slow) {
		s.slow = time.Now().Add(sweepEvery)
		err = errors.Join(s.orphans(ctx, conn), s.retention(ctx, conn))
	}
	return s.s.end(err)
}

// sqlLiving lists the living epochs, and says whose lease ended long enough ago.
const sqlLiving = `
select epoch, name, beat_at, expires_at + $1::interval < clock_timestamp() from node where reaped_at is null`

// sqlKill is the death of an epoch: the heartbeat that races with it either moves
// beat_at first, and then nothing happens here, or changes no row any more.
const sqlKill = `update node set reaped_at = clock_timestamp() where epoch = $1 and beat_at = $2 and reaped_at is null`

// sqlReap takes back the rows of dead epochs. What its owner may have sent is flagged.
const sqlReap = `
with dead as materialized (
	select r.message_id, r.n, r.owner, r.dot_possible, r.state, r.local, r.domain
	from recipient r where r.owner = any(array(select epoch from node where reaped_at is not null)) limit $1
	for update skip locked),
back as (update recipient r set owner = null, dot_possible = false, held_at = held_since(r.message_id, r.held_at),
		possible_duplicate = r.possible_duplicate or (d.dot_possible and d.state = 'queued'),
		next_attempt_at = case when d.state = 'queued' then greatest(r.next_attempt_at, now()) else r.next_attempt_at end
	from dead d where r.message_id = d.message_id and r.n = d.n),
h as (insert into attempt (message_id, n, at, epoch, result, local, domain, node, reply_text, outcome_unknown, possible_duplicate)
	select d.message_id, d.n, now(), d.owner, 'unknown', d.local, d.domain, coalesce(node.name, ''),
		case when d.dot_possible then 'The node that had this recipient is gone, it may have delivered'
			else 'The node that had this recipient is gone before it delivered' end, d.dot_possible, d.dot_possible
	from dead d left join node on node.epoch = d.owner where d.state = 'queued'
	on conflict do nothing)
select (select count(*) from dead), ` + durably

// reap buries silent epochs and takes their rows back.
func (s *sweeps) reap(ctx context.Context, conn *pgx.Conn) error {
	if err := s.bury(ctx, conn); err != nil {
		return fmt.Errorf("reap: %w", err)
	}
	for {
		var count int
		var unused *string
		if err := conn.QueryRow(ctx, sqlReap, reapRows).Scan(&count, &unused); err != nil {
			return fmt.Errorf("reap rows: %w", err)
		}
		if count > 0 {
			s.q.log.Warn("queue: took back the recipients of a dead epoch", "recipients", count)
			s.q.announce()
		}
		if count < reapRows {
			return nil
		}
	}
}

// bury ends the epochs whose lease is over and from which nothing was heard for
// ReapAfter. The silence is counted while the lease still runs, so that the mail of
// a dead node does not wait for the one after the other.
func (s *sweeps) bury(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, sqlLiving, s.q.cfg.ReapAfter)
	if err != nil {
		return err
	}
	type living struct {
		Epoch int64
		Name  string
		Beat  time.Time
		Over  bool // its lease, for long enough
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[living])
	if err != nil {
		return err
	}
	known := s.seen
	s.seen = make(map[int64]beatSeen, len(list))
	for _, e := range list {
		was, ok := known[e.Epoch]
		if !ok || !was.beat.Equal(e.Beat) {
			was = beatSeen{e.Beat, s.q.clock.Now()}
		}
		s.seen[e.Epoch] = was
		// The database's clock may have jumped: a living node would have beaten since.
		if !e.Over || s.q.clock.Now()-was.since < s.q.cfg.ReapAfter {
			continue
		}
		tag, err := conn.Exec(ctx, sqlKill, e.Epoch, e.Beat)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 {
			s.q.log.Warn("queue: an epoch is dead", "epoch", e.Epoch, "node", e.Name, "beat", e.Beat)
		}
	}
	return nil
}

// sqlOwned lists messages with rows of one epoch.
const sqlOwned = `select distinct message_id from recipient where owner = $1`

// sqlDisown releases the rows of a message that an epoch has.
const sqlDisown = `
update recipient set owner = null, dot_possible = false, held_at = held_since(message_id, held_at), next_attempt_at = greatest(next_attempt_at, now())
where message_id = any($1::uuid[]) and owner is not distinct from $2`

// leftovers releases rows of our own epoch that nobody here knows of: the answer to
// a claim was lost after its commit. They are released when two rounds met them, since
// an answer may be on its way.
func (s *sweeps) leftovers(ctx context.Context, conn *pgx.Conn) error {
	epoch := s.q.epochs.valid()
	if epoch == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlOwned, epoch)
	if err != nil {
		return fmt.Errorf("leftovers: %w", err)
	}
	suspects := make(map[ID]bool)
	var lost [][16]byte
	var id ID
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		if s.q.held.has(id) {
			return nil
		}
		suspects[id] = true
		if s.suspects[id] {
			lost = append(lost, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("leftovers: %w", err)
	}
	s.suspects = suspects
	if len(lost) == 0 {
		return nil
	}
	// Other rows of the same messages may be claimed meanwhile.
	s.q.claims.mu.Lock()
	defer s.q.claims.mu.Unlock()
	lost = slices.DeleteFunc(lost, func(id [16]byte) bool { return s.q.held.has(id) })
	if len(lost) == 0 {
		return nil
	}
	tag, err := conn.Exec(ctx, sqlDisown, lost, epoch)
	if err != nil {
		return fmt.Errorf("release leftovers: %w", err)
	}
	if tag.RowsAffected() > 0 {
		s.q.log.Warn("queue: released recipients whose claim was lost", "recipients", tag.RowsAffected())
		s.q.announce()
	}
	return nil
}

// sqlBodies walks over the table body by key, from each message to the next: a large
// one that moved here has a thousand rows.
const sqlBodies = `
with recursive w(message_id, i) as (
	(select message_id, 1 from body where message_id > $1 order by message_id limit 1)
	union all
	select (select b.message_id from body b where b.message_id > w.message_id order by b.message_id limit 1), w.i + 1
	from w where w.message_id is not null and w.i < $2),
gone as (delete from body using w where body.message_id = w.message_id and not exists (select from recipient r where r.message_id = w.message_id))
select count(message_id), max(message_id::text) from w`

// orphans deletes bodies without rows, a part of them at each round.
func (s *sweeps) orphans(ctx context.Context, conn *pgx.Conn) error {
	var count int
	var last *string
	if err := conn.QueryRow(ctx, sqlBodies, s.bodies, sweepRows).Scan(&count, &last); err != nil {
		return fmt.Errorf("orphans: %w", err)
	}
	s.bodies = ID{}
	if count > 0 {
		s.bodies, _ = uuid.Parse(*last)
	}
	return nil
}

// sqlForget deletes the oldest history. Ids are UUIDv7: $1 is the first that stays.
const sqlForget = `
with old as materialized (select id from message where id < $1 order by id limit $2),
past as materialized (select id from old where not exists (select from recipient r where r.message_id = id)),
a as (delete from attempt using past where attempt.message_id = past.id),
m as (delete from message using past where message.id = past.id)
select (select count(*) from past)`

// sqlForgetNodes deletes dead epochs that no row names any more.
const sqlForgetNodes = `
delete from node where reaped_at < clock_timestamp() - interval '` + epochMemory + `'
	and not exists (select from recipient r where r.owner = node.epoch)`

// sqlForgetActivity deletes what the breaker looks at no more.
const sqlForgetActivity = `delete from activity where hour < now() - interval '14 days'`

// sqlForgetHolds ends the holds of credentials that hold nothing: a credential that was
// revoked sends no more, and what it had sent is finished. Holds of users stay, for
// users go on.
const sqlForgetHolds = `
delete from hold h where h.credential_id <> 0 and h.made_at < clock_timestamp() - interval '2 minutes'
	and not exists (select from recipient r join message m on m.id = r.message_id
		where m.user_id = h.user_id and m.credential_id = h.credential_id)`

// sqlForgetUsage deletes the windows of limits in which nothing counts any more.
const sqlForgetUsage = `
delete from usage_window where (scope, subject, kind, window_s) in (
	select scope, subject, kind, window_s from usage_window
	where coalesce(at[cardinality(at)], 0) < floor(extract(epoch from clock_timestamp()) * 60 / window_s)::bigint - 120
	for update skip locked)`

func (s *sweeps) retention(ctx context.Context, conn *pgx.Conn) error {
	for what, sql := range map[string]string{"nodes": sqlForgetNodes, "activity": sqlForgetActivity, "usage": sqlForgetUsage, "holds": sqlForgetHolds} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("forget %s: %w", what, err)
		}
	}
	var now time.Time
	if err := conn.QueryRow(ctx, `select now()`).Scan(&now); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	for range 50 {
		var count int
		if err := conn.QueryRow(ctx, sqlForget, firstID(now.Add(-s.q.times.Load().History)), sweepRows).Scan(&count); err != nil {
			return fmt.Errorf("forget: %w", err)
		}
		if count < sweepRows {
			return nil
		}
	}
	return nil
}

// firstID is the least UUIDv7 of a moment (RFC 9562 section 5.7).
func firstID(t time.Time) ID {
	var id ID
	ms := t.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	id[6], id[8] = 0x70, 0x80
	return id
}

// sqlHandBack releases all rows of an epoch.
const sqlHandBack = `
with mine as materialized (select message_id, n from recipient where owner = $1 limit $2 for update),
back as (update recipient r set owner = null, dot_possible = false, held_at = held_since(r.message_id, r.held_at),
		next_attempt_at = greatest(r.next_attempt_at, now())
	from mine where r.message_id = mine.message_id and r.n = mine.n)
select count(*) from mine`

// handBack releases what this node still owns at its end.
func (s *sweeps) handBack(ctx context.Context) error {
	l := s.q.epochs.current.Load()
	if l == nil {
		return nil
	}
	conn, err := s.s.get(ctx)
	if err != nil {
		return fmt.Errorf("hand back: %w", err)
	}
	defer s.s.close()
	for {
		var count int
		if err := conn.QueryRow(ctx, sqlHandBack, l.epoch, reapRows).Scan(&count); err != nil {
			return fmt.Errorf("hand back: %w", err)
		}
		if count > 0 {
			_, _ = conn.Exec(ctx, sqlNotify)
		}
		if count < reapRows {
			return nil
		}
	}
}
