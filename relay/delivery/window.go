package delivery

import (
	"slices"
	"strings"
	"sync"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// begin is how many concurrent connections a server gets before it has shown that it takes more.
const begin = 5

const (
	// growPause is how long after trouble a window does not grow.
	growPause = 10 * time.Second
	// refusedPause is growPause after a connection that could not be had beside others,
	// without a reply of the host: a restart is more likely than a limit. It is also how often
	// replies halve a window, since all connections may hear the same.
	refusedPause = time.Second
)

const (
	// plenty is how many connections a server may get however quick it is. More than those that
	// carry worthRate messages a second only make each slower.
	plenty    = 20
	worthRate = 5000
	// quickestTime is for how long the quickest delivery counts, at least.
	quickestTime = 10 * time.Second
	// windowTime is how long a window without connections is remembered.
	windowTime = 5 * time.Minute
	// turn is how many messages a connection carries before it gives way to another domain of
	// its site.
	turn = 20
)

// window is how many connections there may be concurrently: to an upstream, or to the mail
// hosts of a site, over all of its domains. Each worker of a destination has a place.
//
// A window begins with a few places. While all are in use and messages wait, each success brings
// one more until the first trouble, afterwards as many as there are places bring one.
type window struct {
	nudge chan struct{} // wakes an idle worker, of any destination, for one that has none

	mu      sync.Mutex
	members int            // destinations; guarded by the mu of windows
	wanting []*destination // those that have messages, and no worker for want of a place
	used    int            // places
	live    int            // of them, with a conversation
	most    int            // bound of limit
	limit   int            // places, now: 1 to most
	proven  int            // limit when a transaction last ended
	shrunk  bool           // there was trouble
	credit  int            // successes since limit changed
	growAt  time.Time      // limit does not grow before
	halved  time.Time      // when replies last did
	endedAt time.Time      // when a transaction last ended

	// The shortest time of a delivery lately, and before; zero: unknown. The mean would grow
	// with the number of connections to a server, or on a machine, that is at its limit.
	quickest, before time.Duration
	since            time.Time // of quickest
}

func newWindow(most int) *window {
	w := &window{most: most, nudge: make(chan struct{}, 1)}
	w.limit = min(begin, most)
	w.proven = w.limit
	return w
}

// take takes a place for a worker of d. A destination that gets none and has no worker comes
// before others when one is free.
func (w *window) take(d *destination) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.used+len(w.wanting) < w.limit {
		w.used++
		return true
	}
	if d.workers == 0 && !slices.Contains(w.wanting, d) {
		w.wanting = append(w.wanting, d)
		select {
		case w.nudge <- struct{}{}:
		default:
		}
	}
	return false
}

// pass gives free places to those that have none. No lock is held.
func (w *window) pass() {
	for {
		w.mu.Lock()
		if w.used >= w.limit || len(w.wanting) == 0 {
			w.mu.Unlock()
			return
		}
		d := w.wanting[0]
		w.wanting = slices.Delete(w.wanting, 0, 1)
		w.used++
		w.mu.Unlock()
		if !d.granted(w) {
			w.add(-1, 0)
		}
	}
}

// add counts places and conversations, even beyond the limit. pass must follow when places are given
// back.
func (w *window) add(places, live int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used += places
	w.live += live
}

// over reports that more places are taken than there are.
func (w *window) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.used > w.limit
}

// isWanted reports that a destination waits for a place.
func (w *window) isWanted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wanting) > 0
}

// ends reports that a conversation which has carried so many messages has to end, for there
// are too many or another domain waits. The caller counts it out before it asks about another.
func (w *window) ends(sent int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live > w.limit || sent >= turn && w.live+len(w.wanting) > w.limit
}

// deliveredIn notes the time of a delivery. A window that is far larger than the time makes worth
// having, since the server was slow at first, shrinks to that. mu is held.
func (w *window) deliveredIn(took time.Duration) {
	if w.endedAt.Sub(w.since) > quickestTime {
		w.before, w.quickest, w.since = w.quickest, took, w.endedAt
	}
	w.quickest = min(w.quickest, took)
	if worth := w.worth(); w.limit > 2*worth {
		w.limit = worth
	}
}

// worth is how many connections are worth having, by the time that a delivery takes. mu is held.
func (w *window) worth() int {
	least := w.quickest
	if w.before > 0 {
		least = min(least, w.before)
	}
	return max(plenty, int(least*worthRate/time.Second))
}

// ended counts a completed transaction. took is the time of a delivery, else zero; more says that
// messages wait which could use one more place.
func (w *window) ended(took time.Duration, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endedAt = time.Now()
	if took > 0 {
		w.deliveredIn(took)
	}
	if more && w.used >= w.limit && w.limit < min(w.most, w.worth()) && w.endedAt.After(w.growAt) {
		if w.credit++; !w.shrunk || w.credit >= w.limit {
			w.credit = 0
			w.limit++
		}
	}
	w.proven = w.limit
}

// lose takes one place for a conversation that broke off: a server that drops one in fifty keeps
// all its connections, one that drops every second soon has a single one.
func (w *window) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shrink(w.limit-1, 0)
}

// refused leaves as many places as there are other connections, open or being made, after one
// could not be had beside them: we had too many. seeking workers do not connect yet.
func (w *window) refused(seeking int, said bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pause := refusedPause
	if said {
		pause = growPause
	}
	w.shrink(min(w.limit, w.used-seeking)-1, pause)
}

// halve is for a reply that wants less of us, and reports whether it was heeded.
func (w *window) halve() (limit int, heeded bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if now.Sub(w.halved) < refusedPause {
		return w.limit, false
	}
	w.halved = now
	w.shrink(w.limit/2, growPause)
	w.proven = min(w.proven, w.limit)
	return w.limit, true
}

// shrink sets the places, and for how long they do not grow. mu is held.
func (w *window) shrink(to int, pause time.Duration) {
	w.limit, w.credit, w.shrunk = max(1, to), 0, true
	if until := time.Now().Add(pause); until.After(w.growAt) {
		w.growAt = until
	}
}

// leftAlone is for a destination that is left alone. One that probably restarts gets its former
// places back. While conversations of other domains go on the site is up, and said is a reply by
// which it wants fewer of them.
func (w *window) leftAlone(restarts, said bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.live > 0 && said:
		w.shrink(min(w.limit-1, w.live), growPause)
	case w.live > 0:
	case restarts:
		w.limit, w.growAt = min(w.proven, w.most), time.Time{}
	default:
		w.shrink(w.limit/2, growPause)
	}
}

// resize sets the most places. Those in excess end with their message.
func (w *window) resize(most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit == w.most || w.limit > most {
		w.limit = min(max(w.limit, begin), most)
	}
	w.most = most
}

// reset begins anew: it may be another server now.
func (w *window) reset(most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.most, w.limit = most, min(begin, most)
	w.proven, w.shrunk, w.credit, w.growAt = w.limit, false, 0, time.Time{}
	w.quickest, w.before, w.since = 0, 0, time.Time{}
}

// windows are those of an engine, by key.
type windows struct {
	mu    sync.Mutex
	by    map[string]*window
	sites func() int // the most places of a site
}

const siteKey = "mx "

// join counts one more member of a window, which is made if need be.
func (all *windows) join(key string, most int) *window {
	all.mu.Lock()
	defer all.mu.Unlock()
	w := all.by[key]
	if w == nil {
		w = newWindow(most)
		all.by[key] = w
	}
	w.resize(most)
	w.members++
	return w
}

func (all *windows) leave(w *window) {
	all.mu.Lock()
	defer all.mu.Unlock()
	w.members--
}

// tend forgets windows that had no member for windowTime, and adapts those of sites to the number
// of nodes.
func (all *windows) tend(now time.Time) {
	var sites []*window
	all.mu.Lock()
	for key, w := range all.by {
		w.mu.Lock()
		old := w.members == 0 && now.Sub(w.endedAt) > windowTime
		w.mu.Unlock()
		if old {
			delete(all.by, key)
		} else if strings.HasPrefix(key, siteKey) {
			sites = append(sites, w)
		}
	}
	all.mu.Unlock()
	for _, w := range sites {
		w.resize(all.sites())
		w.pass()
	}
}

// slowDown heeds a reply of the server that wants less of us.
func (d *destination) slowDown(r smtp.Reply) {
	d.mu.Lock()
	w := d.window
	d.mu.Unlock()
	if limit, heeded := w.halve(); heeded {
		d.e.cfg.Log.Info("fewer connections", "via", d.via, "domain", d.domain, "connections", limit, "reply", r.String())
	}
}

// wantsLess returns the reply by which the server wants fewer connections or less mail from us, if
// there is one. The 421 of a conversation that was cut short is about its errors.
func (t *transaction) wantsLess(cut bool) (smtp.Reply, bool) {
	for i, r := range t.res.Replies {
		if r.IsTemporary() && !(cut && r.Code == 421) && !isOurReply(&t.res, i) && !t.res.Withheld(i) && wantsLess(t.replies, stageOf(&t.res, i), r) {
			return r, true
		}
	}
	return smtp.Reply{}, false
}

// wantsLess judges a temporary reply: 421, one that the table blames on the connection, and
// 4.7.x, but not where it may be about the mail, as greylisting is: at RCPT and later it counts
// only if a row of the table blames the account or the host.
func wantsLess(replies *upstream.Replies, stage upstream.Stage, r smtp.Reply) bool {
	v := replies.Classify(stage, r)
	if r.Code == 421 || v.Scope == upstream.ScopeConnection {
		return true
	}
	ofUs := v.Scope == upstream.ScopeAccount || v.Scope == upstream.ScopeHost
	return r.Enhanced.Subject == 7 && (ofUs || v.Row == nil && stage == upstream.StageMail)
}

// timeOf is how long a delivery took, zero if none of outcomes is one.
func timeOf(outcomes []queue.Outcome) time.Duration {
	for i := range outcomes {
		if o := &outcomes[i]; o.Result == queue.Delivered {
			return o.At.Sub(o.StartedAt)
		}
	}
	return 0
}
