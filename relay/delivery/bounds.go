package delivery

import "time"

// Bounds are the limits of Config that may change while the engine runs.
type Bounds struct {
	Connections   int           // to one upstream that sets no number of its own
	MXConnections int           // to one MX domain
	PerConnection int           // messages over one connection
	IdleTime      time.Duration // how long an unused connection is kept
	Memory        int64         // octets of the mail in hand
}

// Rebound changes the bounds that are not zero. Connections in excess end with their message,
// idle ones when their time is over.
func (e *Engine) Rebound(b Bounds) {
	now := *e.bounds.Load()
	keep(&now.Connections, b.Connections)
	keep(&now.MXConnections, b.MXConnections)
	keep(&now.PerConnection, b.PerConnection)
	keep(&now.IdleTime, b.IdleTime)
	keep(&now.Memory, b.Memory)
	e.bounds.Store(&now)
	e.load.resize(now.Memory)
	for _, d := range e.all() {
		d.rebound()
	}
}

func keep[T int | int64 | time.Duration](v *T, to T) {
	if to > 0 {
		*v = to
	}
}

// rebound sets how many connections the destination may have.
func (d *destination) rebound() {
	d.mu.Lock()
	defer d.mu.Unlock()
	most := d.e.bounds.Load().MXConnections
	if d.upstream != nil {
		most = d.e.connectionsFor(d.upstream)
	}
	switch {
	case most == d.most:
		return
	case d.upstream != nil && d.limit == d.most, d.limit > most:
		d.limit = most // an upstream has all from the beginning; a domain has to earn them
	}
	d.most = most
	if !d.e.closing.Load() {
		d.hire()
	}
}

// Turned is how long ago the dispatcher last ran: a few seconds in a live engine.
func (e *Engine) Turned() time.Duration {
	return time.Since(time.Unix(0, e.turned.Load()))
}
