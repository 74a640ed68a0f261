package smtptest

import (
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// Phase is a point of the conversation at which a Server may misbehave.
type Phase string

const (
	PhaseConnect   Phase = "connect"   // accepted, before an implicit handshake
	PhaseBanner    Phase = "banner"    // instead of the greeting
	PhaseHello     Phase = "hello"     // EHLO or HELO was read, in clear or under TLS
	PhaseStartTLS  Phase = "starttls"  // STARTTLS was read
	PhaseHandshake Phase = "handshake" // before the TLS handshake, implicit or not; nothing is said normally
	PhaseAuth      Phase = "auth"      // AUTH was read
	PhaseAuthNext  Phase = "authnext"  // a continuation line of AUTH was read
	PhaseMail      Phase = "mail"
	PhaseRcpt      Phase = "rcpt"
	PhaseData      Phase = "data" // DATA was read
	PhaseBody      Phase = "body" // 354 was sent, nothing of the body was read; nothing is said normally
	PhaseDot       Phase = "dot"  // the final dot was read
	PhaseReset     Phase = "rset"
	PhaseQuit      Phase = "quit"
)

// Session is what a hook may know of the conversation it is in.
type Session struct {
	Conn     int    // number of the connection, from 1
	Remote   string // host:port of the client
	Messages int    // final dots read on this connection before
	Commands int    // commands read on this connection, with this one
	TLS      bool   // under TLS
	Hello    string // what the client said it is
	User     string // who has authenticated, "" for nobody
	Command  string // the line that was read, without CRLF
	Mail     string // "FROM:<a@b> SIZE=1" of the open transaction
	Rcpts    []string
	Rcpt     int // which RCPT of the transaction this is, from 0
}

// Hook chooses what happens at a phase. Many sessions may call it concurrently.
type Hook func(Session) Action

// Action is what a Server does at a phase; the zero value is its normal behaviour.
// Its reply decides how the Server goes on: the Server reads the first three octets
// as the code, and a session to which it said "250" for MAIL has a transaction.
type Action struct {
	steps []func(*session)
}

// Normal is the normal reply of the phase.
func Normal() Action {
	return step(func(c *session) {
		c.sayNormal()
		c.flush()
	})
}

// Reply says complete lines, each ended by CRLF.
func Reply(lines ...string) Action { return Raw(strings.Join(lines, "\r\n") + "\r\n") }

// Raw says octets as they are.
func Raw(octets string) Action { return step(func(c *session) { c.say(octets) }) }

// Repeat says octets n times, until the peer no longer listens.
func Repeat(octets string, n int) Action {
	return step(func(c *session) {
		chunk := max(1, 16<<10/len(octets))
		for left := n; left > 0 && !c.closed; left -= chunk {
			c.say(strings.Repeat(octets, min(left, chunk)))
		}
	})
}

// Drip says octets one by one, each in a write of its own, with a pause of every
// between them (0: none).
func Drip(octets string, every time.Duration) Action {
	return step(func(c *session) {
		for i := range len(octets) {
			if i > 0 && every > 0 {
				c.pause(every)
			}
			if c.closed {
				return
			}
			c.say(octets[i : i+1])
		}
	})
}

// DripNormal is Drip with the normal reply of the phase.
func DripNormal(every time.Duration) Action {
	return step(func(c *session) { Drip(c.normal, every).run(c) })
}

// Close closes the connection in order (FIN).
func Close() Action { return step(func(c *session) { c.close() }) }

// Reset aborts the connection (RST).
func Reset() Action {
	return step(func(c *session) {
		if tcp, ok := c.raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		c.abort()
	})
}

// Stall does nothing more, neither reads nor writes, until the Server is closed.
func Stall() Action { return StallUntil(nil) }

// StallUntil does nothing until release is closed or the Server is.
func StallUntil(release <-chan struct{}) Action {
	return step(func(c *session) {
		select {
		case <-release:
		case <-c.server.done:
			c.close()
		}
	})
}

// Delay does nothing for a time (best used under testing/synctest).
func Delay(d time.Duration) Action { return step(func(c *session) { c.pause(d) }) }

// Do calls f.
func Do(f func()) Action { return step(func(*session) { f() }) }

// Keep records the message as kept, whatever is said about it.
func Keep() Action { return step(func(c *session) { c.keep() }) }

// Then does one action after the other.
func Then(actions ...Action) Action {
	var all Action
	for _, a := range actions {
		if len(a.steps) == 0 {
			a = Normal()
		}
		all.steps = append(all.steps, a.steps...)
	}
	return all
}

// Always is the hook that always chooses a.
func Always(a Action) Hook { return func(Session) Action { return a } }

// Once is the hook that chooses a the first time and normal behaviour from then on.
func Once(a Action) Hook { return Times(1, a) }

// Times is the hook that chooses a the first n times.
func Times(n int, a Action) Hook {
	var calls atomic.Int64
	return func(Session) Action {
		if calls.Add(1) <= int64(n) {
			return a
		}
		return Action{}
	}
}

// Nth is the hook that chooses a at the nth call only, from 1.
func Nth(n int, a Action) Hook {
	var calls atomic.Int64
	return func(Session) Action {
		if calls.Add(1) == int64(n) {
			return a
		}
		return Action{}
	}
}

func step(f func(*session)) Action { return Action{steps: []func(*session){f}} }

func (a Action) run(c *session) {
	if len(a.steps) == 0 {
		c.sayNormal()
		return
	}
	c.flush()
	for _, f := range a.steps {
		if c.closed {
			return
		}
		f(c)
	}
}
