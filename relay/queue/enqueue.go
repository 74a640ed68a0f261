package queue

import (
	"context"
	"sync/atomic"
	"time"

	"postern/relay/queue/content"
	"postern/relay/queue/insert"
)

// Bounds of one group commit: what one statement and one fsync carry at most.
const (
	groupMessages = 64
	groupBytes    = 8 << 20
	smallBody     = 1 << 20 // a message with a larger body is a group of its own
)

// submittal is one message on its way into the queue.
type submittal struct {
	m      Message
	rcpts  []Recipient // without duplicates once it is accepted
	keys   []insert.RcptKey
	body   content.Body
	epoch  int64
	parked bool // to be released when it is committed
	until  time.Time
	taken  atomic.Bool // by a committer, or by its own timeout
	done   chan result // buffered
}

// result is how a submittal ended; without an error after a durable commit.
type result struct {
	insert.Result
	again bool // it has not ended: it is to be submitted again
}

func failed(err error) result { return result{Result: insert.Result{Err: err}} }

// Accepted is the result of a commit.
type Accepted struct {
	Delivery *Delivery // of the recipients that this node owns; nil when they wait for any node's claim
	Held     bool      // they wait for an admin to release them: their user is on hold

	// Stored is how many recipients are in the queue for this message. The others are duplicates,
	// accepted before: Duplicates of them, the oldest by the message First.
	Stored, Duplicates int
	First              ID
}

// Enqueue commits m durably in a group with others. With owned the recipients are
// born owned by this node and returned as a Delivery, whose Body is body with one
// more reference, unless the user is on hold. A message that is over a limit is refused
// with a *quota.Over in the *smtp.Error, one whose key stands for another with an *insert.OtherContent. ctx does not cancel a commit that has begun. An *smtp.Error
// has the reply for the client; after it the message is not in the queue and never will be.
//
// One exception is documented in docs/queue-states.md: a commit that stays in doubt for
// Config.Budget is refused and voided, and a crash of this process before the void leaves
// the message in the queue.
func (q *Queue) Enqueue(ctx context.Context, m Message, rcpts []Recipient, body content.Body, owned bool) (Accepted, error) {
	if err := ctx.Err(); err != nil {
		return Accepted{}, refusal(err)
	}
	if !q.enter() {
		return Accepted{}, refusal(errClosed)
	}
	defer q.inflight.Done()
	epoch := q.epochs.valid()
	if epoch == 0 {
		if err := q.epochs.down(); err != nil {
			return Accepted{}, refusal(err)
		}
		return Accepted{}, refusal(errEpochLost)
	}
	if err := q.room.Refuses(); err != nil {
		return Accepted{}, refusal(err)
	}
	j := &submittal{m: m, rcpts: rcpts, body: body, epoch: epoch, parked: !owned,
		until: time.Now().Add(q.cfg.Budget), done: make(chan result, 1)}
	j.m.Size = body.Size()
	j.keys = m.Key.Each(rcpts)
	q.inHand.add(m.ID, len(rcpts))
	r := q.commits.submit(j)
	a := Accepted{Held: r.Held, Stored: len(j.rcpts), Duplicates: len(r.Copies), First: r.First}
	switch {
	case r.Err != nil:
		return Accepted{}, refusal(r.Err)
	case a.Stored == 0:
	case r.Held || !owned:
		q.settles.park(j)
	default:
		body.Retain()
		a.Delivery = &Delivery{Message: j.m, Recipients: j.rcpts, Body: body, Epoch: epoch}
	}
	return a, nil
}

// gather takes what is ready in more, at most limit in all, without waiting.
// full, if not nil, is called with each and reports that the group is full.
func gather[T any](first T, more <-chan T, limit int, full func(T) bool) []T {
	group := []T{first}
	if full != nil && full(first) {
		return group
	}
	for len(group) < limit {
		select {
		case next, ok := <-more:
			if !ok {
				return group
			}
			group = append(group, next)
			if full != nil && full(next) {
				return group
			}
		default:
			return group
		}
	}
	return group
}
