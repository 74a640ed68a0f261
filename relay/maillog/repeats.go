package maillog

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// How many lines a minute a peer can cause by doing the same again and again. The others
// are counted, and at the end of the minute one line "repeated" tells how many they were.
const (
	strangerLines = 1   // of a kind, for a network
	guessLines    = 10  // wrong passwords, for a network: admins look for the names tried
	userLines     = 100 // of a kind, for a user who has logged in

	// maxRepeats bounds the networks and kinds that are told apart in a minute, and the
	// users and kinds. Those beyond are counted together.
	maxRepeats = 1000
)

// repeat is the key by which lines are counted together: their kind, which we choose, and
// the network or user that caused them. Without either it counts all others.
type repeat struct {
	kind    string
	network netip.Prefix
	user    string
}

// tally counts the lines of a key in this minute, written or not, and those that it may have.
type tally struct{ came, lines int }

// repeats bounds the lines that peers can cause at will.
type repeats struct {
	log *slog.Logger

	mu        sync.Mutex
	strangers map[repeat]tally
	users     map[repeat]tally
	timer     *time.Timer // of the end of the minute; nil: nothing is counted
}

// Allow reports whether a line may be written about what client did, for lines that have
// no function here. kind names what is counted together.
func (l *Logger) Allow(kind string, client netip.AddrPort) bool {
	return l.repeats.allow(repeat{kind: kind, network: networkOf(client.Addr())}, strangerLines)
}

// Flush writes how many lines were left out. It is for the end of the process; until then
// that is written a minute after the first of them.
func (l *Logger) Flush() { l.repeats.flush() }

func (r *repeats) allow(key repeat, lines int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		r.strangers, r.users = make(map[repeat]tally), make(map[repeat]tally)
		r.timer = time.AfterFunc(time.Minute, r.flush)
	}
	counted := r.strangers
	if key.user != "" {
		counted = r.users
	}
	if _, known := counted[key]; !known && len(counted) >= maxRepeats {
		key = repeat{kind: key.kind}
	}
	t := tally{counted[key].came + 1, lines}
	counted[key] = t
	return t.came <= lines
}

func (r *repeats) flush() {
	r.mu.Lock()
	strangers, users := r.strangers, r.users
	if r.timer != nil {
		r.timer.Stop()
	}
	r.strangers, r.users, r.timer = nil, nil, nil
	r.mu.Unlock()
	for _, counted := range []map[repeat]tally{strangers, users} {
		for key, t := range counted {
			r.tell(key, t.came-t.lines)
		}
	}
}

// tell logs that lines were left out. Event "repeated".
func (r *repeats) tell(key repeat, more int) {
	if more <= 0 {
		return
	}
	e := begin(r.log, slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("what", key.kind)
	e.text("user", key.user)
	if key.network.IsValid() {
		e.text("network", key.network.String())
	}
	e.add(slog.Int("more", more))
	e.end("repeated")
}

// networkOf is an IPv4 address, or the /64 that one IPv6 subscriber has.
func networkOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	network, _ := ip.Prefix(bits) // the zero Prefix for no address at all
	return network
}
