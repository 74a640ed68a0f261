package retention

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/queue"
)

const (
	retentionEvery = time.Minute
	retentionFirst = 5 * time.Second // within it the first round begins, not on all nodes together
	epochMemory    = "1 hour"        // how long a dead epoch is remembered: longer than any commit in flight

	forgetLeast    = 100 // messages that one batch looks at
	forgetMost     = 2000
	forgetAttempts = 5000 // and attempts that it deletes at most
	forgetShort    = 50 * time.Millisecond
	forgetLong     = 250 * time.Millisecond
	forgetRest     = 3 // a pause is so many times as long as the batch before it

	forgetRows  = 1000 // of anomaly detection and the limits, in one statement
	forgetTurns = 20   // statements of a kind in a round
)

// Config configures a Retention; zero durations take those of Defaults.
type Config struct {
	Pool  *pgxpool.Pool // the settings of its connections
	Log   *slog.Logger
	Guard *panics.Guard // keeps what panics from ending the process; may be nil

	History        time.Duration // after a message's end
	Correspondents time.Duration // how long it is known whom users wrote to

	// Trouble is told of errors and reports whether they are the database's, which others
	// log; nil for nobody.
	Trouble func(error) bool
}

// Defaults are the spans of a Retention that is given none.
func Defaults() Config {
	return Config{History: 30 * 24 * time.Hour, Correspondents: 365 * 24 * time.Hour}
}

// Retention deletes in small batches with pauses between them, over connections of its own.
// Any number of nodes may run one.
type Retention struct {
	cfg  Config
	log  *slog.Logger
	kept atomic.Int64 // the span of history

	conn  *pg.Dedicated
	every time.Duration
	rows  int           // messages that the next batch looks at
	rest  time.Duration // after it, for all nodes
	usage usageKey      // where the walk over the windows of limits is
	small time.Time     // when the smaller tables are next

	bodies *bodies

	stop context.CancelFunc
	loop sync.WaitGroup
}

// New makes a Retention; Start begins its work.
func New(cfg Config) *Retention {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	def := Defaults()
	cfg.History, cfg.Correspondents = cmp.Or(cfg.History, def.History), cmp.Or(cfg.Correspondents, def.Correspondents)
	if cfg.Trouble == nil {
		cfg.Trouble = func(error) bool { return false }
	}
	r := &Retention{cfg: cfg, log: cfg.Log, conn: pg.NewDedicated(cfg.Pool, pg.TuneWork), every: retentionEvery, rows: forgetLeast, rest: forgetShort, bodies: newBodies(cfg)}
	r.SetHistory(cfg.History)
	return r
}

// SetHistory changes how long history is kept, from the next batch on; 0 changes nothing.
func (r *Retention) SetHistory(span time.Duration) {
	if span > 0 {
		r.kept.Store(int64(span))
	}
}

// Start begins the work.
func (r *Retention) Start() {
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.loop.Go(func() { r.cfg.Guard.Keep(ctx, "retention", func() { r.run(ctx) }) })
	r.loop.Go(func() { r.cfg.Guard.Keep(ctx, "retention: bodies", func() { r.bodies.run(ctx) }) })
}

// Close ends the work. A batch that is under way is undone.
func (r *Retention) Close() {
	if r.stop != nil {
		r.stop()
		r.loop.Wait()
	}
}

func (r *Retention) run(ctx context.Context) {
	defer r.conn.Close()
	wait := rand.N(min(r.every, retentionFirst))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			r.conn.Drop()
			r.rows = forgetLeast
			if !r.cfg.Trouble(err) {
				r.log.Warn("retention: cannot delete old history, will retry", "error", err)
			}
		}
		if wait = pause; pause == 0 {
			wait = r.every
			r.conn.Close()
		}
	}
}

// round deletes a batch of history and, if it is time, from the smaller tables. It says
// how long to pause before the next batch, 0 if nothing is left to be done.
func (r *Retention) round(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := r.conn.Get(ctx)
	if err != nil {
		return 0, err
	}
	pause, err := r.history(ctx, conn)
	if now := time.Now(); now.After(r.small) {
		r.small = now.Add(r.every)
		err = errors.Join(err, r.others(ctx, conn))
	}
	return pause, r.conn.End(err)
}

// sqlForget looks at the next $2 messages that are older than $1, the first id that is
// kept, and deletes those that have no recipient left and to which nothing happened
// since $3, with at most $4 attempts. The next batch is $5 later; after the last one,
// $6 later. Attempts without a message, which came when it was deleted, are met too.
const sqlForget = `
with recursive at as materialized (select past, began_at from history_walk where next_at <= clock_timestamp() for update skip locked),
w(id, i) as (
	select least((select m.id from message m where m.id > at.past order by m.id limit 1),
		(select a.message_id from history a where a.message_id > at.past order by a.message_id limit 1)), 1 from at
	union all
	select least((select m.id from message m where m.id > w.id order by m.id limit 1),
		(select a.message_id from history a where a.message_id > w.id order by a.message_id limit 1)), w.i + 1
	from w where w.id < $1 and w.i < $2),
seen as materialized (select id from w where id < $1),
old as materialized (select id from seen where not exists (select from recipient r where r.message_id = seen.id)
	and not exists (select from history a where a.message_id = seen.id and a.at >= $3)),
pick as materialized (select a.message_id, a.n, a.at, a.epoch from old join history a on a.message_id = old.id limit $4),
looked as (select count(*) as n, (select count(*) from pick) = $4 as again from seen),
a as (delete from history a using pick p where a.message_id = p.message_id and a.n = p.n and a.at = p.at and a.epoch = p.epoch),
m as (delete from message m using old, looked where m.id = old.id and not looked.again),
t as (delete from notice t using old, looked where t.message_id = old.id and not looked.again),
step as (update history_walk h set
		past = case when looked.again then at.past
			when looked.n < $2 and at.began_at < clock_timestamp() - interval '1 hour' then '00000000-0000-0000-0000-000000000000'
			else coalesce((select id from seen order by id desc limit 1), at.past) end,
		began_at = case when not looked.again and looked.n < $2 and at.began_at < clock_timestamp() - interval '1 hour'
			then clock_timestamp() else at.began_at end,
		next_at = clock_timestamp() + case when looked.again or looked.n = $2 then $5::interval else $6::interval end
	from at, looked)
select looked.again or looked.n = $2, (select count(*) from old), set_config('synchronous_commit', 'off', true) from at, looked`

// history deletes a batch of history, unless another node does or has done so just now.
func (r *Retention) history(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	var now time.Time
	if err := conn.QueryRow(ctx, `select now()`).Scan(&now); err != nil {
		return 0, fmt.Errorf("forget history: %w", err)
	}
	before := now.Add(-time.Duration(r.kept.Load()))
	begin := time.Now()
	var more bool
	var gone int
	var unused *string
	rest := r.rest
	err := conn.QueryRow(ctx, sqlForget, queue.FirstID(before), r.rows, before, forgetAttempts, rest, r.every).Scan(&more, &gone, &unused)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil // another node is at it, or it is not yet time
	}
	if err != nil {
		return 0, fmt.Errorf("forget history: %w", err)
	}
	if gone > 0 {
		r.log.Debug("retention: deleted history", "messages", gone, "before", before)
	}
	if !more {
		return 0, nil
	}
	r.pace(time.Since(begin))
	return max(rest, r.rest), nil
}

// pace sets the size of the next batch and the pause after it by what the last one took.
func (r *Retention) pace(took time.Duration) {
	switch {
	case took < forgetShort:
		r.rows = min(2*r.rows, forgetMost)
	case took > forgetLong:
		r.rows = max(r.rows/2, forgetLeast)
	}
	r.rest = max(forgetRest*took, forgetShort)
}

// sqlForgetNodes deletes dead epochs that no row names any more.
const sqlForgetNodes = `
delete from node where reaped_at < clock_timestamp() - interval '` + epochMemory + `'
	and not exists (select from recipient r where r.owner = node.epoch)`

// sqlForgetHolds ends the holds of credentials that hold nothing: a credential that was
// revoked sends no more, and of what it had sent nothing is held or may come back to be
// held. Holds of users stay, for users go on.
const sqlForgetHolds = `
delete from hold h where h.credential_id <> 0 and h.made_at < clock_timestamp() - interval '2 minutes'
	and not exists (select from recipient r join message m on m.id = r.message_id
		where r.held_at is not null and r.user_id = h.user_id and m.credential_id = h.credential_id)
	and not exists (select from recipient r join message m on m.id = r.message_id
		where r.owner is not null and m.user_id = h.user_id and m.credential_id = h.credential_id)`

// sqlForgetActivity deletes at most $1 hours that anomaly detection no longer reads.
const sqlForgetActivity = `
delete from activity where (user_id, hour) in (
	select user_id, hour from activity where hour < now() - interval '14 days' order by hour limit $1 for update skip locked)`

// sqlForgetRecipients deletes at most $1 addresses to which their users have not written
// for $2. That they did is written down once a month.
const sqlForgetRecipients = `
delete from correspondent where (user_id, recipient) in (
	select user_id, recipient from correspondent where seen_on < current_date - interval '30 days' - $2::interval
	order by seen_on limit $1 for update skip locked)`

// others deletes from the tables that are small, or seldom have something to be deleted.
func (r *Retention) others(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{sqlForgetNodes, sqlForgetHolds} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("forget nodes and holds: %w", err)
		}
	}
	if err := r.usages(ctx, conn); err != nil {
		return err
	}
	if err := forget(ctx, conn, sqlForgetActivity, forgetRows); err != nil {
		return fmt.Errorf("forget activity: %w", err)
	}
	if err := forget(ctx, conn, sqlForgetRecipients, forgetRows, r.cfg.Correspondents); err != nil {
		return fmt.Errorf("forget correspondents: %w", err)
	}
	return nil
}

// forget runs a statement, whose first parameter is the most that it deletes, until it
// finds less, or often enough for this round.
func forget(ctx context.Context, conn *pgx.Conn, sql string, rows int, args ...any) error {
	for range forgetTurns {
		tag, err := conn.Exec(ctx, sql, append([]any{rows}, args...)...)
		if err != nil || tag.RowsAffected() < int64(rows) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(forgetShort):
		}
	}
	return nil
}

// usageKey is the key of a row of usage_window.
type usageKey struct {
	Scope, Subject, Kind string
	Window               int32
}

// sqlForgetUsage looks at the next $5 windows of limits after a key, deletes those in
// which nothing counts any more, and returns the last key. (An index that finds them
// would be written with each charge.)
const sqlForgetUsage = `
with looked as materialized (select scope, subject, kind, window_s from usage_window
	where (scope, subject, kind, window_s) > ($1, $2, $3, $4) order by scope, subject, kind, window_s limit $5),
gone as (delete from usage_window where (scope, subject, kind, window_s) in (
	select x.scope, x.subject, x.kind, x.window_s from looked l
		join usage_window x on x.scope = l.scope and x.subject = l.subject and x.kind = l.kind and x.window_s = l.window_s
	where coalesce(x.at[cardinality(x.at)], 0) < floor(extract(epoch from clock_timestamp()) * 60 / x.window_s)::bigint - 120
	for update of x skip locked))
select scope, subject, kind, window_s from looked order by scope desc, subject desc, kind desc, window_s desc limit 1`

// usages walks on over the windows of limits; at the end it begins anew.
func (r *Retention) usages(ctx context.Context, conn *pgx.Conn) error {
	at := r.usage
	r.usage = usageKey{}
	err := conn.QueryRow(ctx, sqlForgetUsage, at.Scope, at.Subject, at.Kind, at.Window, forgetRows).
		Scan(&r.usage.Scope, &r.usage.Subject, &r.usage.Kind, &r.usage.Window)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("forget usage: %w", err)
	}
	return nil
}
