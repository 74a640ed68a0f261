package delivery

import "sync"

// load counts what the engine holds, in messages and in octets of memory.
type load struct {
	maxMessages int
	maxOctets   int64
	room        chan struct{} // signalled when something was freed

	mu       sync.Mutex
	messages int
	octets   int64
}

// resize sets how many octets have room. What is held stays.
func (l *load) resize(octets int64) {
	l.mu.Lock()
	l.maxOctets = octets
	l.mu.Unlock()
	l.freed()
}

// freed wakes who waits for room.
func (l *load) freed() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}

// fits reports whether one more message of so many octets has room.
func (l *load) fits(octets int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.messages < l.maxMessages && (l.octets+octets <= l.maxOctets || l.messages == 0)
}

// free returns how many more messages have room; 0 when memory is used up.
func (l *load) free() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.octets >= l.maxOctets {
		return 0
	}
	return max(0, l.maxMessages-l.messages)
}

func (l *load) add(octets int64) {
	l.mu.Lock()
	l.messages++
	l.octets += octets
	l.mu.Unlock()
}

// grow counts more octets for a message that is there.
func (l *load) grow(octets int64) {
	l.mu.Lock()
	l.octets += octets
	l.mu.Unlock()
}

func (l *load) sub(octets int64) {
	l.mu.Lock()
	l.messages--
	l.octets -= octets
	l.mu.Unlock()
	l.freed()
}
