package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// An arrival is one message as the sink saw it. Its slices are the sink's.
type arrival struct {
	run    []byte
	n      int
	from   []byte
	rcpts  [][]byte
	intact bool // its digest is right
}

// state of a message on the sender's side.
type state uint8

const (
	unsent    state = iota // never answered at the final dot: may arrive or not
	acked                  // 250: must arrive once
	forbidden              // 4xx or 5xx: must not arrive
)

// A ledger holds what was acknowledged against what arrived.
type ledger struct {
	corpus *corpus

	mu      sync.Mutex
	states  []state
	copies  []uint8 // of message n for recipient k at n*recipients+k
	missing int     // acknowledged and not there yet, in recipients
	sent    bool    // all senders have ended
	done    chan struct{}
	last    time.Time // of the last first arrival
	count   tally
}

// tally is the ledger's verdict, in recipients unless it says messages.
type tally struct {
	Accepted int `json:"accepted_messages"`
	Refused  int `json:"refused_messages"`
	Arrived  int `json:"arrived"`
	Lost     int `json:"lost"`      // acknowledged, never arrived
	Doubled  int `json:"doubled"`   // copies beyond the first
	Altered  int `json:"altered"`   // messages whose digest is wrong
	Envelope int `json:"envelope"`  // wrong sender, or a recipient of another message
	Refuted  int `json:"forbidden"` // refused, and arrived all the same
}

// sound says whether all is as it must be.
func (t tally) sound() bool {
	return t.Lost == 0 && t.Doubled == 0 && t.Altered == 0 && t.Envelope == 0 && t.Refuted == 0
}

func (t tally) String() string {
	if t.sound() {
		return "every acknowledged message arrived once and unaltered"
	}
	return fmt.Sprintf("%d lost, %d doubled, %d altered, %d with a wrong envelope, %d refused and delivered",
		t.Lost, t.Doubled, t.Altered, t.Envelope, t.Refuted)
}

func newLedger(c *corpus) *ledger {
	return &ledger{
		corpus: c,
		states: make([]state, len(c.digests)),
		copies: make([]uint8, len(c.digests)*c.recipients),
		done:   make(chan struct{}),
	}
}

// answered notes the reply to the final dot of message n.
func (l *ledger) answered(n int, s state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states[n] = s
	if s != acked {
		l.count.Refused++
		return
	}
	l.count.Accepted++
	for _, copies := range l.copies[n*l.corpus.recipients:][:l.corpus.recipients] {
		if copies == 0 {
			l.missing++
		}
	}
}

// arrive notes a message at the sink.
func (l *ledger) arrive(a arrival) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.n >= len(l.states) || !a.intact {
		l.count.Altered++
		return
	}
	if string(a.from) != l.corpus.from {
		l.count.Envelope++
	}
	for _, rcpt := range a.rcpts {
		k, ok := l.recipient(rcpt, a.n)
		if !ok {
			l.count.Envelope++
			continue
		}
		l.copy(a.n, k, now)
	}
	l.settle()
}

// copy counts one copy of message n for recipient k.
func (l *ledger) copy(n, k int, now time.Time) {
	copies := &l.copies[n*l.corpus.recipients+k]
	if *copies > 0 {
		l.count.Doubled++
		return
	}
	*copies = 1
	l.count.Arrived++
	l.last = now
	if l.states[n] == acked {
		l.missing--
	}
}

// recipient says which one of message n the address is.
func (l *ledger) recipient(address []byte, n int) (k int, ok bool) {
	local, domain, found := bytes.Cut(address, []byte("@"))
	if !found || string(domain) != l.corpus.domain || len(local) != len("m.r000")+numberLen {
		return 0, false
	}
	if at, err := strconv.Atoi(string(local[1 : 1+numberLen])); err != nil || at != n {
		return 0, false
	}
	k, err := strconv.Atoi(string(local[len(local)-3:]))
	return k, err == nil && k >= 0 && k < l.corpus.recipients
}

// settle tells wait when nothing is missing.
func (l *ledger) settle() {
	if !l.sent || l.missing > 0 {
		return
	}
	select {
	case <-l.done:
	default:
		close(l.done)
	}
}

// progress is how many recipients have their message.
func (l *ledger) progress() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count.Arrived
}

// wait returns when all that was acknowledged has arrived, or when nothing has
// arrived for the time of patience. The senders must have ended.
func (l *ledger) wait(ctx context.Context, patience time.Duration) {
	l.mu.Lock()
	l.sent = true
	l.settle()
	l.mu.Unlock()
	check := time.NewTicker(patience)
	defer check.Stop()
	for seen := l.progress(); ; {
		select {
		case <-l.done:
			return
		case <-ctx.Done():
			return
		case <-check.C:
			now := l.progress()
			if now == seen {
				return
			}
			seen = now
		}
	}
}

// verdict closes the account.
func (l *ledger) verdict() (tally, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.count
	for n, s := range l.states {
		for _, copies := range l.copies[n*l.corpus.recipients:][:l.corpus.recipients] {
			switch {
			case s == acked && copies == 0:
				t.Lost++
			case s == forbidden && copies > 0:
				t.Refuted++
			}
		}
	}
	return t, l.last
}
