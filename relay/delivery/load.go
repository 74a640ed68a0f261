package delivery

import "postern/internal/share"

// loadPart is the part of the free room that one user may come to: alone it has two thirds.
const loadPart = 2

// load is the room for the engine's mail, in messages and in octets of memory.
type load struct {
	messages *share.Pool
	octets   *share.Pool
	room     chan struct{} // signalled when something was freed
}

func newLoad(messages int, octets int64) load {
	return load{share.New(int64(messages), loadPart), share.New(octets, loadPart), make(chan struct{}, 1)}
}

// resize sets how many octets have room. It evicts nothing.
func (l *load) resize(octets int64) {
	l.octets.Resize(octets)
	l.freed()
}

// freed wakes the claim loop, which waits for room.
func (l *load) freed() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}

// fits reports whether one more message of so many octets has room.
func (l *load) fits(user userOf, octets int64) bool {
	if !l.messages.Fits(1, user) {
		return false
	}
	used, _ := l.octets.Use()
	return used == 0 || l.octets.Fits(octets, user)
}

// free returns how many more messages and octets have room; none when either is used up.
func (l *load) free() (messages, octets int64) {
	used, size := l.messages.Use()
	usedOctets, sizeOctets := l.octets.Use()
	messages, octets = size-used, sizeOctets-usedOctets
	if messages <= 0 || octets <= 0 {
		return 0, 0
	}
	return messages, octets
}

func (l *load) add(user userOf, octets int64) {
	l.messages.Add(1, user)
	l.octets.Add(octets, user)
}

// grow counts more octets for a message already counted.
func (l *load) grow(user userOf, octets int64) { l.octets.Add(octets, user) }

func (l *load) sub(user userOf, octets int64) {
	l.messages.Give(1, user)
	l.octets.Give(octets, user)
	l.freed()
}

// filled lists the users that have their whole share of either.
func (l *load) filled() (users []int64) {
	_, octets := l.octets.Use()
	for _, h := range append(l.messages.Filled(1), l.octets.Filled(octets/100)...) {
		users = append(users, int64(h.(userOf)))
	}
	return users
}
