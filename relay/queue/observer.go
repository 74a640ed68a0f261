package queue

import (
	"time"

	"postern/internal/pg"
)

// Observer receives what the queue writes and claims, for metrics. A nil func is skipped.
// They are called between two statements and must not block.
type Observer struct {
	Commit func(Commit)
	Claim  func(Claim)
}

// Watcher receives all committed mail and the end of each attempt. It must not block, and its
// panics affect nothing else.
type Watcher interface {
	Accepted(m *Message, rcpts []Recipient)
	Ended(o *Outcome)
}

// accepted tells the watcher of a message, for whose commit its client waits.
func (q *Queue) accepted(j *submittal) {
	if q.cfg.Watcher != nil {
		_ = q.cfg.Guard.Try("queue: counting mail", func() error { q.cfg.Watcher.Accepted(&j.m, j.rcpts); return nil })
	}
}

func (q *Queue) largeStored() {
	if q.cfg.LargeStored != nil {
		q.cfg.LargeStored()
	}
}

// ended tells the watcher of outcomes, which are written.
func (q *Queue) ended(group []ending) {
	if q.cfg.Watcher == nil {
		return
	}
	_ = q.cfg.Guard.Try("queue: counting outcomes", func() error {
		for i := range group {
			if e := &group[i]; !e.release && !e.expired {
				q.cfg.Watcher.Ended(&e.Outcome)
			}
		}
		return nil
	})
}

// Work is what a commit contains.
type Work string

const (
	WorkEnqueue Work = "enqueue"       // a group of accepted messages
	WorkLarge   Work = "enqueue_large" // one accepted message with a large body
	WorkNotice  Work = "notice"        // a notice to a sender
	WorkSettle  Work = "settle"        // a group of outcomes
)

// Commit is one transaction of the queue, from its first octet to its answer.
type Commit struct {
	Work  Work
	Items int // messages, or outcomes
	Took  time.Duration
	Fate  Fate
}

// Fate is how a transaction ended, as far as is known.
type Fate string

const (
	Committed Fate = "committed"
	Undone    Fate = "failed"  // it changed nothing
	InDoubt   Fate = "unknown" // it may have succeeded; the queue asks again
)

// Claim is one claim of due recipients.
type Claim struct {
	Messages, Recipients int
	Took                 time.Duration
	Err                  error
}

// committed tells of a transaction that began at a time of this process.
func (q *Queue) committed(work Work, items int, began time.Time, err error) {
	tell := q.cfg.Observer.Commit
	if tell == nil {
		return
	}
	fate := Committed
	if err != nil {
		fate = Undone
		if pg.CertaintyOf(err) == pg.Uncertain {
			fate = InDoubt
		}
	}
	tell(Commit{Work: work, Items: items, Took: time.Since(began), Fate: fate})
}

func (q *Queue) claimed(list []*Delivery, began time.Time, err error) {
	tell := q.cfg.Observer.Claim
	if tell == nil {
		return
	}
	c := Claim{Messages: len(list), Took: time.Since(began), Err: err}
	for _, d := range list {
		c.Recipients += len(d.Recipients)
	}
	tell(c)
}

// Stats is a moment's view of this node's side of the queue, for metrics.
type Stats struct {
	Epoch      int64         // that this node lives in and trusts, 0 when there is none
	LeaseLeft  time.Duration // for which it is trusted without another heartbeat
	Down       bool          // the database does not answer
	Full       bool          // nothing is accepted, for the disk of the database is full
	EpochsLost int64         // ever
	InDoubt    int64         // messages whose commit is being asked about
	Voiding    int           // refused messages that may be stored and are to be removed
	InHand     int           // messages that this process has in hand
	Unsettled  int           // outcomes that wait to be written
	Fenced     int64         // outcomes that came after their epoch had lost the recipient, ever
}

// Stats returns the counts of now.
func (q *Queue) Stats() Stats {
	s := Stats{
		Epoch: q.epochs.valid(), Down: q.epochs.down() != nil, Full: q.room.Refuses() != nil, EpochsLost: q.epochs.lost.Load(),
		InDoubt: q.commits.doubted.Load(), Unsettled: len(q.settles.in), Fenced: q.settles.fenced.Load(),
	}
	if l := q.epochs.current.Load(); l != nil {
		s.LeaseLeft = max(0, q.cfg.Trust-(q.clock.Now()-l.sent))
	}
	q.inHand.mu.Lock()
	s.InHand = len(q.inHand.rows)
	q.inHand.mu.Unlock()
	q.commits.voids.mu.Lock()
	s.Voiding = len(q.commits.voids.list)
	q.commits.voids.mu.Unlock()
	return s
}
