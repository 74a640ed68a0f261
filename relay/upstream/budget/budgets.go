package budget

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"postern/internal/boot"
	"postern/internal/pg"
	"postern/policy/quota"
)

const (
	patience      = 3 * time.Second  // that a message waits in its connection, rather than in the queue
	silenceWait   = 10 * time.Second // of a message while the database does not answer
	changeWait    = 2 * time.Second  // until this node has read a changed setting (route.TableAge)
	sessionsAgain = time.Second / 5  // until more are asked for
	sessionWait   = 10 * time.Second // of a message that gets no session
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
	// Changed says that the budget of an upstream is another one: the mail that waits for it is due.
	Changed func(upstream string)
	Clock   interface{ Now() time.Duration } // nil: boot.Clock
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
	return &Budgets{cfg: cfg, kick: make(chan struct{}, 1), upstreams: map[string]*account{}}
}

// Ask is a message for an upstream.
type Ask struct {
	Upstream   string
	Setting    string // as Parse reads it
	Recipients int
	Again      bool // it had its turn before, so it goes before what had none
}

// Wait is why a message is not to be sent now, in words for its sender, and for how long.
type Wait struct {
	Why string
	In  time.Duration
}

// account is the budget of an upstream, as this node knows it.
type account struct {
	name, setting string
	limits        []*portion // with a window
	sessions      *sessions  // nil: as many as one likes
	stale         bool       // the setting is not the upstream's any more
	nodes         int64      // with mail that waits, at least 1
	end           moment     // of the lines: when the last that waits has its turn
	seeded        bool       // end knows what waits since before the start of this process
	answered      chan struct{}
	at            time.Duration // the last answer, by our clock
}

// portion is what this node holds of a limit.
type portion struct {
	Limit
	held  int64 // free to be spent until the lease ends
	busy  int64 // in transactions
	spent int64 // to be reported
	over  int64 // of spent, what ended after the lease

	serial int64
	until  time.Duration // by our clock
	span   time.Duration // of the lease

	need  int64         // the least that a message waits here for
	asked int64         // all that they do
	used  int64         // since the last answer
	tryAt time.Duration // need is not asked for before

	forecast *forecast // nil: never answered
	lines    [2]line   // of what has its first turn to come, and of what had it
}

func (p *portion) amount(a *Ask) int64 {
	if p.Kind == quota.Recipients {
		return int64(a.Recipients)
	}
	return 1
}

// account finds the account with the setting of a; nil if nothing is limited. mu is held.
func (b *Budgets) account(a *Ask) *account {
	u := b.upstreams[a.Upstream]
	if u != nil && u.setting == a.Setting {
		return u
	}
	limits, err := Parse(a.Setting)
	if err != nil {
		b.cfg.Log.Error("the budget of an upstream cannot be read, so it is none", "upstream", a.Upstream, "error", err)
	}
	// Mail that waited for a former setting is due, and has no turn.
	is := &account{name: a.Upstream, setting: a.Setting, nodes: 1, seeded: u != nil, answered: make(chan struct{})}
	for _, l := range limits {
		if l.Kind == quota.Sessions {
			if is.sessions = new(sessions); u != nil && u.sessions != nil {
				is.sessions = u.sessions
			}
			is.sessions.Limit = l
			continue
		}
		p := &portion{}
		if u != nil {
			for _, was := range u.limits {
				if was.sameCount(l) {
					p = was
				}
			}
		}
		p.Limit, p.forecast, p.lines = l, nil, [2]line{}
		is.limits = append(is.limits, p)
	}
	if u != nil {
		close(u.answered)     // those that wait ask anew
		b.cfg.Changed(u.name) // this node made mail wait by the former setting until now
	}
	b.upstreams[a.Upstream] = is
	return is
}

// moment is now by the database's clock. mu is held.
func (b *Budgets) moment() moment { return b.cfg.Clock.Now() + b.offset }

// Take counts a message that is about to be sent. It waits a few seconds for a portion at most.
// done is to be called when the transaction has ended; it is nil if the message has to wait.
func (b *Budgets) Take(ctx context.Context, a Ask) (done func(), wait *Wait) {
	if a.Setting == "" {
		return func() {}, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for patient := true; ; {
		b.mu.Lock()
		u := b.account(&a)
		done, wait = b.take(u, &a), nil
		if done == nil {
			wait = b.turn(u, &a, 0, patient)
		}
		if done == nil && wait == nil {
			u.want(&a)
		}
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
			return nil, &Wait{"waits for the budget of upstream " + a.Upstream, 0}
		}
	}
}

// take spends what is held, if it is enough. mu is held.
func (b *Budgets) take(u *account, a *Ask) (done func()) {
	if u.stale || !a.Again && u.end > b.moment() {
		return nil
	}
	now := b.cfg.Clock.Now()
	for _, p := range u.limits {
		if now >= p.until || p.held < p.amount(a) {
			return nil
		}
	}
	for _, p := range u.limits {
		n := p.amount(a)
		p.held, p.busy, p.used = p.held-n, p.busy+n, p.used+n
		if p.low() {
			b.wake()
		}
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range u.limits {
			n := p.amount(a)
			p.busy, p.spent = p.busy-n, p.spent+n
			if b.cfg.Clock.Now() >= p.until {
				p.over += n
			}
		}
	}
}

// low reports that the next portion is better asked for now.
func (p *portion) low() bool { return p.used > 0 && p.held < p.used }

// want notes what a message waits for. mu is held.
func (u *account) want(a *Ask) {
	for _, p := range u.limits {
		n := p.amount(a)
		p.asked += n
		if p.need == 0 || n < p.need {
			p.need = n
		}
	}
}

// Behind gives a message its turn if its upstream's budget is spent, or will be by the others
// ahead of it at this node; nil if it may be tried. It does not wait.
func (b *Budgets) Behind(a Ask, ahead int) *Wait {
	if a.Setting == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.account(&a)
	if u.stale {
		return nil
	}
	return b.turn(u, &a, int64(ahead), true)
}

// turn is when a message has its turn, nil if that is soon, or not known. mu is held.
func (b *Budgets) turn(u *account, a *Ask, ahead int64, patient bool) *Wait {
	if u.stale {
		return &Wait{"waits for the budget of upstream " + u.name + ": it was changed", changeWait}
	}
	now := b.moment()
	late := !a.Again && u.end > now || !patient
	for _, p := range u.limits {
		if p.forecast == nil {
			if patient {
				return nil
			}
			return &Wait{"waits for the budget of upstream " + u.name + ": the database does not answer", silenceWait}
		}
		if lacks := ahead + p.amount(a) - p.free(b.cfg.Clock.Now()); lacks > 0 && p.forecast.when(lacks) > now+patience {
			late = true
		}
	}
	if !late || len(u.limits) == 0 {
		return nil
	}
	which := 0
	if a.Again {
		which = 1
	}
	var at moment
	var of *portion
	for _, p := range u.limits {
		if !a.Again && p.lines[1].end > p.lines[0].end {
			p.lines[0] = p.lines[1] // behind all
		}
		if t := p.lines[which].join(p.forecast, p.amount(a)*u.nodes, ahead*u.nodes); of == nil || t > at {
			at, of = t, p
		}
	}
	u.end = max(u.end, at)
	until := time.UnixMicro(at.Microseconds()).UTC()
	return &Wait{
		"waits for the budget of upstream " + u.name + ": " + of.String() + " until " + until.Format(time.DateTime) + " UTC",
		max(at-now, shortestWait),
	}
}

func (p *portion) free(now time.Duration) int64 {
	if now >= p.until {
		return 0
	}
	return p.held
}

func (b *Budgets) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}
