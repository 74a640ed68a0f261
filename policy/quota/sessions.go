package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	callTimeout    = 5 * time.Second  // of a call of the database
	sessionsRetry  = time.Second      // after trouble
	sessionsRelist = 30 * time.Second // between comparisons with the database
)

// Counter bounds the concurrent sessions of users, across all nodes. Only sessions under such
// a limit are counted, from their start on, so that they alone cost a statement.
//
// Each has a row under this node's epoch, which counts while the epoch lives: the
// sessions of a node that died are free again when it is found dead. Rows are not
// durable (synchronous_commit off): what a database that crashed has forgotten, each
// node lists again.
type Counter struct {
	pool  *pgxpool.Pool
	epoch func() int64
	log   *slog.Logger
	calls time.Duration // what a call of the database may take
	kick  chan struct{} // there is something to delete

	mu   sync.Mutex
	open map[int64]Session // by the row's id
	gone []int64           // rows to delete
	used bool              // ever: there may be rows of ours
	seen bool              // rows that others have left were looked for
}

// Session is who has a session.
type Session struct {
	User, Credential int64
	Domain           string // of the user's name, "" for none
}

// NewCounter returns a Counter in the database of pool. epoch returns this
// node's epoch, 0 while it has none; it costs nothing. Run has to be running.
func NewCounter(pool *pgxpool.Pool, epoch func() int64, log *slog.Logger) *Counter {
	return &Counter{pool: pool, epoch: epoch, log: log, calls: callTimeout, kick: make(chan struct{}, 1), open: make(map[int64]Session)}
}

// The first keys of the advisory locks of users, and of domains with a limit, whose sessions
// are counted; the second is the low part of the user's id, or a hash of the domain.
const (
	lockSessions = 0x73657373 // "sess"
	lockDomain   = 0x73657364 // "sesd"
)

var (
	sqlNotDurable     = texts.Bind("not_durable")
	sqlLockSessions   = texts.Bind("lock_sessions", "lock_domain", "limited_domain", "lock", "user_id")
	sqlEnterSession   = texts.Bind("enter_session", "epoch", "user_id", "credential_id", "domain", "limited_domain", "most_of_user", "most_of_credential", "most_of_domain")
	sqlLeaveSessions  = texts.Bind("leave_sessions", "id")
	sqlListSessions   = texts.Bind("list_sessions", "epoch", "id", "user_id", "credential_id", "domain")
	sqlUnlistSessions = texts.Bind("unlist_sessions", "id", "epoch")
)

var errNoEpoch = errors.New("this node has no epoch")

// Enter counts a session of who in, or says which of limits it would exceed. leave counts
// it out; it does not wait and is called once. The error is the database's and says nothing
// about the user.
func (s *Counter) Enter(ctx context.Context, who Session, limits []Limit) (leave func(), over *Over, err error) {
	limits = sessionLimits(limits)
	if len(limits) == 0 {
		return func() {}, nil, nil
	}
	epoch := s.epoch()
	if epoch == 0 {
		return nil, nil, errNoEpoch
	}
	s.mu.Lock()
	s.used = true
	s.mu.Unlock()
	limited := ""
	if slices.ContainsFunc(limits, func(l Limit) bool { return l.Scope == Domain }) {
		limited = who.Domain
	}
	var byUser, byCredential, byDomain int64
	var row *int64
	// A batch is one transaction and one round trip.
	batch := &pgx.Batch{}
	batch.Queue(sqlLockSessions, lockDomain, limited, lockSessions, who.User)
	batch.Queue(sqlEnterSession, epoch, who.User, who.Credential, who.Domain, limited,
		most(limits, User), most(limits, Credential), most(limits, Domain)).QueryRow(func(r pgx.Row) error {
		return r.Scan(&byUser, &byCredential, &byDomain, &row)
	})
	if err := s.send(ctx, batch); err != nil {
		return nil, nil, fmt.Errorf("enter session: %w", err)
	}
	if row != nil {
		return s.opened(*row, who), nil, nil
	}
	used := map[Scope]int64{User: byUser, Credential: byCredential, Domain: byDomain}
	if over = oneMore(limits, func(l Limit) int64 { return used[l.counted().scope] }); over != nil {
		return nil, over, nil
	}
	return nil, nil, fmt.Errorf("enter session: epoch %d is dead", epoch)
}

// sessionLimits are the tightest limits on concurrent sessions: of each count one at most.
func sessionLimits(limits []Limit) []Limit {
	return binding(limits, func(k Kind) bool { return k == Sessions })
}

// oneMore returns what one more session would exceed, or nil.
func oneMore(limits []Limit, used func(Limit) int64) *Over {
	for _, l := range limits {
		if n := used(l); n >= l.Max {
			return &Over{Limit: l, Used: n, Amount: 1}
		}
	}
	return nil
}

// most is the limit on the sessions that count together.
func most(limits []Limit, scope Scope) int64 {
	for _, l := range limits {
		if l.counted().scope == scope {
			return l.Max
		}
	}
	return math.MaxInt64
}

func (s *Counter) opened(row int64, o Session) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[row] = o
	return func() { s.closed(row) }
}

func (s *Counter) closed(row int64) {
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
func (s *Counter) Run(ctx context.Context) {
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

// sweep deletes the rows of sessions that ended. To delete one twice does no harm.
func (s *Counter) sweep(ctx context.Context) error {
	s.mu.Lock()
	gone := s.gone
	s.gone = nil
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(sqlNotDurable)
	batch.Queue(sqlLeaveSessions, gone)
	err := s.send(ctx, batch)
	if err != nil {
		s.mu.Lock()
		s.gone = append(s.gone, gone...)
		s.mu.Unlock()
	}
	return err
}

// relist compares the rows of this node with what is open, if there ever was any; the
// first time in any case, for limits that are no more may have left rows.
func (s *Counter) relist(ctx context.Context, epoch int64) error {
	s.mu.Lock()
	var ids, users, credentials []int64
	var domains []string
	for row, o := range s.open {
		ids, users, credentials, domains = append(ids, row), append(users, o.User), append(credentials, o.Credential), append(domains, o.Domain)
	}
	needless := s.seen && !s.used
	s.mu.Unlock()
	if needless {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(sqlNotDurable)
	batch.Queue(sqlListSessions, epoch, ids, users, credentials, domains)
	batch.Queue(sqlUnlistSessions, ids, epoch)
	if err := s.send(ctx, batch); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = true
	return nil
}

func (s *Counter) send(ctx context.Context, batch *pgx.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, s.calls)
	defer cancel()
	return s.pool.SendBatch(ctx, batch).Close()
}
