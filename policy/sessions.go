package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/relay/smtp"
)

const (
	sessionsTimeout = 5 * time.Second  // of a call of the database
	sessionsRetry   = time.Second      // after trouble
	sessionsRelist  = 30 * time.Second // between comparisons with the database
)

// Sessions bounds the sessions that users have at once, over all nodes. Only sessions
// under such a limit are counted, from their start on, so that they alone cost a
// statement.
//
// Each has a row under this node's epoch, which counts while the epoch lives: the
// sessions of a node that died are free again when it is found dead. Rows are not
// durable (synchronous_commit off): what a database that crashed has forgotten, each
// node lists again.
type Sessions struct {
	pool  *pgxpool.Pool
	epoch func() int64
	log   *slog.Logger
	calls time.Duration // what a call of the database may take
	kick  chan struct{} // there is something to delete

	mu   sync.Mutex
	open map[int64]openSession // by the row's id
	gone []int64               // rows to delete
	used bool                  // ever: there may be rows of ours
	seen bool                  // rows that others have left were looked for
}

type openSession struct{ user, credential int64 }

// NewSessions returns Sessions that count in the database of pool. epoch returns this
// node's epoch, 0 while it has none; it costs nothing. Run has to be running.
func NewSessions(pool *pgxpool.Pool, epoch func() int64, log *slog.Logger) *Sessions {
	return &Sessions{pool: pool, epoch: epoch, log: log, calls: sessionsTimeout, kick: make(chan struct{}, 1), open: make(map[int64]openSession)}
}

// lockSessions is the first key of the advisory locks of users whose sessions are
// counted; the second is the low part of the user's id.
const lockSessions = 0x73657373 // "sess"

// sqlLockSessions goes before a statement in its transaction: statements see what is
// committed when they begin, so the count has to begin after the lock. An advisory lock
// of a transaction ends with it, so it works behind poolers; a lock of the row in
// app_user would write to it, and wait for admins who change the user.
const sqlLockSessions = `
select set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock($1, ($2::bigint % 2147483648)::int)`

// sqlEnterSession adds a session of user $1 by credential $2 under epoch $3 unless $4 of
// the user or $5 of the credential are open, and deletes those of the user whose nodes
// died. The id is null when the session was not added.
const sqlEnterSession = `
with mine as materialized (
	select s.id, s.credential_id, exists (select from node n where n.epoch = s.epoch and n.reaped_at is null) as alive
	from live_session s where s.user_id = $1),
swept as (
	delete from live_session where id in (
		select s.id from live_session s join mine m on m.id = s.id where not m.alive for update of s skip locked)),
counted as (
	select count(*) filter (where alive) as by_user, count(*) filter (where alive and credential_id = $2) as by_credential
	from mine),
entered as (
	insert into live_session (epoch, user_id, credential_id)
	select $3, $1, $2 from counted
	where by_user < $4 and by_credential < $5 and exists (select from node where epoch = $3 and reaped_at is null)
	returning id)
select by_user, by_credential, (select id from entered) from counted`

var errNoEpoch = errors.New("this node has no epoch")

// Enter counts a session of id in, or says by a Verdict with a temporary reply why not.
// leave counts it out; it does not wait and is called once. The error is the database's
// and says nothing about the user.
func (s *Sessions) Enter(ctx context.Context, id auth.Identity) (leave func(), v Verdict, err error) {
	user, credential := sessionLimits(id)
	if user == nil && credential == nil {
		return func() {}, allow(""), nil
	}
	epoch := s.epoch()
	if epoch == 0 {
		return nil, Verdict{}, errNoEpoch
	}
	s.mu.Lock()
	s.used = true
	s.mu.Unlock()
	var byUser, byCredential int64
	var row *int64
	// A batch is one transaction and one round trip.
	batch := &pgx.Batch{}
	batch.Queue(sqlLockSessions, lockSessions, id.UserID)
	batch.Queue(sqlEnterSession, id.UserID, id.CredentialID, epoch, most(user), most(credential)).QueryRow(func(r pgx.Row) error {
		return r.Scan(&byUser, &byCredential, &row)
	})
	if err := s.send(ctx, batch); err != nil {
		return nil, Verdict{}, fmt.Errorf("enter session: %w", err)
	}
	v = OneMore(id, byUser, byCredential)
	switch {
	case row != nil:
		return s.opened(*row, openSession{id.UserID, id.CredentialID}), allow(v.Rule), nil
	case !v.Allowed:
		return nil, v, nil
	}
	return nil, Verdict{}, fmt.Errorf("enter session: epoch %d is dead", epoch)
}

// OneMore judges one more session of id when so many are open, of the user and by the
// credential.
func OneMore(id auth.Identity, byUser, byCredential int64) Verdict {
	user, credential := sessionLimits(id)
	switch {
	case user == nil && credential == nil:
		return allow("")
	case user != nil && byUser >= user.Max:
		return tooManySessions(*user, byUser)
	case credential != nil && byCredential >= credential.Max:
		return tooManySessions(*credential, byCredential)
	}
	return allow(sessionsRule(user, credential))
}

// sessionLimits are the tightest limits on the sessions of the user and of the
// credential, nil for none.
func sessionLimits(id auth.Identity) (user, credential *auth.Limit) {
	for i := range id.Limits {
		l := &id.Limits[i]
		tightest := &user
		if l.Source == auth.FromCredential {
			tightest = &credential
		}
		if l.Kind == auth.LimitSessions && (*tightest == nil || l.Max < (*tightest).Max) {
			*tightest = l
		}
	}
	return user, credential
}

func most(l *auth.Limit) int64 {
	if l == nil {
		return math.MaxInt64
	}
	return l.Max
}

func sessionsRule(user, credential *auth.Limit) string {
	if user == nil || credential != nil && credential.Max < user.Max {
		user = credential
	}
	return "sessions " + string(user.Source)
}

func tooManySessions(l auth.Limit, used int64) Verdict {
	by := "for you"
	if l.Source == auth.FromCredential {
		by = "by this credential"
	}
	// RFC 4954 section 6 has 454 4.7.0 for what is no verdict about the password.
	return refuse("sessions "+string(l.Source), smtp.Temporary(454, 7, 0,
		fmt.Sprintf("Too many sessions %s: %d are open, at most %d are allowed; close one or try again later", by, used, l.Max)))
}

func (s *Sessions) opened(row int64, o openSession) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[row] = o
	return func() { s.closed(row) }
}

func (s *Sessions) closed(row int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, row)
	s.gone = append(s.gone, row)
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Run deletes the rows of sessions that ended, and now and then compares what is in the
// database with what is open here, until ctx ends; then it deletes a last time. Trouble
// with the database is met by trying again, and logged when it begins and when it ends.
func (s *Sessions) Run(ctx context.Context) {
	tick := time.NewTicker(sessionsRetry)
	defer tick.Stop()
	listed, under := time.Now(), int64(0)
	trouble := false
	heard := func(err error) bool {
		if err != nil && !trouble && ctx.Err() == nil {
			s.log.Warn("sessions that ended may still count", "error", err)
		} else if err == nil && trouble {
			s.log.Info("sessions that ended count no more")
		}
		trouble = err != nil
		return err == nil
	}
	for {
		select {
		case <-ctx.Done():
			_ = s.sweep(context.WithoutCancel(ctx)) // else they end with the epoch
			return
		case <-s.kick:
		case <-tick.C:
		}
		if !heard(s.sweep(ctx)) {
			continue // again with the next tick
		}
		if epoch := s.epoch(); epoch != 0 && (epoch != under || time.Since(listed) >= sessionsRelist) {
			if heard(s.relist(ctx, epoch)) {
				listed, under = time.Now(), epoch
			}
		}
	}
}

const sqlSessionsNotDurable = `select set_config('synchronous_commit', 'off', true)`

const sqlLeaveSessions = `delete from live_session where id = any($1::bigint[])`

// sweep deletes the rows of sessions that ended. To delete one twice does no harm.
func (s *Sessions) sweep(ctx context.Context) error {
	s.mu.Lock()
	gone := s.gone
	s.gone = nil
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(sqlSessionsNotDurable)
	batch.Queue(sqlLeaveSessions, gone)
	err := s.send(ctx, batch)
	if err != nil {
		s.mu.Lock()
		s.gone = append(s.gone, gone...)
		s.mu.Unlock()
	}
	return err
}

// sqlListSessions makes the sessions $1 count under epoch $2: those whose row is under
// an epoch that this node has lost, or was deleted with it.
const sqlListSessions = `
insert into live_session (id, epoch, user_id, credential_id) overriding system value
select o.id, $2, o.user_id, o.credential_id from unnest($1::bigint[], $3::bigint[], $4::bigint[]) o(id, user_id, credential_id)
where not exists (select from live_session s where s.id = o.id and s.epoch = $2)
on conflict (id) do update set epoch = excluded.epoch`

// sqlUnlistSessions deletes what must not count: under epoch $2, rows that are none of
// $1, whose delete or whose reply to Enter was lost (younger ones may be on their way);
// and under dead epochs.
const sqlUnlistSessions = `
delete from live_session where id in (
	select s.id from live_session s
	where case when s.epoch = $2 then s.opened_at < now() - interval '1 minute' and s.id not in (select unnest($1::bigint[]))
		else not exists (select from node n where n.epoch = s.epoch and n.reaped_at is null) end
	for update skip locked)`

// relist compares the rows of this node with what is open, if there ever was any; the
// first time in any case, for limits that are no more may have left rows.
func (s *Sessions) relist(ctx context.Context, epoch int64) error {
	s.mu.Lock()
	ids := make([]int64, 0, len(s.open))
	users, credentials := make([]int64, 0, len(s.open)), make([]int64, 0, len(s.open))
	for row, o := range s.open {
		ids, users, credentials = append(ids, row), append(users, o.user), append(credentials, o.credential)
	}
	needless := s.seen && !s.used
	s.mu.Unlock()
	if needless {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(sqlSessionsNotDurable)
	batch.Queue(sqlListSessions, ids, epoch, users, credentials)
	batch.Queue(sqlUnlistSessions, ids, epoch)
	if err := s.send(ctx, batch); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = true
	return nil
}

func (s *Sessions) send(ctx context.Context, batch *pgx.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, s.calls)
	defer cancel()
	return s.pool.SendBatch(ctx, batch).Close()
}
