package budget

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlLease = texts.Bind("lease", "epoch", "upstream", "setting", "kind", "window", "zone", "most", "spent", "back", "need", "wants", "waits", "serial")
	sqlLast  = texts.Bind("last_turn", "ways")
	sqlUsage = texts.Bind("usage")
	sqlZones = texts.Bind("zones", "zones")
)

// Way is what mail waits for, in the column waits_for, that a budget makes wait.
func Way(upstream string) string { return "budget " + upstream }

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
		next = min(next, u.due(b))
	}
	return max(next-b.cfg.Clock.Now(), 0)
}

// due is when the database is to be asked next, by our clock. mu is held.
func (u *account) due(b *Budgets) time.Duration {
	if u.stale {
		return never
	}
	at := never
	if u.end > b.moment() {
		at = u.at + waitersAnswer
	}
	for _, p := range u.limits {
		if p.need > 0 {
			at = min(at, p.tryAt)
		}
		if p.low() {
			at = 0
		}
		if p.spent > 0 {
			at = min(at, u.at+p.span/4)
		}
		if p.held > 0 || p.busy > 0 {
			at = min(at, p.until-p.span/2)
		}
	}
	if s := u.sessions; s != nil {
		if s.used < s.have {
			at = min(at, s.idleAt+time.Second)
		}
		if s.wanted > 0 {
			at = min(at, s.tryAt)
		}
		if s.used > 0 && s.epoch != b.cfg.Epoch() {
			at = 0
		}
	}
	return at
}

// request is one statement about all limits of the upstreams that are due.
type request struct {
	epoch int64
	sent  time.Duration // by our clock
	rows  []row
	of    []*account
	seeds []*account // of them, those of which it is not known what waits
}

// row is about one limit.
type row struct {
	u *account
	p *portion // nil: sessions
	Limit
	spent, back, need, wants, serial int64
	least                            int64 // that somebody waits for, with what is held
	waits                            bool
}

// request collects what is due, or all for a last time. Units that it gives back are out of use.
func (b *Budgets) request(last bool) *request {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &request{epoch: b.cfg.Epoch(), sent: b.cfg.Clock.Now()}
	if r.epoch == 0 {
		return r
	}
	for _, u := range b.upstreams {
		if !last && u.due(b) > r.sent {
			continue
		}
		r.of = append(r.of, u)
		if !u.seeded {
			r.seeds = append(r.seeds, u)
		}
		for _, p := range u.limits {
			w := row{u: u, p: p, Limit: p.Limit, spent: p.spent, serial: p.serial, waits: !last && u.end > b.moment()}
			if free := p.free(r.sent); last || p.used == 0 && p.need == 0 {
				w.back, p.held = free, 0
			} else {
				w.least, w.need, w.wants = p.need, max(p.need-free, 0), max(p.asked+p.used-free, 0)
			}
			p.used, p.asked, p.need = 0, 0, 0
			r.rows = append(r.rows, w)
		}
		if s := u.sessions; s != nil {
			s.have = s.used // idle ones are not used meanwhile
			r.rows = append(r.rows, row{u: u, Limit: s.Limit, spent: s.used, wants: s.wanted, waits: s.wanted > 0})
			s.epoch, s.wanted = r.epoch, 0
		}
	}
	slices.SortFunc(r.rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.u.name, b.u.name), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Window, b.Window), cmp.Compare(a.Zone, b.Zone))
	})
	return r
}

// answer is what the database says of one limit.
type answer struct {
	nth              int
	portion, serial  int64
	fresh            bool
	lease, clock     float64
	remains, waiting int64
	freeAt           []float64
	freeN            []int64
}

// call asks, and takes the answers over.
func (b *Budgets) call(ctx context.Context, r *request) error {
	if len(r.rows) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answers, ends, err := b.ask(ctx, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if silent := err != nil; silent != b.silent {
		if b.silent = silent; silent {
			b.cfg.Log.Warn("the budgets of upstreams cannot be asked: mail waits when what is leased is spent", "error", err)
		} else {
			b.cfg.Log.Info("the budgets of upstreams can be asked again")
		}
	}
	for _, u := range r.of {
		u.at = r.sent
	}
	if err != nil {
		return err
	}
	known := map[*account]bool{}
	for i := range answers {
		w := &r.rows[answers[i].nth-1]
		known[w.u] = true
		b.receive(r, w, &answers[i])
	}
	for i, u := range r.seeds {
		u.waitedFor(ends[i])
	}
	for _, u := range r.of {
		b.tell(u, known[u])
	}
	return nil
}

// tell wakes those that wait for an answer about u; not known says that its setting is not the
// upstream's any more. mu is held.
func (b *Budgets) tell(u *account, known bool) {
	if b.upstreams[u.name] != u { // nobody does
		return
	}
	if !known && !u.stale {
		u.stale = true
		b.cfg.Changed(u.name)
	}
	close(u.answered)
	u.answered = make(chan struct{})
}

// waitedFor takes over when the last has its turn that has waited since before the start. mu is
// held.
func (u *account) waitedFor(last float64) {
	u.seeded = true
	u.end = max(u.end, moment(last*float64(time.Second)))
	for _, p := range u.limits {
		if l := &p.lines[0]; u.end > l.end {
			*l = line{end: u.end}
		}
	}
}

// receive takes over the answer about one limit. mu is held.
func (b *Budgets) receive(r *request, w *row, a *answer) {
	now, p := b.cfg.Clock.Now(), w.p
	clock := moment(a.clock * float64(time.Second))
	b.offset = clock - now
	if p == nil {
		s := w.u.sessions
		s.have, s.idleAt, s.tryAt = a.portion, now, now+sessionsAgain
		return
	}
	if a.fresh { // the former portion counts as spent at the end of its lease
		p.spent = p.over
	} else {
		p.spent -= w.spent
	}
	p.over = 0
	p.held = max(a.portion-p.busy-p.spent, 0)
	p.serial, p.span = a.serial, time.Duration(a.lease*float64(time.Second))
	p.until = r.sent + p.span
	p.forecast = newForecast(clock, a.remains, freedAt(a.freeAt, a.freeN), p.Limit)
	p.tryAt, w.u.nodes = 0, a.waiting+1
	if lacks := w.least - p.held; lacks > 0 {
		wait := p.forecast.when(lacks) - clock
		p.tryAt = now + min(max(wait, 2*pace), retry)
	}
}

func (b *Budgets) ask(ctx context.Context, r *request) (answers []answer, ends []float64, err error) {
	var upstream, setting, kind, zone []string
	var window []int32
	var most, spent, back, need, wants, serial []int64
	var waits []bool
	for i := range r.rows {
		w := &r.rows[i]
		upstream, setting = append(upstream, w.u.name), append(setting, w.u.setting)
		kind, zone, window = append(kind, string(w.Kind)), append(zone, w.Zone), append(window, int32(w.Window/time.Second))
		most, spent, back = append(most, w.Max), append(spent, w.spent), append(back, w.back)
		need, wants, waits, serial = append(need, w.need), append(wants, w.wants), append(waits, w.waits), append(serial, w.serial)
	}
	rows, err := b.cfg.DB.Query(ctx, sqlLease, r.epoch, upstream, setting, kind, window, zone, most, spent, back, need, wants, waits, serial)
	if err == nil {
		answers, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a answer, err error) {
			err = row.Scan(&a.nth, &a.portion, &a.serial, &a.fresh, &a.lease, &a.remains, &a.waiting, &a.clock, &a.freeAt, &a.freeN, nil)
			return a, err
		})
	}
	if err == nil && len(r.seeds) > 0 {
		ends, err = b.lastTurns(ctx, r.seeds)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("lease budgets: %w", err)
	}
	return answers, ends, nil
}

// lastTurns is when the last has its turn of what waits in the table, 0 where nothing does.
func (b *Budgets) lastTurns(ctx context.Context, of []*account) ([]float64, error) {
	ways := make([]string, len(of))
	for i, u := range of {
		ways[i] = Way(u.name)
	}
	rows, err := b.cfg.DB.Query(ctx, sqlLast, ways)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (float64, error) {
		var at *float64
		if err := row.Scan(&at); err != nil || at == nil {
			return 0, err
		}
		return *at, nil
	})
}
