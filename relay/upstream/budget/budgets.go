package budget

import (
	"cmp"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"postern/internal/boot"
	"postern/internal/pg"
	"postern/policy/quota"
)

const (
	patience      = 3 * time.Second  // see Config.Patience
	silenceWait   = 10 * time.Second // of a message while the database does not answer
	changeWait    = 2 * time.Second  // until this node has read a changed setting (route.TableAge)
	sessionsAgain = time.Second / 5  // until more are asked for
	sessionWait   = 10 * time.Second // of the first message that gets no session
	sessionSpace  = 25 * time.Millisecond
	shortestWait  = time.Second / 2
	waitersAnswer = 2 * time.Second // how often the database is asked while mail waits
	pace          = 10 * time.Millisecond
	retry         = time.Second // after trouble
	callTime      = 5 * time.Second
)

// Config configures Budgets.
type Config struct {
	DB    pg.DB
	Epoch func() int64 // of this node, 0 while it has none
	Log   *slog.Logger
	Clock interface{ Now() time.Duration } // nil: boot.Clock
	// Patience is how long a message waits in its connection, rather than in the queue: 3 s.
	Patience time.Duration
}

// Budgets are this node's portions of all upstreams' budgets. Run has to be running.
type Budgets struct {
	cfg  Config
	kick chan struct{}

	mu        sync.Mutex
	upstreams map[string]*account
	offset    time.Duration // of the database's clock, which is a moment, from ours
	silent    bool          // the last call had no answer
}

// New makes Budgets that hold nothing.
func New(cfg Config) *Budgets {
	if cfg.Clock == nil {
		cfg.Clock = boot.Clock{}
	}
	cfg.Patience = cmp.Or(cfg.Patience, patience)
	return &Budgets{cfg: cfg, kick: make(chan struct{}, 1), upstreams: map[string]*account{}}
}

// Ask is a message for an upstream.
type Ask struct {
	Upstream   string
	Setting    string // as Parse reads it
	Recipients int
	Again      bool // it had its turn before, so it goes before what had none
}

// Wait is why a message is not to be sent now.
type Wait struct {
	Why string        // in words for its sender: the upstream, and what of its budget is spent
	In  time.Duration // until it may be sent at the earliest; as Turn returns it, until its own turn
	For string        // a way, for Turn; "": it has no turn
}

// A way is one of these before the name of an upstream, as budget_ways in the schema has them.
const (
	forBudget   = "budget "
	forSessions = "sessions "
)

// Ways are those of mail that waits for its turn with an upstream.
func Ways(upstream string) []string { return []string{forBudget + upstream, forSessions + upstream} }

// IsWay reports that mail which waits for a way waits for a budget.
func IsWay(way string) bool {
	return strings.HasPrefix(way, forBudget) || strings.HasPrefix(way, forSessions)
}

// account is the budget of an upstream, as this node knows it.
type account struct {
	name, setting string
	limits        []*portion // with a window
	sessions      []*portion // one, or none: they are not limited
	unread        bool       // the setting is a newer program's, which may have nodes beside this one
	stale         bool       // the upstream has another setting by now
	end           moment     // when the last that waits has its turn
	last          string     // the limit that it waits for
	crowd         moment     // when the last that waits for a session has its turn
	began         int64      // how many began to wait since counted
	counted       time.Duration
	marked        bool    // the database knows that mail waits
	share         float64 // how many began to wait at all nodes, for each at this one; at least 1
	answered      chan struct{}
	at            time.Duration // the last answer, by our clock
	epoch         int64         // of the last call
	bad           bool          // the database cannot reckon it
	badUntil      time.Duration // and is not asked before, by our clock
}

// portion is what this node holds of a limit.
type portion struct {
	Limit
	held  int64 // free to be spent until the lease ends
	busy  int64 // in transactions, or sessions
	spent int64 // since the last answer

	bucket int64 // of the lease, with n units
	n      int64
	until  time.Duration // by our clock; never for sessions
	span   time.Duration // of the lease

	need  int64         // the least that a message waits here for
	asked int64         // all that they do
	used  int64         // since the last call
	tryAt time.Duration // need is not asked for before

	forecast *forecast // nil: never answered, or of sessions
	lines    [2]line   // of what has its first turn to come, and of what had it
}

func (p *portion) amount(a *Ask) int64 {
	if p.Kind == quota.Recipients {
		return int64(a.Recipients)
	}
	return 1
}

// free is what may be spent now.
func (p *portion) free(now time.Duration) int64 {
	if now >= p.until {
		return 0
	}
	return p.held
}

// low reports that the next portion is better asked for now.
func (p *portion) low() bool { return p.Window > 0 && p.used > 0 && p.held < p.used }

// all are the limits with a window, and that of sessions.
func (u *account) all(yield func(*portion) bool) {
	for _, list := range [][]*portion{u.limits, u.sessions} {
		for _, p := range list {
			if !yield(p) {
				return
			}
		}
	}
}

// account finds the account with the setting of a. A changed setting keeps the portions of
// the limits that stay. mu is held.
func (b *Budgets) account(a *Ask) *account {
	u := b.upstreams[a.Upstream]
	if u != nil && u.setting == a.Setting {
		return u
	}
	limits, err := Parse(a.Setting)
	if err != nil {
		b.cfg.Log.Error("the budget of an upstream cannot be read: its mail waits", "upstream", a.Upstream, "error", err)
	}
	is := &account{name: a.Upstream, setting: a.Setting, unread: err != nil, share: 1, answered: make(chan struct{})}
	for _, l := range limits {
		p := &portion{}
		if u != nil {
			for was := range u.all {
				if was.sameCount(l) {
					p = was
				}
			}
		}
		p.Limit, p.forecast, p.lines = l, nil, [2]line{}
		if l.Kind == quota.Sessions {
			is.sessions = append(is.sessions, p)
		} else {
			is.limits = append(is.limits, p)
		}
	}
	if u != nil {
		is.epoch = u.epoch
		close(u.answered) // those that wait ask anew
	}
	b.upstreams[a.Upstream] = is
	return is
}

// moment is now by the database's clock. mu is held.
func (b *Budgets) moment() moment { return b.cfg.Clock.Now() + b.offset }

// Take counts a message that is about to be sent. It waits at most a few seconds for a portion.
// done is to be called when the transaction has ended; it is nil if the message has to wait.
func (b *Budgets) Take(ctx context.Context, a Ask) (done func(), wait *Wait) {
	return b.obtain(ctx, &a, func(u *account) []*portion { return u.limits })
}

// Session counts a connection that is about to be opened, as Take does a message.
func (b *Budgets) Session(ctx context.Context, a Ask) (done func(), wait *Wait) {
	return b.obtain(ctx, &a, func(u *account) []*portion { return u.sessions })
}

func (b *Budgets) obtain(ctx context.Context, a *Ask, of func(*account) []*portion) (done func(), wait *Wait) {
	if a.Setting == "" {
		return func() {}, nil
	}
	timer := time.NewTimer(b.cfg.Patience)
	defer timer.Stop()
	for patient := true; ; {
		b.mu.Lock()
		u := b.account(a)
		done, wait = b.try(u, of(u), a, patient)
		answered := u.answered
		b.mu.Unlock()
		if done != nil || wait != nil {
			return done, wait
		}
		b.wake()
		select {
		case <-answered:
		case <-timer.C:
			patient = false
		case <-ctx.Done():
			return nil, &Wait{Why: a.Upstream}
		}
	}
}

// try takes what a message needs, or says why it has to wait; or neither: it waits for an
// answer. mu is held.
func (b *Budgets) try(u *account, of []*portion, a *Ask, patient bool) (done func(), wait *Wait) {
	if done = b.take(u, of, a); done != nil {
		return done, nil
	}
	if wait = b.late(u, of, a, 0, patient); wait != nil {
		return nil, wait
	}
	for _, p := range of {
		n := p.amount(a)
		p.asked += n
		if p.need == 0 || n < p.need {
			p.need = n
		}
	}
	return nil, nil
}

// take spends what is held, if it is enough. mu is held.
func (b *Budgets) take(u *account, of []*portion, a *Ask) (done func()) {
	now := b.cfg.Clock.Now()
	if u.unread {
		return nil
	}
	for _, p := range of {
		switch {
		case u.stale, p.free(now) < p.amount(a), p.Window > 0 && !a.Again && u.end > b.moment(), p.Window == 0 && u.epoch != b.cfg.Epoch():
			return nil
		}
	}
	for _, p := range of {
		n := p.amount(a)
		p.held, p.busy, p.used = p.held-n, p.busy+n, p.used+n
		if p.low() {
			b.wake()
		}
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range of {
			n := p.amount(a)
			if p.busy -= n; p.Window > 0 {
				p.spent += n
			} else {
				p.held += n
			}
		}
		b.wake()
	}
}

// Behind says why a message has to wait: its upstream's budget is spent, or will be by the messages
// ahead of it at this node. nil: it may be tried. Behind returns immediately.
func (b *Budgets) Behind(a Ask, ahead int) *Wait {
	if a.Setting == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.account(&a)
	return b.late(u, u.limits, &a, int64(ahead), true)
}

// late says why a message has to wait, nil if it may be tried within seconds, or if that is
// not known. mu is held.
func (b *Budgets) late(u *account, of []*portion, a *Ask, ahead int64, patient bool) *Wait {
	if u.unread {
		return &Wait{Why: u.name + ": this node cannot read it", In: silenceWait}
	}
	now := b.moment()
	at, limit, spent := now, "", !patient
	if len(of) > 0 && of[0].Window > 0 && !a.Again && u.end > now { // the others go before it
		at, limit, spent = u.end, u.last, true
	}
	for _, p := range of {
		lacks := ahead + p.amount(a) - p.free(b.cfg.Clock.Now())
		switch {
		case u.stale:
			return &Wait{Why: u.name + ": it was changed", In: changeWait}
		case p.Window == 0 && !patient:
			return &Wait{u.name + ": " + p.String() + " over all nodes", sessionWait, forSessions + u.name}
		case p.forecast == nil && !patient:
			return &Wait{Why: u.name + ": the database does not answer", In: silenceWait}
		case p.forecast == nil:
			return nil
		case lacks > 0:
			if end := (line{}).join(p.forecast, float64(lacks)).end; end >= at {
				at, limit = end, p.String()
			}
		}
	}
	if len(of) == 0 || !spent && at <= now+patience {
		return nil
	}
	return &Wait{spentText(u.name, limit, at), max(at-now, shortestWait), forBudget + u.name}
}

// spentText says in words which limit of an upstream is spent, and until when.
func spentText(name, limit string, until moment) string {
	return name + ": " + limit + " until " + time.UnixMicro(until.Microseconds()).UTC().Format(time.DateTime) + " UTC"
}

// Turn gives a turn of its own to a message that waits for a way.
func (b *Budgets) Turn(way string, recipients int, again bool) Wait {
	b.mu.Lock()
	defer b.mu.Unlock()
	kind, name, _ := strings.Cut(way, " ")
	u, now := b.upstreams[name], b.moment()
	if u == nil {
		return Wait{Why: name, In: changeWait}
	}
	u.began++
	if kind+" " == forSessions {
		u.crowd = max(u.crowd+sessionSpace, now+sessionWait)
		return Wait{Why: name + ": all of its sessions are in use", In: u.crowd - now}
	}
	at, limit := now, ""
	for _, p := range u.limits {
		if p.forecast == nil {
			return Wait{Why: name, In: silenceWait}
		}
		first, had := &p.lines[0], &p.lines[1]
		stands, n := had, float64(p.amount(&Ask{Recipients: recipients}))
		if !again {
			n *= u.share
			if stands = first; had.end > first.end {
				*first = *had // behind all
			}
		}
		*stands = stands.join(p.forecast, n)
		if stands.end >= at {
			at, limit = stands.end, p.String()
		}
	}
	if at >= u.end {
		u.end, u.last = at, limit
	}
	return Wait{spentText(name, limit, at), max(at-now, shortestWait), way}
}

func (b *Budgets) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}
