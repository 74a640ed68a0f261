package delivery

import (
	"cmp"
	"time"

	"postern/relay/dkim"
	"postern/relay/upstream"
)

// Bounds are the limits of Config that may change while the engine runs.
type Bounds struct {
	Connections    int           // to one upstream that sets no number of its own
	MXConnections  int           // to one site, of all nodes together
	PerConnection  int           // messages over one connection
	PerTransaction int           // recipients in one transaction
	IdleTime       time.Duration // how long an unused connection is kept
	Memory         int64         // octets of the mail in hand
	DKIM           dkim.Mode     // for MX
}

// Rebound changes the bounds that are not zero. Connections in excess end with their message,
// idle ones when their time is over.
func (e *Engine) Rebound(b Bounds) {
	now := e.bounds.Load()
	fill(&b.Connections, now.Connections)
	fill(&b.MXConnections, now.MXConnections)
	fill(&b.PerConnection, now.PerConnection)
	fill(&b.PerTransaction, now.PerTransaction)
	fill(&b.IdleTime, now.IdleTime)
	fill(&b.Memory, now.Memory)
	b.DKIM = cmp.Or(b.DKIM, now.DKIM)
	e.bounds.Store(&b)
	e.load.resize(b.Memory)
	for _, d := range e.all() {
		d.rebound()
	}
	e.windows.tend(time.Now())
}

// connectionsFor is the most connections to an upstream.
func (e *Engine) connectionsFor(u *upstream.Account) int {
	if u.MaxConnections > 0 {
		return u.MaxConnections
	}
	return e.bounds.Load().Connections
}

// sitePlaces is this node's part of the most connections to a site.
func (e *Engine) sitePlaces() int {
	nodes := 1
	if e.cfg.Nodes != nil {
		nodes = max(1, e.cfg.Nodes())
	}
	return max(1, e.bounds.Load().MXConnections/nodes)
}

// rebound sets how many connections an upstream may have.
func (d *destination) rebound() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.upstream == nil {
		return
	}
	d.window.resize(d.e.connectionsFor(d.upstream))
	d.hire()
}

// Turned is how long ago the dispatcher last ran: a few seconds in a live engine.
func (e *Engine) Turned() time.Duration {
	return time.Since(time.Unix(0, e.turned.Load()))
}
