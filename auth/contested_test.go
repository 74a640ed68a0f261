package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/auth/throttle"
	"postern/internal/longtest"
)

// at24 is an address in the /24 of home.
func at24(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

// besiege has clients guess, each as soon as it is answered, until the test is over; it
// returns when nobody is let through without a wait any more.
func besiege(t *testing.T, a *Authenticator, clients int, name func(i int) string, from func(i int) netip.Addr) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				guess := fmt.Sprint("guess", client, i)
				if _, err := a.Verify(ctx, name(client+i), guess, at(from(client))); err == nil {
					t.Error("a guess was right")
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); all.Wait() })
	time.Sleep(3 * time.Minute)
}

// logsIn is one right login without the help of what was verified before, and how long it
// took.
func logsIn(t *testing.T, a *Authenticator, password string, from netip.Addr) (time.Duration, error) {
	a.successes.forget(func(struct{}) bool { return true })
	began := time.Now()
	_, err := a.Verify(t.Context(), "alice", password, at(from))
	return time.Since(began), err
}

func alone(int) string { return "alice" }

// M1: from an address that the account is known from, a right password is judged
// immediately, whatever neighbours in the same /24 or /48 do.
func TestM1KnownAddressBesideNeighbours(t *testing.T) {
	t.Parallel()
	six := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%x::1", i)) }
	for network, in := range map[string]func(int) netip.Addr{"/24": at24, "/48": six} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
				if _, err := logsIn(t, a, "pw", in(1)); err != nil {
					t.Fatal(err)
				}
				besiege(t, a, 12, alone, func(i int) netip.Addr { return in(100 + i) })
				for range 50 {
					time.Sleep(time.Second)
					if d, err := logsIn(t, a, "pw", in(1)); err != nil || d > 0 {
						t.Errorf("%v after %s", err, d)
					}
				}
			})
		})
	}
}

// M1: an address that is new goes next, for its neighbours have failed more: in a network
// that is new to the account, and in one that is not; also when the neighbours guess at all
// accounts, and when those who guess at this one are everywhere else.
func TestM1NewAddressGoesNext(t *testing.T) {
	t.Parallel()
	spray := func(i int) string { return fmt.Sprint("user", i%50) }
	for siege, by := range map[string]func(t *testing.T, a *Authenticator){
		"at the account": func(t *testing.T, a *Authenticator) { besiege(t, a, 12, alone, at24) },
		"at all":         func(t *testing.T, a *Authenticator) { besiege(t, a, 12, spray, at24) },
		"from elsewhere": func(t *testing.T, a *Authenticator) { besiege(t, a, 40, alone, ip) },
		"both": func(t *testing.T, a *Authenticator) {
			besiege(t, a, 12, spray, at24)
			besiege(t, a, 40, alone, ip)
		},
	} {
		t.Run(siege, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
				by(t, a)
				for i := range 20 {
					if d, err := logsIn(t, a, "pw", at24(200+i)); err != nil || d > maxDistance {
						t.Errorf("login %d: %v after %s", i, err, d)
					}
				}
			})
		})
	}
}

// M1: beside strangers at the very same address a password waits for its share of what is
// judged there, and a generated secret for nothing.
func TestM1StrangersAtTheSameAddress(t *testing.T) {
	t.Parallel()
	const guessers, logins = 12, 8
	here := func(int) netip.Addr { return home }
	synctest.Test(t, func(t *testing.T) {
		acct, secret := withSecret(1)
		a := newAuthenticator(fakeUsers{"alice": acct}, cheap, Config{})
		besiege(t, a, guessers, alone, here)
		for range 50 {
			if d, err := logsIn(t, a, secret, home); err != nil || d > 0 {
				t.Errorf("a secret: %v after %s", err, d)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
		besiege(t, a, guessers, alone, here)
		var waited time.Duration
		for range logins {
			time.Sleep(2 * time.Minute) // the guessers use up what a success has cleared
			for began := time.Now(); ; {
				if _, err := logsIn(t, a, "pw", home); err == nil {
					waited += time.Since(began)
					break
				}
			}
		}
		mean, share := waited/logins, (guessers+1)*maxDistance
		t.Logf("%s until a login on average; one in %s is the share", mean, share)
		if mean > 2*share {
			t.Errorf("a login takes %s on average, one in %s is the share", mean, share)
		}
	})
}

// M1: those who wait for a permit have it address by address, and who is known does not
// wait for them.
func TestM1PermitsByAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const permits, queue = 2, 64
		g := newHashing(permits, queue, time.Minute)
		h := &held{begun: make(chan struct{}, 2*queue), end: make(chan struct{})}
		served := make(chan string, 2*queue)
		ask := func(who string, from asker) {
			go func() {
				if g.do(from, h.work) == nil {
					served <- who
				}
			}()
			synctest.Wait()
		}
		for range 50 {
			ask("many", stranger(0))
		}
		if n, most := g.waiting(), queue*waitPart/(1+waitPart); n > most {
			t.Errorf("one address waits in %d places of %d", n, queue)
		}
		ask("few", stranger(1))
		ask("known", asker{stranger(0).address, true})
		var order []string
		for range 6 {
			h.end <- struct{}{}
			order = append(order, <-served)
			synctest.Wait()
		}
		// Two were under way, and one had its turn already.
		if at := slices.Index(order, "known"); at < 0 || at > permits+1 {
			t.Errorf("served %v: the known one is late", order)
		}
		if at := slices.Index(order, "few"); at < 0 || at > permits+2 {
			t.Errorf("served %v: the other address is late", order)
		}
		close(h.end)
	})
}

// M1: strangers who want more hashes than can be computed do not keep a known address out.
func TestM1PermitsAllWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{Permits: 2})
		if _, err := logsIn(t, a, "pw", home); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				for ctx.Err() == nil {
					if a.hashing.do(stranger(i), func() { time.Sleep(time.Second / 2) }) != nil {
						time.Sleep(time.Second / 10)
					}
				}
			})
		}
		synctest.Wait()
		for range 20 {
			if d, err := logsIn(t, a, "pw", home); err != nil || d >= maxWait {
				t.Errorf("%v after %s", err, d)
			}
		}
		cancel()
		all.Wait()
	})
}

// M2: who has no permit in time cannot tell from that whether the account is known there.
func TestM2NoPermit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const permits = 2
		a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{Permits: permits})
		if _, err := logsIn(t, a, "pw", home); err != nil {
			t.Fatal(err)
		}
		h := &held{begun: make(chan struct{}, permits), end: make(chan struct{})}
		for range permits {
			go a.hashing.do(stranger(0), h.work)
		}
		synctest.Wait()
		for _, name := range []string{"alice", "nobody"} {
			began := time.Now()
			_, err := a.Verify(t.Context(), name, "wrong", at(home))
			if d := time.Since(began); !errors.Is(err, ErrBusy) || d != maxWait {
				t.Errorf("%s: %v after %s", name, err, d)
			}
		}
		close(h.end)
	})
}

// kinds of failures that must look the same, also where the account is known.
func kinds() (fakeUsers, []string) {
	disabled := withPassword(2, "pw")
	disabled.enabled = false
	return fakeUsers{"alice": withPassword(1, "pw"), "disabled": disabled, "athome": withPassword(3, "pw")},
		[]string{"unknown", "alice", "disabled", "athome"}
}

// M2: what is answered, and when, is the same for every account in every state of the
// throttle, and so is the number of hashes on the way to the answer. One more is computed for an
// account that is known there, where the answer has to wait: it is done long before.
func TestM2OnePathInEveryState(t *testing.T) {
	t.Parallel()
	users, names := kinds()
	type answer struct {
		after  time.Duration
		err    error
		hashes int64
	}
	for state, guess := range map[string]func(t *testing.T, a *Authenticator, name string){
		"calm":        func(*testing.T, *Authenticator, string) {},
		"the pair":    func(t *testing.T, a *Authenticator, name string) { failAt(a, pairAllowance+3, name, at24(9)) },
		"the account": func(t *testing.T, a *Authenticator, name string) { failAt(a, accountAllowance+9, name, ip(9)) },
		"the address": func(t *testing.T, a *Authenticator, name string) { failAt(a, narrowAllowance+9, "bob", home) },
		"the network": func(t *testing.T, a *Authenticator, name string) { failAt(a, wideAllowance+9, "bob", at24(9)) },
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			want := map[int]answer{}
			for _, name := range names {
				synctest.Test(t, func(t *testing.T) {
					a := newAuthenticator(users, cheap, Config{})
					if name == "athome" {
						_, err := a.Verify(t.Context(), name, "pw", at(home))
						must(t, err)
						time.Sleep(time.Hour)
					}
					guess(t, a, name)
					if name == "athome" { // and as the owner logs in
						_, err := a.Verify(t.Context(), name, "pw", at(home))
						must(t, err)
					}
					for i := range 30 {
						began, hashes := time.Now(), a.hashing.done.Load()
						_, err := a.Verify(t.Context(), name, fmt.Sprint("wrong", i), at(home))
						got := answer{time.Since(began), err, a.hashing.done.Load() - hashes}
						if errors.Is(err, ErrBusy) {
							got.err = ErrBusy
						}
						if name == names[0] {
							want[i] = got
						}
						if name == "athome" && got.after > 0 && got.hashes == want[i].hashes+1 {
							got.hashes--
						}
						if got != want[i] {
							t.Errorf("%s: try %d: %+v, others %+v", name, i, got, want[i])
						}
					}
				})
			}
		})
	}
}

// failAt counts failures.
func failAt(a *Authenticator, n int, name string, from netip.Addr) {
	for range n {
		fails(a.throttle, throttle.OriginOf(from, name), time.Now())
	}
}

// TestM2Timing measures, in a throttled network and against a database, what
// TestM2OnePathInEveryState shows with an injected clock. It takes some minutes, and so
// runs only when POSTERN_LONG is set.
func TestM2Timing(t *testing.T) {
	if !longtest.Run() {
		return // nothing is left untested silently: see above
	}
	const rounds = 60
	s := testStore(t)
	s.cost = defaultCost
	names := []string{"unknown", "existing", "disabled", "athome"}
	for _, name := range names[1:] {
		_, err := s.AddUser(t.Context(), NewUser{Name: name, Password: "pw"})
		must(t, err)
	}
	must(t, s.SetEnabled(t.Context(), "disabled", false, "test"))
	_, err := s.db.Exec(t.Context(), `
		insert into known_network (user_id, network) select u.id, n.network
		from app_user u, (values ('192.0.2.0/24'::cidr), ($1::inet::cidr)) n(network) where u.name = 'athome'`, home)
	must(t, err)
	times := make([][]time.Duration, len(names))
	for round := range rounds {
		var all sync.WaitGroup
		for nth := range names {
			i := (round + nth) % len(names)
			name, a := names[i], NewAuthenticator(s, patient)
			failAt(a, wideAllowance+3, "bob", at24(9)) // its turn comes after a second
			all.Go(func() {
				began := time.Now()
				if _, err := a.Verify(t.Context(), name, "wrong", at(home)); err != ErrCredentials {
					t.Errorf("%s: %v", name, err)
				}
				times[i] = append(times[i], time.Since(began))
			})
		}
		all.Wait()
	}
	compareMedians(t, names, times)
}
