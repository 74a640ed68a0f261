package delivery

import "time"

// Stats is a moment's view of an Engine, for metrics.
type Stats struct {
	Upstream, MX Load  // by what kind the destination is
	Messages     int   // held in memory
	Memory       int64 // octets that they take
	MemoryLimit  int64
	Panics       int64 // attempts that ended by a defect of ours

	Signed int64 // transactions with a message that was signed
}

// Unsigned is how many transactions with mail of a domain went unsigned.
type Unsigned struct {
	Domain       string
	Transactions int64
}

// Load is the work of destinations of one kind.
type Load struct {
	Destinations int // with work, or remembered for their trouble
	Suspended    int // of them, left alone for now after trouble
	Waiting      int // messages that wait for a connection
	Connections  int // open or being made
}

// Window is a moment's view of this node's connections to an upstream.
type Window struct {
	Upstream    string
	Connections int // open or being made
	Places      int // the most of them now
}

// Windows are those of the upstreams with work, or that had some lately.
func (e *Engine) Windows() (list []Window) {
	for _, d := range e.all() {
		if d.domain == "" {
			d.window.mu.Lock() // an upstream's window is never replaced
			list = append(list, Window{d.via, d.window.used, d.window.limit})
			d.window.mu.Unlock()
		}
	}
	return list
}

// Stats returns the counts of now.
func (e *Engine) Stats() Stats {
	s := Stats{Panics: e.panics.Load(), Signed: e.signed.Load()}
	messages, _ := e.load.messages.Use()
	s.Messages = int(messages)
	s.Memory, s.MemoryLimit = e.load.octets.Use()
	now := time.Now()
	for _, d := range e.all() {
		of := &s.Upstream
		if d.domain != "" {
			of = &s.MX
		}
		d.mu.Lock()
		if d.workers > 0 || d.waiting.len() > 0 || d.failures > 0 {
			of.Destinations++
		}
		of.Waiting += d.waiting.len()
		of.Connections += d.workers
		if d.suspended(now) {
			of.Suspended++
		}
		d.mu.Unlock()
	}
	return s
}
