package delivery

import (
	"context"
	"errors"
	"slices"
	"time"
)

// slotPart is the part of the free connections that one user, destination or address
// may come to: alone it has two thirds of all.
const slotPart = 2

// userOf is a user as a holder of connections; 0 are the notices of the relay.
type userOf int64

// takePlace waits for a place among all connections, and reports false while closing.
func (w *worker) takePlace() bool {
	e := w.d.e
	for {
		ctx, anew := context.WithCancel(e.work)
		w.d.seek(w, anew)
		err := e.slots.Wait(ctx, 1, w.user, w.d.key)
		w.d.sought(w)
		anew()
		if err == nil || e.closing() {
			return err == nil
		}
	}
}

// seek gives w the user in whose name it waits for a place, until anew is called.
func (d *destination) seek(w *worker, anew context.CancelFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.user, w.anew = d.claimant(), anew
	d.seeking = append(d.seeking, w)
}

// sought is the end of that.
func (d *destination) sought(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seeking = slices.DeleteFunc(d.seeking, func(other *worker) bool { return other == w })
}

// claimant is the user in whose name the next place is wanted: of those whose messages wait,
// the first without a whole share of the places. mu is held.
func (d *destination) claimant() userOf {
	first := d.waiting.first()
	if first == nil {
		return 0
	}
	last, full := first.user(), d.e.slots.Full(1, first.user())
	j := d.waiting.find(func(j *job) bool {
		if j.user() != last {
			last, full = j.user(), d.e.slots.Full(1, j.user())
		}
		return !full
	})
	if j == nil {
		j = first
	}
	return j.user()
}

// makeWay keeps workers from all waiting, indefinitely, in the names of users with a whole
// share while a message of another user waits. mu is held.
func (d *destination) makeWay(user userOf) {
	mayHave := func(w *worker) bool { return !d.e.slots.Full(1, w.user) }
	if n := len(d.seeking); n > 0 && !d.e.slots.Full(1, user) && !slices.ContainsFunc(d.seeking, mayHave) {
		d.seeking[n-1].anew()
	}
}

// Silent conversations give way while others wait for a connection.
const (
	silenceLook = time.Second
	silenceMost = 3 // looks without progress
)

// errYield is the cause for which a conversation was cut off.
var errYield = errors.New("it was silent while others waited for a connection")

// silence is the yield loop's own record of a worker.
type silence struct {
	progress uint64
	looks    int
}

// yieldLoop looks for silent conversations each second. While connections are short it cuts
// off those whose user has its whole share: their mail is deferred and tried again later.
func (e *Engine) yieldLoop() {
	tick := time.NewTicker(silenceLook)
	defer tick.Stop()
	for {
		select {
		case <-e.work.Done():
			return
		case <-tick.C:
		}
		pressed := e.slots.Pressed()
		e.mu.Lock()
		for w := range e.active {
			if now := w.progress.Load(); now != w.silence.progress || !w.talking.Load() {
				w.silence = silence{progress: now}
				continue
			}
			w.silence.looks++
			if pressed && w.silence.looks >= silenceMost && e.slots.Full(1, w.user) {
				w.cancel(errYield)
			}
		}
		e.mu.Unlock()
	}
}
