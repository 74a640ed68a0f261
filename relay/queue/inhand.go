package queue

import "sync"

// inHand counts the recipients of each message that this process has in hand: that are
// being enqueued, sent or settled. A row of our epoch that is not in hand was lost on its
// way to us.
type inHand struct {
	mu   sync.Mutex
	rows map[ID]int
}

func newInHand() *inHand { return &inHand{rows: make(map[ID]int)} }

func (h *inHand) add(id ID, n int) {
	h.mu.Lock()
	h.rows[id] += n
	h.mu.Unlock()
}

func (h *inHand) remove(id ID, n int) {
	h.mu.Lock()
	if left := h.rows[id] - n; left > 0 {
		h.rows[id] = left
	} else {
		delete(h.rows, id)
	}
	h.mu.Unlock()
}

func (h *inHand) has(id ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rows[id] > 0
}
