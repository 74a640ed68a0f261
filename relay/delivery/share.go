package delivery

import (
	"context"
	"errors"
	"time"

	"postern/internal/share"
	"postern/relay/smtp"
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

// enter takes a part of the connections for the address of an MX. An upstream's address
// was chosen by an administrator and is bounded by its own number of connections, and by its
// budget. leave gives the part back.
func (d *dialer) enter(ctx context.Context, to target) (leave func(), t *trouble) {
	switch {
	case d.slots == nil:
		return func() {}, nil
	case to.upstream != nil:
		return d.session(ctx, to.upstream)
	case !d.slots.Join(1, share.Network(to.addr.Addr())):
		return nil, crowdedTrouble(to)
	}
	return func() { d.slots.Leave(1, share.Network(to.addr.Addr())) }, nil
}

// crowdedTrouble is that of an address which has all the connections that it may.
func crowdedTrouble(to target) *trouble {
	return &trouble{
		reply: smtp.Temporary(451, 4, 5, "mail host "+to.host+" has all the connections that one address may have"),
		err:   errCrowded, crowded: true,
	}
}

var errCrowded = errors.New("too many connections to one address")

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
