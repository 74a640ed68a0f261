package delivery

import (
	"errors"
	"time"
)

// slotPart is the part of the free connections that one user, destination or address
// may come to: alone it has two thirds of all.
const slotPart = 2

// Silent conversations give way while others wait for a connection.
const (
	silenceLook = time.Second
	silenceMost = 3 // looks without progress
)

// userOf is a user as a holder of connections; 0 are the notices of the relay.
type userOf int64

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
