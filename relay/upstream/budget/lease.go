package budget

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/policy/quota"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlLease = texts.Bind("lease", "epoch", "upstream", "setting", "kind", "window", "zone", "most", "from", "back", "spent", "keep", "need", "wants")
	sqlUsage = texts.Bind("usage", "upstream", "kind", "window", "zone")
	sqlVisit = texts.Bind("visit", "most")
	sqlZone  = texts.Bind("zone", "zone")
)

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// Run asks the database for portions, and reports what was spent, until ctx ends; then it gives
// back what is left.
func (b *Budgets) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx = context.WithoutCancel(ctx)
			_ = b.call(ctx, b.request(true)) // else it counts as spent
			return
		case <-b.kick:
		case <-timer.C:
		}
		pause := pace
		if err := b.call(ctx, b.request(false)); err != nil || b.cfg.Epoch() == 0 {
			pause = retry
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			continue
		case <-timer.C:
		}
		timer.Reset(b.idle())
	}
}

// idle is how long nothing has to be asked unless somebody wants something.
func (b *Budgets) idle() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := never
	for _, u := range b.upstreams {
		next = min(next, b.due(u))
	}
	return max(next-b.cfg.Clock.Now(), 0)
}

// due is when the database is to be asked next about an upstream, by our clock. mu is held.
func (b *Budgets) due(u *account) time.Duration {
	if u.stale {
		return never
	}
	return max(b.dueAt(u), u.badUntil)
}

func (b *Budgets) dueAt(u *account) time.Duration {
	at := never
	if u.began > 0 || u.marked || u.end > b.moment() {
		at = u.counted + waitersAnswer
	}
	for p := range u.all {
		if p.need > 0 {
			at = min(at, p.tryAt)
		}
		switch {
		case p.low(), p.Window == 0 && p.busy > 0 && u.epoch != b.cfg.Epoch():
			return 0
		case p.Window == 0 && p.held > 0:
			at = min(at, u.at+time.Second)
		case p.Window > 0 && p.spent > 0:
			at = min(at, u.at+max(p.span/4, retry/4))
		}
		if p.Window > 0 && p.held+p.busy > 0 {
			at = min(at, max(p.until-p.span/2, u.at+pace))
		}
	}
	return at
}

// request is one statement about all limits of the upstreams that are due.
type request struct {
	epoch int64
	sent  time.Duration // by our clock
	of    []*account
	rows  []row
}

// row is about one limit, or about what waits.
type row struct {
	u *account
	p *portion // nil: what waits
	Limit
	spent, keep, need, wants int64
	lacks                    int64 // that a message waits for, with what is held
}

// request collects what is due, or all for a last time. Units that it does not keep are out of use.
func (b *Budgets) request(last bool) *request {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &request{epoch: b.cfg.Epoch(), sent: b.cfg.Clock.Now()}
	if r.epoch == 0 {
		return r
	}
	for _, u := range b.upstreams {
		if !last && b.due(u) > r.sent {
			continue
		}
		r.of = append(r.of, u)
		u.epoch = r.epoch
		waits := row{u: u, Limit: Limit{Limit: quota.Limit{Kind: waiting}}}
		for p := range u.all {
			w := row{u: u, p: p, Limit: p.Limit, spent: p.spent, wants: p.asked + p.used, lacks: p.need}
			if free := p.free(r.sent); p.Window == 0 || last || p.used == 0 && p.need == 0 {
				p.held = 0
				w.need = p.need
			} else {
				p.held = free
				w.need, w.wants = max(p.need-free, 0), max(w.wants-free, 0)
			}
			if p.Window == 0 {
				if w.wants = p.asked; p.asked > 0 {
					u.began++
				}
			}
			w.keep = p.busy + p.held
			p.used, p.asked, p.need = 0, 0, 0
			r.rows = append(r.rows, w)
		}
		if (u.began > 0 || u.marked) && (r.sent >= u.counted+waitersAnswer || last) { // in equal times at all nodes
			if !last {
				waits.keep = u.began
			}
			r.rows = append(r.rows, waits)
			u.marked, u.began, u.counted = waits.keep > 0, 0, r.sent
		}
	}
	return r
}

// waiting is the kind of what began to wait at a node since its last call.
const waiting quota.Kind = "waiting"

// answer is what the database says of one limit, as the statement has it.
type answer struct {
	Nth             int
	Given, Bucket   int64
	Lease           float64
	Remains, Others int64
	Last            *float64
	Clock           float64
	FreeAt          []float64
	FreeN           []int64
	Durable         string
}

// call asks, and takes the answers over. An upstream whose budget the database cannot reckon, as with
// a time zone that it no longer knows, keeps the others from nothing.
func (b *Budgets) call(ctx context.Context, r *request) (down error) {
	if len(r.rows) == 0 {
		return nil
	}
	answers, err := b.ask(ctx, r)
	if err == nil || len(r.of) == 1 || pg.IsDown(err) {
		return b.settle(r, answers, err)
	}
	for _, u := range r.of {
		part := &request{epoch: r.epoch, sent: r.sent, of: []*account{u}}
		for _, w := range r.rows {
			if w.u == u {
				part.rows = append(part.rows, w)
			}
		}
		down = errors.Join(down, b.call(ctx, part))
	}
	return down
}

// tell logs when the database begins, or ceases, to answer. A call that the end of this node has cut
// off says nothing about it. mu is held.
func (b *Budgets) tell(down error) {
	if errors.Is(down, context.Canceled) {
		return
	}
	if silent := down != nil; silent != b.silent {
		if b.silent = silent; silent {
			b.cfg.Log.Warn("cannot read the budgets of upstreams: mail waits once the leased part is spent", "error", down)
		} else {
			b.cfg.Log.Info("the budgets of upstreams can be read again")
		}
	}
}

// tellBad is tell for one that cannot be reckoned, and is asked about again after a while. mu is held.
func (b *Budgets) tellBad(u *account, err error) {
	switch bad := err != nil; {
	case bad && !u.bad:
		b.cfg.Log.Error("the budget of an upstream cannot be computed: its mail waits", "upstream", u.name, "budget", u.setting, "error", err)
	case u.bad && !bad:
		b.cfg.Log.Info("the budget of an upstream can be computed again", "upstream", u.name)
	}
	if u.bad = err != nil; u.bad {
		u.badUntil = b.cfg.Clock.Now() + retry
	}
}

// settle takes over what the database said, or that it did not. It returns an error that is the
// database's own.
func (b *Budgets) settle(r *request, answers []answer, err error) (down error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil || pg.IsDown(err) {
		down = err
		b.tell(err)
	}
	for _, u := range r.of {
		u.at = r.sent
	}
	known := map[*account]bool{}
	for i := range r.rows {
		if p := r.rows[i].p; err != nil && p != nil { // units that nobody knows to be moved all count
			p.held, p.n = 0, 0
			known[r.rows[i].u] = true
		}
	}
	for i := range answers {
		w := &r.rows[answers[i].Nth-1]
		known[w.u] = true
		b.receive(r, w, &answers[i])
	}
	for _, u := range r.of {
		if down == nil {
			b.tellBad(u, err)
		}
		u.stale = u.stale || !known[u]
		if b.upstreams[u.name] == u {
			close(u.answered)
			u.answered = make(chan struct{})
		}
	}
	return down
}

// receive takes over the answer about one limit. mu is held.
func (b *Budgets) receive(r *request, w *row, a *answer) {
	now, u, p := b.cfg.Clock.Now(), w.u, w.p
	clock := moment(a.Clock * float64(time.Second))
	b.offset = clock - now
	if p == nil {
		u.share = 1 + float64(a.Others)/float64(max(w.keep, 1))
		return
	}
	p.spent -= w.spent
	p.held += a.Given
	p.bucket, p.n, p.span, p.tryAt = a.Bucket, w.keep+a.Given, time.Duration(a.Lease*float64(time.Second)), 0
	if p.Window == 0 {
		p.until, p.tryAt = never, now+sessionsAgain
		return
	}
	p.until = r.sent + p.span
	p.forecast = newForecast(clock, a.Remains, a.FreeAt, a.FreeN, p.Limit)
	b.lastTurn(u, p, a.Last)
	if lacks := w.lacks - p.held; lacks > 0 {
		wait := line{}.join(p.forecast, float64(lacks)).end - clock
		p.tryAt = now + min(max(wait, 2*pace), retry)
	}
}

// lastTurn takes over when the last that waits in the table has its turn. Those that joined the
// line since the last call may not be there yet. mu is held.
func (b *Budgets) lastTurn(u *account, p *portion, last *float64) {
	end := moment(0)
	if last != nil {
		end = p.forecast.before(moment(*last * float64(time.Second)))
	}
	if u.began > 0 || u.marked {
		end = max(end, p.lines[0].end)
	}
	if end != p.lines[0].end {
		p.lines[0] = line{end: end}
	}
	u.end = 0
	for _, p := range u.limits {
		if end := max(p.lines[0].end, p.lines[1].end); end >= u.end {
			u.end, u.last = end, p.String()
		}
	}
}

func (b *Budgets) ask(ctx context.Context, r *request) ([]answer, error) {
	var upstream, setting, kind, zone []string
	var window []int32
	var most, from, back, spent, keep, need, wants []int64
	for i := range r.rows {
		w := &r.rows[i]
		upstream, setting = append(upstream, w.u.name), append(setting, w.u.setting)
		kind, zone, window = append(kind, string(w.Kind)), append(zone, w.Zone), append(window, int32(w.Window/time.Second))
		was := w.p
		if was == nil {
			was = &portion{}
		}
		most, from, back = append(most, w.Max), append(from, was.bucket), append(back, was.n)
		spent, keep, need, wants = append(spent, w.spent), append(keep, w.keep), append(need, w.need), append(wants, w.wants)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := b.cfg.DB.Query(ctx, sqlLease, r.epoch, upstream, setting, kind, window, zone, most, from, back, spent, keep, need, wants)
	if err != nil {
		return nil, fmt.Errorf("lease budgets: %w", err)
	}
	answers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[answer])
	if err != nil {
		return nil, fmt.Errorf("lease budgets: %w", err)
	}
	return answers, nil
}
