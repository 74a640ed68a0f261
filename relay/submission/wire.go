package submission

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"postern/relay/smtp"
)

var (
	// errShutdown ends a wait because the server is going down.
	errShutdown = errors.New("server is shutting down")
	// errRevoked ends a wait because the client's credential is no longer valid.
	errRevoked = errors.New("credential is revoked")
	// errExpelled ends a wait because others have no room.
	errExpelled = errors.New("closed to make room for others")
)

// wire is a connection as its session sees it: replies are collected and leave in
// one write before any read that may block (RFC 2920 section 3.2), and every wait
// has a deadline. Only interrupt, revoke and isRevoked may be called from another
// goroutine.
type wire struct {
	raw    net.Conn // for deadlines and the final close
	conn   net.Conn // what is read and written: raw, or TLS over it
	limits *Limits
	end    time.Time // of the session, whatever it does

	out   []byte
	dead  error     // of a write: the client takes no more replies
	until time.Time // for the line that is awaited
	rate  *pace     // set while message data is read, instead of until
	idle  bool      // a shutdown or a revocation may end this wait immediately

	known    atomic.Bool   // the client has logged in, or its network has
	inData   atomic.Bool   // message data is awaited
	received atomic.Uint64 // octets of all message data

	mu         sync.Mutex
	drain, cut bool
	revoked    bool
	expelled   bool
	left       bool // the last reply is sent: a revocation has nothing to add
	waiting    bool // idle, as of the wait under way
	armed      time.Time
}

// pace measures message data against the minimum rate. Faster data earns credit, but for
// no longer than a silence may last, or a client could send much at first and be slow for
// hours.
type pace struct {
	due    time.Time // when the data read so far no longer keeps the pace
	octets int64     // since due was moved
}

func newPace(now time.Time, l *Limits) *pace { return &pace{due: now.Add(l.DataGrace)} }

// deadline is when the next octets must have come.
func (p *pace) deadline(now time.Time, l *Limits) time.Time {
	p.due = p.due.Add(time.Duration(float64(p.octets) / float64(l.DataRate) * float64(time.Second)))
	p.octets = 0
	if most := now.Add(max(l.DataRead, l.DataGrace)); most.Before(p.due) {
		p.due = most
	}
	if patience := now.Add(l.DataRead); patience.Before(p.due) {
		return patience
	}
	return p.due
}

// Read implements io.Reader for smtp.Reader, which calls it only when what it has
// buffered is not enough.
func (w *wire) Read(p []byte) (int, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	if err := w.arm(); err != nil {
		return 0, err
	}
	n, err := w.conn.Read(p)
	if w.rate != nil {
		w.rate.octets += int64(n)
		w.received.Add(uint64(n))
	}
	if err != nil && isTimeout(err) {
		if why := w.interrupted(); why != nil {
			err = why
		}
	}
	return n, err
}

// arm sets the deadline for the read that follows. It covers writes as well,
// since TLS may write while it reads.
func (w *wire) arm() error {
	due := w.until
	if w.rate != nil {
		due = w.rate.deadline(time.Now(), w.limits)
	}
	if w.end.Before(due) {
		due = w.end
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = w.idle
	if why := w.why(); why != nil {
		return why
	}
	if due.Equal(w.armed) {
		return nil
	}
	w.armed = due
	return w.raw.SetDeadline(due)
}

// disarm takes the deadline of the wait that is over from the connection, for what is
// read past the wire: a handshake, which a shutdown ends by its own means.
func (w *wire) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = time.Time{}
	_ = w.raw.SetDeadline(time.Time{}) // a failure means that the connection is gone
}

// interrupted is why a wait was ended from outside, nil if it was not.
func (w *wire) interrupted() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why()
}

// why is the reason not to wait, or nil. The caller has the lock.
func (w *wire) why() error {
	switch {
	case w.cut || w.drain && w.waiting:
		return errShutdown
	case w.expelled && !w.left:
		return errExpelled
	case w.revoked && w.waiting && !w.left:
		return errRevoked
	}
	return nil
}

// revoke ends waits between transactions, of now and from now on.
func (w *wire) revoke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked {
		return
	}
	if w.revoked = true; w.waiting && !w.left {
		w.wake()
	}
}

// expel ends the wait of now: others have no room.
func (w *wire) expel() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.expelled && !w.left {
		w.expelled = true
		w.wake()
	}
}

func (w *wire) isRevoked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked
}

// wake ends the read under way.
func (w *wire) wake() {
	w.armed = time.Time{}
	// A failure means that the connection is gone, and so the wait is over.
	_ = w.raw.SetReadDeadline(time.Unix(1, 0))
}

// interrupt ends waits between transactions and, with cut, those inside them.
func (w *wire) interrupt(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain, w.cut = true, w.cut || cut
	if w.cut || w.waiting {
		w.wake()
	}
	if w.cut {
		_ = w.raw.SetWriteDeadline(time.Now().Add(lastWrite))
	}
}

// reply collects a reply.
func (w *wire) reply(r smtp.Reply) { w.out = r.Append(w.out) }

// flush sends what is collected.
func (w *wire) flush() error {
	if len(w.out) == 0 || w.dead != nil {
		return w.dead
	}
	if err := w.raw.SetWriteDeadline(time.Now().Add(w.patience())); err != nil {
		w.dead = err
		return err
	}
	_, err := w.conn.Write(w.out)
	w.dead = err
	if w.out = w.out[:0]; cap(w.out) > 4<<10 {
		w.out = nil // an idle session holds little
	}
	return err
}

// patience is how long a write may take.
func (w *wire) patience() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = time.Time{} // the write has a deadline of its own
	if w.cut {
		return min(w.limits.Write, lastWrite)
	}
	return w.limits.Write
}

// lastWrite is the time for a last reply when a shutdown is out of patience.
const lastWrite = time.Second

// linger gives a peer that is still sending the time to read our last reply: a
// close with unread octets would reset the connection and take the reply away.
func (w *wire) linger() {
	half, ok := w.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	w.mu.Lock()
	w.left = true
	w.mu.Unlock()
	w.idle, w.rate = true, nil
	w.until = time.Now().Add(time.Second)
	if w.arm() != nil {
		return
	}
	var sink [2 << 10]byte
	for range 64 {
		if _, err := w.raw.Read(sink[:]); err != nil {
			return
		}
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
