package rig

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Fate is what a client knows of a message that it submitted.
type Fate string

const (
	Accepted Fate = "accepted" // 2yz to the final dot
	Refused  Fate = "refused"  // 4yz or 5yz to the final dot
	NotSent  Fate = "not sent" // the final dot was never sent
	Unknown  Fate = "unknown"  // the dot may have been sent and no complete reply came
)

// Sent is one message that a client submitted. No client submits one twice.
type Sent struct {
	ID    string   // names the message in its X-Load-Id and Message-ID fields and all over its body
	Node  string   // where it was submitted
	From  string   // the envelope
	To    []string // the recipients that were accepted
	Sum   [32]byte // SHA-256 of the text from X-Load-Id on
	Date  bool     // the client gave a Date field
	DotAt time.Time
	Fate  Fate
	Reply string // to the dot, or what was lost where
}

// Ledger is what clients were told, in order. It is safe for concurrent use.
type Ledger struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	sent     []Sent
	accepted int
	replies  []string // every 5yz reply, to whatever
	lost     map[string]int
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{changed: make(chan struct{}), lost: make(map[string]int)}
}

func (l *Ledger) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Ledger) add(s Sent) {
	l.change(func() {
		l.sent = append(l.sent, s)
		if s.Fate == Accepted {
			l.accepted++
		}
	})
}

// trouble notes a step of a session that failed: 5yz replies in full.
func (l *Ledger) trouble(err error) {
	l.change(func() {
		step, ok := errors.AsType[*stepError](err)
		switch {
		case !ok:
			l.lost[err.Error()]++
		case step.code >= 500:
			l.replies = append(l.replies, step.Error())
		default:
			l.lost[fmt.Sprintf("%s %d", step.step, step.code)]++
		}
	})
}

// Sent returns what was submitted so far.
func (l *Ledger) Sent() []Sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sent)
}

// Permanent returns the 5yz replies so far.
func (l *Ledger) Permanent() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.replies)
}

// Accepted returns how many messages were accepted so far.
func (l *Ledger) Accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

// WaitAccepted returns when n messages were accepted, false if that takes too long.
func (l *Ledger) WaitAccepted(n int) bool {
	return l.wait(func() bool { return l.accepted >= n })
}

// WaitFailed returns when a step was answered with a code, false if that takes too long.
func (l *Ledger) WaitFailed(step string, code int) bool {
	return l.wait(func() bool { return l.lost[fmt.Sprintf("%s %d", step, code)] > 0 })
}

// wait waits for cond, which is asked under mu.
func (l *Ledger) wait(cond func() bool) bool {
	patience := time.NewTimer(Patience)
	defer patience.Stop()
	for {
		l.mu.Lock()
		enough, changed := cond(), l.changed
		l.mu.Unlock()
		if enough {
			return true
		}
		select {
		case <-changed:
		case <-patience.C:
			return false
		}
	}
}

// String counts the fates and the troubles.
func (l *Ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	fates := map[Fate]int{}
	for i := range l.sent {
		fates[l.sent[i].Fate]++
	}
	return fmt.Sprintf("%d accepted, %d refused, %d not sent, %d unknown; steps that failed: %v; 5yz: %q",
		fates[Accepted], fates[Refused], fates[NotSent], fates[Unknown], l.lost, l.replies)
}
