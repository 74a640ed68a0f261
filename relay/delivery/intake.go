package delivery

import (
	"sync"
	"time"

	"postern/relay/queue"
)

// intake holds deliveries between Take and the dispatcher. Its length is bounded
// by the load.
type intake struct {
	wake chan struct{}

	mu     sync.Mutex
	list   []*queue.Delivery
	jobs   []*job // that go on to their next way
	closed bool
}

// put adds to one of the lists of in. It returns false when the intake is closed.
func put[T any](in *intake, list *[]T, it T) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	*list = append(*list, it)
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return true
}

// take swaps the new deliveries with spare, an empty slice to be filled next.
func (in *intake) take(spare []*queue.Delivery) ([]*queue.Delivery, []*job) {
	in.mu.Lock()
	defer in.mu.Unlock()
	list, jobs := in.list, in.jobs
	in.list, in.jobs = spare, nil
	return list, jobs
}

func (in *intake) close() ([]*queue.Delivery, []*job) {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	return in.take(nil)
}

// Reserve reports whether a message of a user and of size octets may be born owned and handed
// over by Take once it is committed. It reserves nothing, so a failed commit needs no undo;
// sessions that ask at the same moment may together exceed the bounds by one message each.
func (e *Engine) Reserve(user, size int64) bool {
	if e.closing() || time.Since(time.Unix(0, e.fullAt.Load())) < crowdedPause {
		return false
	}
	return e.load.fits(userOf(user), e.weight(size))
}

// Take takes a committed delivery over, with its reference to the body. It never
// blocks.
func (e *Engine) Take(d *queue.Delivery) {
	e.load.add(userOf(d.Message.UserID), e.weightOf(d))
	if !put(&e.intake, &e.intake.list, d) {
		e.handBack(d, 0)
	}
}

// weight is the memory that a body of size octets counts for.
func (e *Engine) weight(size int64) int64 {
	if size > e.cfg.InMemory {
		return 0
	}
	return size
}

// About how much memory a recipient and a job take. Those of a message with one
// recipient are covered by the bound on messages; a job of its own may need a
// destination and a connection's goroutine of its own.
const (
	recipientWeight = 256
	jobWeight       = 16 << 10
)

// recipientsWeigh is the weight of recipients, with their strings: an ORCPT may have
// five hundred octets. The first is part of its message.
func recipientsWeigh(rcpts []queue.Recipient) (octets int64) {
	for i := 1; i < len(rcpts); i++ {
		r := &rcpts[i]
		octets += recipientWeight + int64(len(r.Address.Local)+len(r.Address.Domain)+len(r.ORcpt))
	}
	return octets
}

// weightOf is the weight of a delivery that was not split into jobs yet.
func (e *Engine) weightOf(d *queue.Delivery) int64 {
	return e.weight(d.Body.Size()) + recipientsWeigh(d.Recipients)
}

// handBack releases a whole delivery that was never split into jobs, due after wait.
func (e *Engine) handBack(d *queue.Delivery, wait time.Duration) {
	weight := e.weightOf(d)
	e.cfg.Queue.Release(d, numbers(d.Recipients), wait)
	d.Body.Drop()
	e.load.sub(userOf(d.Message.UserID), weight)
}

func (e *Engine) releaseIntake() {
	list, jobs := e.intake.close()
	for _, d := range list {
		e.handBack(d, 0)
	}
	for _, j := range jobs {
		e.release(j, 0)
	}
}

const (
	forgetEvery = 10 * time.Second // removes destinations without work
	followEvery = time.Second      // has the mail in lines follow changed settings
)

// follow has upstreams with mail in their lines, or that are connected to, take over changed
// settings. New mail brings them along, but for an upstream that takes none there may come none for
// hours. Mail in the line of one that is paused or gone goes back to the queue, which has each
// recipient's next way, or why it waits. Only the dispatcher calls it.
func (e *Engine) follow() {
	for _, d := range e.all() {
		d.mu.Lock()
		idle := d.upstream == nil || d.waiting.len() == 0 && d.workers == d.live // or all converse
		d.mu.Unlock()
		if idle {
			continue
		}
		way, err := e.cfg.Routes.Named(e.work, d.via)
		switch {
		case err != nil: // nothing is known now
		case way.Err != nil:
			d.handBack()
		default:
			d.mu.Lock()
			d.update(way.Upstream)
			d.hire()
			d.mu.Unlock()
		}
	}
}

// dispatchLoop splits deliveries into jobs and gives them to their destinations.
// Only it adds destinations and forgets them.
func (e *Engine) dispatchLoop() {
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	follow := time.NewTicker(followEvery)
	defer follow.Stop()
	var spare []*queue.Delivery
	for {
		e.turned.Store(time.Now().UnixNano())
		select {
		case <-e.work.Done():
			return
		case <-forget.C:
			e.forget()
			e.windows.tend(time.Now())
		case <-follow.C:
			e.follow()
		case <-e.intake.wake:
		}
		list, jobs := e.intake.take(spare)
		for _, j := range jobs {
			e.advance(j)
		}
		for i, d := range list {
			e.dispatch(d)
			list[i] = nil
			e.turned.Store(time.Now().UnixNano())
		}
		spare = list[:0]
	}
}

// numbers lists the indices of recipients.
func numbers(rcpts []queue.Recipient) []int {
	ns := make([]int, len(rcpts))
	for i := range rcpts {
		ns[i] = rcpts[i].N
	}
	return ns
}
