package delivery

import (
	"context"
	"time"

	"postern/relay/queue"
	"postern/relay/upstream/budget"
)

const (
	claimBatch     = 200                    // messages in one claim
	claimPerDomain = 100                    // recipients of one domain in one claim
	claimPause     = 100 * time.Millisecond // at least, after a claim that found nothing
	crowdedPause   = time.Second            // after a claim that was mostly turned away
	claimTime      = 30 * time.Second       // for one claim
	maxBusy        = 1000                   // domains named to a claim
)

// claimLoop claims due work as far as there is room for it.
func (e *Engine) claimLoop() {
	trouble := 0
	for !e.closing() {
		found, err := e.claim()
		switch {
		case e.closing():
		case err != nil:
			e.cfg.Log.Warn("claim failed", "error", err)
			e.pause(min(time.Second<<min(trouble, 5), 30*time.Second))
			trouble++
			continue
		case found == 0:
			e.awaitWork()
		case e.turnedAway.Swap(0) > int64(found)/2:
			// The due mail is for destinations without room: do not stir the whole queue.
			e.pause(crowdedPause)
		}
		trouble = 0
	}
}

// claim takes one batch and returns how many deliveries came.
func (e *Engine) claim() (int, error) {
	room, ok := e.awaitRoom()
	if !ok {
		return 0, nil
	}
	if asked := e.cfg.Queue.Asked(); asked != e.asked {
		e.asked = asked
		for _, d := range e.all() {
			d.tryAgain()
		}
	}
	for _, way := range e.cfg.Queue.Back() {
		if d := e.known(way); d != nil {
			d.tryAgain()
		}
	}
	ctx, cancel := context.WithTimeout(e.work, claimTime)
	defer cancel()
	list, err := e.cfg.Queue.Claim(ctx, queue.ClaimRequest{
		Messages:       min(room, claimBatch),
		PerDestination: claimPerDomain,
		Busy:           e.busy(),
		BusyUsers:      e.load.filled(),
		Lines:          e.lines(),
	})
	for _, d := range list { // even beside an error: the deliveries that came are ours to end
		e.Take(d)
	}
	return len(list), err
}

// awaitRoom waits until enough messages have room for a claim, and returns how many.
func (e *Engine) awaitRoom() (int, bool) {
	for {
		if room, _ := e.load.free(); room > 0 && (room >= claimBatch || room >= int64(e.cfg.Messages/10)) {
			return int(room), true
		}
		select {
		case <-e.load.room:
		case <-e.work.Done():
			return 0, false
		}
	}
}

// awaitWork returns when a claim may find work. Rows that are due but whose
// domain is busy make Wait return immediately, hence the pause.
func (e *Engine) awaitWork() {
	e.pause(claimPause)
	if err := e.cfg.Queue.Wait(e.work); err != nil && !e.closing() {
		e.cfg.Log.Warn("wait for work failed", "error", err)
		e.pause(time.Second)
	}
}

// pause waits, and reports false when no new work is to be begun any more.
func (e *Engine) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.work.Done():
		return false
	}
}

// lines are what mail waits for whose turn with an upstream has not come.
func (e *Engine) lines() (list [][]string) {
	for _, d := range e.all() {
		d.mu.Lock()
		if e.budgeted(d.upstream) {
			list = append(list, budget.Ways(d.upstream.Name))
		}
		d.mu.Unlock()
	}
	return list
}

// busy lists the MX domains that should not be claimed now: in trouble, or with a long line
// already.
func (e *Engine) busy() []string {
	var list []string
	now := time.Now()
	for _, d := range e.all() {
		if d.domain != "" && d.isBusy(now) && len(list) < maxBusy {
			list = append(list, d.domain)
		}
	}
	return list
}
