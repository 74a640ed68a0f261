package submission

import (
	"time"

	"postern/relay/smtp"
)

// sharePart is the part of what is free that one user or network may come to: alone it
// has two thirds.
const sharePart = 2

// holders are those in whose name a session takes memory: its user and its network.
type holders = []any

// userOf is a user as a holder.
type userOf int64

// Memory of an envelope is charged in steps; the first is part of every session.
const (
	envelopeFree = 4 << 10
	envelopeStep = 16 << 10
)

// recipientTakes is about what a recipient takes: itself, twice in the index of those
// that are known, and its strings.
func recipientTakes(to smtp.Address, r *smtp.RcptCommand) int64 {
	return 400 + int64(2*len(to.Local)+2*len(to.Domain)+len(r.ORcpt))
}

// take charges octets of the envelope before they are there, and reports whether there is
// room.
func (s *session) take(octets int64) bool {
	tx := s.tx
	if tx.takes+octets > envelopeFree+tx.held {
		step := max(octets, envelopeStep)
		if !s.server.spool.memory.Take(step, s.holders...) {
			return false
		}
		tx.held += step
	}
	tx.takes += octets
	return true
}

// endTransaction forgets the transaction and frees its memory.
func (s *session) endTransaction() {
	if s.tx != nil && s.tx.held > 0 {
		s.server.spool.memory.Give(s.tx.held, s.holders...)
	}
	s.tx = nil
}

// headerMemory is what a session's message may take for its header section.
type headerMemory session

func (m *headerMemory) Take(octets int64) error {
	if !m.server.spool.memory.Take(octets, m.holders...) {
		return errFull
	}
	return nil
}

func (m *headerMemory) Give(octets int64) { m.server.spool.memory.Give(octets, m.holders...) }

// Under pressure the most silent sessions give way (as in Postfix' stress mode).
const (
	stressLook  = time.Second
	stressLogin = 10 * time.Second // for a client to log in
	stressData  = 10               // looks at message data that falls behind its rate
)

// stressLoop looks each second whether connections or memory are short. Then clients
// that have not logged in within ten seconds are turned away, and messages of those that
// hold their whole share and send more slowly than DataRate.
func (s *Server) stressLoop() {
	tick := time.NewTicker(stressLook)
	defer tick.Stop()
	for {
		select {
		case <-s.draining.Done():
			return
		case <-tick.C:
			s.relieve(time.Now())
		}
	}
}

func (s *Server) relieve(now time.Time) {
	doors := s.peers.pressed()
	memory := s.spool.memory.Pressed() || s.spool.files.Pressed()
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.sessions {
		if doors && !x.wire.known.Load() && now.Sub(x.started) > stressLogin {
			x.wire.expel()
		}
		if slow := x.slow.look(x.wire, x.limits.DataRate); slow && memory && s.hasItsShare(x) {
			x.wire.expel()
		}
	}
}

// hasItsShare reports that a session's user or network may take no more now.
func (s *Server) hasItsShare(x *session) bool {
	shared := x.sharing.Load()
	if shared == nil {
		return false
	}
	most := int64(chunkSizes[len(chunkSizes)-1])
	for _, h := range *shared {
		if s.spool.memory.Full(most, h) || s.spool.files.Full(most, h) {
			return true
		}
	}
	return false
}

// slowness is what the stress loop remembers of a session's message data.
type slowness struct {
	received uint64
	looks    int
}

// look reports that message data is awaited and fell behind the rate at all of the last looks.
func (l *slowness) look(w *wire, rate int64) bool {
	received := w.received.Load()
	if !w.inData.Load() || int64(received-l.received) >= rate*int64(stressLook/time.Second) {
		*l = slowness{received: received}
		return false
	}
	l.received = received
	l.looks++
	return l.looks >= stressData
}
