package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth/throttle"
	"postern/internal/pgtest"
)

// node is an Authenticator with its background work. It has no less patience with a
// slow machine than the test.
func node(t *testing.T, s *Store) *Authenticator {
	a := NewAuthenticator(s, patient)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return a
}

func (a *Authenticator) evaluated() int64 { return a.hashing.done.Load() + a.macs.Load() }

// guessing is a way to guess: whose password, and whence.
type guessing struct {
	name  string
	who   func(i int) string
	from  func(i int) netip.Addr
	limit int64 // guesses without any delay
}

// begin guesses at some nodes, each client as fast as it is answered, until ctx ends.
func (g guessing) begin(ctx context.Context, t *testing.T, clients int, nodes ...*Authenticator) (wait func()) {
	var guessers sync.WaitGroup
	var n atomic.Int64
	for client := range clients {
		guessers.Go(func() {
			for ctx.Err() == nil {
				i := int(n.Add(1))
				_, err := nodes[i%len(nodes)].Verify(ctx, g.who(i), fmt.Sprint("guess", i), at(g.from(client*100+i)))
				if err == nil {
					t.Error("a guess was right")
				} else if !errors.Is(err, ErrCredentials) {
					time.Sleep(20 * time.Millisecond) // a session has limits of its own
				}
			}
		})
	}
	return guessers.Wait
}

// slowed says that the nodes have counted so much that the longest distance holds.
func (g guessing) slowed(nodes ...*Authenticator) bool {
	return !slices.ContainsFunc(nodes, func(a *Authenticator) bool {
		return a.throttle.Distance(throttle.OriginOf(g.from(0), g.who(0)).Public()) < maxDistance
	})
}

// heldBack is what a login would have to wait for now, "" if for nothing.
func heldBack(t *testing.T, a *Authenticator, name string, from netip.Addr) string {
	t.Helper()
	try := newLoginTry(name, "pw", at(from))
	known, err := a.knownFrom(t.Context(), try)
	must(t, err)
	judges := try.from.Public()
	if known.address {
		judges = []throttle.Key{try.address}
	} else if known.network {
		judges = []throttle.Key{try.from.OwnNetwork()}
	}
	if d := a.throttle.Distance(judges); d > 0 {
		return fmt.Sprintf("is to keep %v between logins; known: %+v", d, known)
	}
	return ""
}

// A5: over two nodes on one database, however a guesser spreads, few guesses are
// compared; and the user, at home elsewhere, gets in meanwhile and is not held back.
func TestA5OverTwoNodes(t *testing.T) {
	t.Parallel()
	const clients = 16
	spread := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1}) }
	one := func(int) netip.Addr { return ip(7) }
	alice := func(int) string { return "alice" }
	tests := []guessing{
		{"one address, many passwords", alice, one, pairAllowance},
		{"many addresses, one account", alice, spread, accountAllowance},
		{"one password, many accounts", func(i int) string { return fmt.Sprint("user", i) }, one, narrowAllowance},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testStore(t)
			_, err := s.AddUser(t.Context(), NewUser{Name: "alice", Password: "pw"})
			must(t, err)
			nodes := []*Authenticator{node(t, s), node(t, s)}
			_, err = nodes[0].Verify(t.Context(), "alice", "pw", at(home))
			must(t, err)
			must(t, (&writing{store: s, notes: nodes[0].notes}).round(t.Context()))
			before := nodes[0].evaluated() + nodes[1].evaluated()

			began := time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wait := tt.begin(ctx, t, clients, nodes...)
			// Until both nodes know of so many that the longest distance holds on each.
			legitimate := int64(0)
			for until := began.Add(patience); !tt.slowed(nodes...); {
				if time.Now().After(until) {
					t.Fatal("guessing does not become slow")
				}
				for _, a := range nodes {
					a.successes.forget(func(struct{}) bool { return true })
					legitimate++
					if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
						t.Errorf("the user: %v", err)
					}
					if held := heldBack(t, a, "alice", home); held != "" {
						t.Errorf("the user %s", held)
					}
				}
			}
			cancel()
			wait()
			took := time.Since(began)
			got := nodes[0].evaluated() + nodes[1].evaluated() - before - legitimate
			// What each node let through before the first failures were counted, and shared,
			// and then one login for each distance.
			if limit := 2 * (tt.limit + clients + 6 + int64(took/maxDistance)); got > limit || got < tt.limit {
				t.Errorf("%d guesses compared in %v, allowance %d, limit %d", got, took, tt.limit, limit)
			}
			// A node that has just started knows what the others have seen: there is no
			// allowance left, only the longest distance.
			third := node(t, s)
			eventually(t, "a node that starts is told", func() bool { return tt.slowed(third) })
			began = time.Now()
			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			tt.begin(ctx, t, clients, third)()
			if got, most := third.evaluated(), 1+int64(time.Since(began)/maxDistance); got > most {
				t.Errorf("%d guesses compared by a node that starts, want at most %d", got, most)
			}
		})
	}
}

// While the database is away, failures are counted and kept, and the log says it once.
func TestSharingOutlivesTheDatabase(t *testing.T) {
	t.Parallel()
	good, away := testStore(t).db, testStore(t)
	away.pool().Close()
	one, two := throttle.New(), throttle.New()
	var out bytes.Buffer
	trouble := trouble{what: "sharing", log: slog.New(slog.NewTextHandler(&out, nil))}
	from := throttle.OriginOf(home, "alice")
	for range pairAllowance + 2 {
		fails(one, from, time.Now())
		trouble.heard(one.Share(t.Context(), away.db))
	}
	if s := out.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "WARN") {
		t.Errorf("log: %s", s)
	}
	trouble.heard(one.Share(t.Context(), good))
	must(t, two.Share(t.Context(), good))
	pair := []throttle.Key{from.Pair()}
	// What comes of two failures beyond the allowance, and of no other number.
	if a, b := one.Distance(pair), two.Distance(pair); a != time.Second/2 || b != a {
		t.Errorf("%s and %s between logins", a, b)
	}
	if s := out.String(); strings.Count(s, "\n") != 2 || !strings.Contains(s, "INFO") {
		t.Errorf("log: %s", s)
	}
}

// A5: with the database away no verdict is given, and nothing is counted.
func TestA5DatabaseAwayCountsNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := NewStore(db.Pool)
	s.cost = cheap
	_, secret := withSecret(1)
	a := NewAuthenticator(s, patient)
	db.Pool.Close()
	for i := range 100 {
		for _, password := range []string{"guess", secret} {
			if _, err := a.Verify(t.Context(), "alice", password, at(home)); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("try %d: %v, want ErrUnavailable", i, err)
			}
		}
	}
	if n := a.throttle.Len(); n != 0 {
		t.Errorf("%d counts", n)
	}
}

// locked is a node on which no public count lets anybody through for an hour.
func locked(s *Store, answered time.Duration, froms ...throttle.Origin) *Authenticator {
	a := NewAuthenticator(s, patient)
	a.longest = answered
	inAnHour := time.Now().Add(time.Hour)
	for _, from := range froms {
		for range 2 * wideAllowance {
			fails(a.throttle, from, inAnHour)
		}
	}
	return a
}

// M1: an address, or a network, where the user has logged in passes the locks on a node
// that has never seen it, and only for that user; an address is judged by a count of its
// own.
func TestM1HomeIsKnownToAllNodes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	for _, name := range []string{"alice", "bob"} {
		_, err := s.AddUser(ctx, NewUser{Name: name, Password: "pw"})
		must(t, err)
	}
	one := NewAuthenticator(s, patient)
	id, err := one.Verify(ctx, "alice", "pw", at(home))
	must(t, err)
	if !id.NewNetwork {
		t.Error("the first login is from a network that is not new")
	}
	must(t, (&writing{store: s, notes: one.notes}).round(ctx))

	neighbour := netip.MustParseAddr("192.0.2.200")
	everywhere := []throttle.Origin{throttle.OriginOf(home, "alice"), throttle.OriginOf(neighbour, "alice"), throttle.OriginOf(home, "bob"), throttle.OriginOf(ip(2), "alice")}
	refused := func(what, name string, from netip.Addr) {
		t.Helper()
		if _, err := locked(s, 10*time.Millisecond, everywhere...).Verify(ctx, name, "pw", at(from)); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another user there", "bob", home)
	refused("elsewhere", "alice", ip(2))
	two := locked(s, patience, everywhere...)
	stranger := []throttle.Key{throttle.OriginOf(home, "alice").OwnNetwork()}
	two.throttle.Failed(slices.Repeat(stranger, 50), time.Now()) // the neighbours guess
	if id, err = two.Verify(ctx, "alice", "pw", at(home)); err != nil || !id.NewNetwork {
		t.Errorf("at home: %+v, %v; a network is new for a day", id, err)
	}
	if held := heldBack(t, two, "alice", neighbour); held == "" {
		t.Error("a new address in the network is not judged by what failed in the network")
	}
	if _, err = locked(s, patience, everywhere...).Verify(ctx, "alice", "pw", at(neighbour)); err != nil {
		t.Errorf("at a new address at home: %v", err)
	}
	_, err = s.db.Exec(ctx, `update known_network set first_at = first_at - interval '25 hours'`)
	must(t, err)
	if id, err = locked(s, patience, everywhere...).Verify(ctx, "alice", "pw", at(home)); err != nil || id.NewNetwork {
		t.Errorf("a day later: %+v, %v", id, err)
	}
	_, err = s.db.Exec(ctx, `update known_network set last_at = now() - interval '31 days'`)
	must(t, err)
	refused("a month later", "alice", home)
	three := NewAuthenticator(s, patient)
	if id, err = three.Verify(ctx, "alice", "pw", at(home)); err != nil || !id.NewNetwork {
		t.Errorf("a month later, without a lock: %+v, %v", id, err)
	}
	must(t, (&writing{store: s, notes: three.notes}).round(ctx))
	var since float64
	must(t, s.db.QueryRow(ctx, `select max(extract(epoch from now() - first_at)) from known_network`).Scan(&since))
	if since > 60 {
		t.Errorf("after a month's gap it is known for %.0f s", since)
	}
}

// The last addresses of a user are known, and no more than so many; networks are not
// counted among them.
func TestM1AddressesKept(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	u, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	for i := range addressesKept + 20 {
		n := newNotes()
		for _, from := range []throttle.Origin{throttle.OriginOf(ip(i), ""), throttle.OriginOf(netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", i)), "")} {
			n.atHome(dwelling{u.ID, from.Narrow})
			n.atHome(dwelling{u.ID, from.Wide})
		}
		must(t, (&writing{store: s, notes: n}).round(ctx))
	}
	var addresses, networks int
	must(t, s.db.QueryRow(ctx, `
		select count(*) filter (where masklen(network) in (32, 64)), count(*) filter (where masklen(network) in (24, 48))
		from known_network`).Scan(&addresses, &networks))
	if addresses != addressesKept+2 || networks != 2*(addressesKept+20) { // two came with the last
		t.Errorf("%d addresses and %d networks are known", addresses, networks)
	}
	for i, want := range map[int]standing{addressesKept + 19: {true, true}, 0: {false, true}, 1000: {}} {
		if known, err := s.standing(ctx, "alice", throttle.OriginOf(ip(i), "alice")); err != nil || known != want {
			t.Errorf("%s: %+v, %v; want %+v", ip(i), known, err, want)
		}
	}
}
