package maillog

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"postern/internal/share"
)

// class is what bounds the lines that peers can cause by doing the same again and again.
// Those beyond are counted, and at the end of the minute one line "repeated" tells how many
// they were. Each class tells its own peers apart: lines that cost a stranger nothing do
// not hide guesses, and strangers do not hide users.
type class struct {
	lines int // a minute, of a kind, for a network or user
	apart int // networks or users, and kinds, that are told apart in a minute; those beyond are counted together
}

var (
	strangers = class{lines: 1, apart: 1000}
	// guesses are wrong passwords: admins look for the names tried. A network has fewer that
	// are judged, but for its first.
	guesses = class{lines: 20, apart: 500}
	// users have logged in: there are as many as the admin made.
	users = class{lines: 100, apart: 20_000}
)

// repeat is the key by which lines are counted together: their kind, which we choose, and
// the network or user that caused them. Without either it counts all others.
type repeat struct {
	kind    string
	network netip.Prefix
	user    string
}

// repeats bounds the lines that peers can cause at will.
type repeats struct {
	log *slog.Logger

	mu    sync.Mutex
	came  map[class]map[repeat]int // in this minute
	timer *time.Timer              // of its end; nil: nothing is counted
}

// Allow reports whether a line may be written about client, for lines that have no function
// here. Lines of the same kind are counted together.
func (l *Logger) Allow(kind string, client netip.AddrPort) bool {
	return l.repeats.allow(repeat{kind: kind, network: share.Network(client.Addr())}, strangers)
}

// Flush writes how many lines were left out, at the end of the process; until then that is
// written a minute after the first of them.
func (l *Logger) Flush() { l.repeats.flush() }

func (r *repeats) allow(key repeat, of class) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		r.came = map[class]map[repeat]int{strangers: {}, guesses: {}, users: {}}
		r.timer = time.AfterFunc(time.Minute, r.flush)
	}
	came := r.came[of]
	if _, known := came[key]; !known && len(came) >= of.apart {
		key = repeat{kind: key.kind}
	}
	came[key]++
	return came[key] <= of.lines
}

func (r *repeats) flush() {
	r.mu.Lock()
	all := r.came
	if r.timer != nil {
		r.timer.Stop()
	}
	r.came, r.timer = nil, nil
	r.mu.Unlock()
	for of, came := range all {
		for key, n := range came {
			r.tell(key, n-of.lines)
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
