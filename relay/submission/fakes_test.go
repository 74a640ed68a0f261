package submission

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"postern/auth"
	"postern/relay/queue"
	"postern/relay/queue/content"
)

// stored is one message as the fake queue was given it.
type stored struct {
	queue.Message
	Rcpts []queue.Recipient
	Body  string
	Owned bool
}

// fakeQueue commits to memory.
type fakeQueue struct {
	mu        sync.Mutex
	messages  []stored
	refuse    func(n int, m queue.Message) error // n counts calls from 0; nil: never
	calls     int
	available error
	discard   bool // keep no bodies
	// copies says which recipients are duplicates, of which message; nil: none
	copies func(m queue.Message) (n int, first queue.ID)
}

func (q *fakeQueue) Available() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.available
}

func (q *fakeQueue) Enqueue(ctx context.Context, m queue.Message, rcpts []queue.Recipient, b content.Body, owned bool) (queue.Accepted, error) {
	if err := ctx.Err(); err != nil {
		return queue.Accepted{}, err
	}
	q.mu.Lock()
	n, refuse := q.calls, q.refuse
	q.calls++
	q.mu.Unlock()
	if refuse != nil {
		if err := refuse(n, m); err != nil {
			return queue.Accepted{}, err
		}
	}
	if err := ctx.Err(); err != nil { // a commit that was cancelled under way
		return queue.Accepted{}, err
	}
	if b.Size() != m.Size {
		return queue.Accepted{}, errors.New("fake queue: the size is not the body's")
	}
	var text []byte
	if !q.discard {
		var err error
		if text, err = io.ReadAll(io.NewSectionReader(b, 0, b.Size())); err != nil || int64(len(text)) != b.Size() {
			return queue.Accepted{}, errors.Join(err, errors.New("fake queue: body not readable"))
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	a := queue.Accepted{Stored: len(rcpts)}
	if q.copies != nil {
		a.Duplicates, a.First = q.copies(m)
		if a.Stored -= a.Duplicates; a.Stored == 0 {
			return a, nil
		}
	}
	q.messages = append(q.messages, stored{m, rcpts, string(text), owned})
	if !owned {
		return a, nil
	}
	b.Retain()
	return queue.Accepted{Stored: a.Stored, Duplicates: a.Duplicates, First: a.First, Delivery: &queue.Delivery{Message: m, Recipients: rcpts, Body: b, Epoch: 1}}, nil
}

func (q *fakeQueue) all() []stored {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]stored(nil), q.messages...)
}

// forget empties the queue, for tests that run for long.
func (q *fakeQueue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages = nil
}

func (q *fakeQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// fakeVerifier knows alice@example.com with the password "secret".
type fakeVerifier struct {
	calls  atomic.Int64
	verify func(ctx context.Context, name, password string) (auth.Identity, error) // nil: as above
	id     auth.Identity                                                           // limits for alice
}

func (v *fakeVerifier) Verify(ctx context.Context, name, password string, peer auth.Peer) (auth.Identity, error) {
	v.calls.Add(1)
	if v.verify != nil {
		return v.verify(ctx, name, password)
	}
	if name != "alice@example.com" || password != "secret" {
		return auth.Identity{}, auth.ErrCredentials
	}
	id := v.id
	id.UserID, id.CredentialID, id.Name = 7, 9, name
	id.Senders = []string{"alice@example.com"}
	return id, nil
}

// fakeHandoff takes up to room messages.
type fakeHandoff struct {
	mu    sync.Mutex
	room  int
	taken []*queue.Delivery
}

func (h *fakeHandoff) Reserve(int64, int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.taken) < h.room
}

func (h *fakeHandoff) Take(d *queue.Delivery) {
	h.mu.Lock()
	h.taken = append(h.taken, d)
	h.mu.Unlock()
}

// finish delivers what was taken: it drops the bodies.
func (h *fakeHandoff) finish() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.taken {
		d.Body.Drop()
	}
	n := len(h.taken)
	h.taken = nil
	return n
}
