package submission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"postern/auth"
)

const (
	maxLookups    = 4                      // concurrently: the pool for logins is small, and logins go on
	lookupTimeout = 5 * time.Second        // of one
	lookupRetry   = 500 * time.Millisecond // after trouble
)

// access is the subject of one lookup: sessions of a user by a credential from an address.
type access struct {
	user, credential int64
	peer             netip.Addr
}

// group is the sessions of one access. At most one lookup is under way for it, so
// that answers are applied in the order in which they were asked for.
type group struct {
	access
	expiry   *time.Timer // nil: the credential does not end by itself
	sessions map[*session]struct{}
	due      bool // a lookup is wanted that has not begun
	asking   bool // one is under way
}

// logins are the sessions that have authenticated. They are checked again in goroutines that
// live while there is something to check; the sessions only receive the result.
type logins struct {
	current Current // nil: sessions keep what AUTH gave them
	log     *slog.Logger
	panics  *atomic.Int64
	ctx     context.Context // ends when Shutdown has no more patience
	running sync.WaitGroup  // lookups

	mu       sync.Mutex
	byUser   map[int64]map[access]*group
	line     []*group // due, in order
	later    []*group // due, but there was trouble
	busy     int      // goroutines
	rechecks uint64   // calls of recheck so far
	trouble  bool     // the last lookup failed
}

func newLogins(s *Server) *logins {
	return &logins{
		current: s.cfg.Current, log: s.log, panics: &s.counts.panics, ctx: s.cutting,
		byUser: make(map[int64]map[access]*group),
	}
}

// Recheck checks the live sessions of some users, or all, again: a session whose credential is
// no longer valid ends with 421 4.7.0, the others go on under the current patterns and
// limits. It returns immediately. The caches of authentication must have forgotten these
// users before.
func (s *Server) Recheck(users []int64, all bool) { s.logins.recheck(users, all) }

func (l *logins) recheck(users []int64, all bool) {
	if l.current == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rechecks++
	if all {
		for _, groups := range l.byUser {
			l.wantAll(groups)
		}
		return
	}
	for _, user := range users {
		l.wantAll(l.byUser[user])
	}
}

// mark is the moment before AUTH looks at an account, for enter.
func (l *logins) mark() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rechecks
}

// enter adds a session that has authenticated. If the account has changed since AUTH
// looked at it, the recheck may have missed the session: it is then checked immediately.
func (l *logins) enter(x *session, a access, mark uint64, expires time.Time) {
	if l.current == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	groups := l.byUser[a.user]
	if groups == nil {
		groups = make(map[access]*group, 1)
		l.byUser[a.user] = groups
	}
	g := groups[a]
	if g == nil {
		g = &group{access: a, sessions: make(map[*session]struct{}, 1)}
		if !expires.IsZero() {
			g.expiry = time.AfterFunc(time.Until(expires)+time.Millisecond, func() { l.expired(g) })
		}
		groups[a] = g
	}
	g.sessions[x] = struct{}{}
	x.group = g
	if mark != l.rechecks {
		l.want(g)
	}
}

// expired checks the sessions of a credential when it ends by itself.
func (l *logins) expired(g *group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(g.sessions) > 0 {
		l.want(g)
	}
}

// leave removes a session at its end.
func (l *logins) leave(x *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := x.group
	if g == nil {
		return
	}
	delete(g.sessions, x)
	if len(g.sessions) > 0 {
		return
	}
	if g.expiry != nil {
		g.expiry.Stop()
	}
	groups := l.byUser[g.user]
	if delete(groups, g.access); len(groups) == 0 {
		delete(l.byUser, g.user)
	}
}

func (l *logins) wantAll(groups map[access]*group) {
	for _, g := range groups {
		l.want(g)
	}
}

// want asks for a lookup that begins from now on; one under way may have read data that has
// changed since. The group has a session.
func (l *logins) want(g *group) {
	if g.due {
		return
	}
	g.due = true
	if !g.asking {
		l.line = append(l.line, g)
		l.start()
	}
}

// start makes sure that lookups work on the line. A group in it has a session, which Shutdown
// waits for before it waits for the lookups.
func (l *logins) start() {
	if l.busy < maxLookups {
		l.busy++
		l.running.Go(l.work)
	}
}

func (l *logins) work() {
	for {
		g, sessions := l.next()
		if g == nil {
			return
		}
		id, err := l.ask(g.access)
		switch {
		case err == nil:
			for _, x := range sessions {
				x.renewed.Store(&id)
			}
		case errors.Is(err, auth.ErrCredentials):
			for _, x := range sessions {
				x.wire.revoke()
			}
			err = nil
		}
		l.asked(g, err)
	}
}

// next takes a group from the line, with its current sessions: a later one was checked by its
// own AUTH.
func (l *logins) next() (*group, []*session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.line) > 0 {
		g := l.line[0]
		l.line = l.line[1:]
		g.due = false
		if len(g.sessions) == 0 {
			continue
		}
		g.asking = true
		sessions := make([]*session, 0, len(g.sessions))
		for x := range g.sessions {
			sessions = append(sessions, x)
		}
		return g, sessions
	}
	l.line = nil
	l.busy--
	return nil, nil
}

// ask makes the lookup; a panic in it is trouble like any other.
func (l *logins) ask(a access) (id auth.Identity, err error) {
	defer func() {
		if p := recover(); p != nil {
			l.panics.Add(1)
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(l.ctx, lookupTimeout)
	defer cancel()
	return l.current.Current(ctx, a.user, a.credential, a.peer)
}

// asked ends a lookup. After trouble all that is due waits for a moment, so that a
// database in trouble is not asked for each session in turn; the user whose lookup failed is last then.
func (l *logins) asked(g *group, trouble error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g.asking = false
	l.report(trouble)
	if trouble == nil {
		if g.due {
			l.line = append(l.line, g)
		}
		return
	}
	g.due = true
	if len(l.later) == 0 {
		time.AfterFunc(lookupRetry, l.retry)
	}
	l.later = append(append(l.later, l.line...), g)
	l.line = nil
}

// retry puts the groups that still have a session into the line.
func (l *logins) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	later := l.later
	l.later = nil
	for _, g := range later {
		if g.due = false; len(g.sessions) > 0 {
			l.want(g)
		}
	}
}

// report logs trouble with lookups when it begins and when it ends.
func (l *logins) report(trouble error) {
	switch was := l.trouble; {
	case trouble != nil && !was && l.ctx.Err() == nil:
		l.log.Error("cannot recheck sessions after a change; they continue, will retry", "error", trouble)
	case trouble == nil && was:
		l.log.Info("rechecks of sessions work again")
	}
	l.trouble = trouble != nil
}
