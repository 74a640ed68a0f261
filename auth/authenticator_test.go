package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/auth/throttle"

	"github.com/google/go-cmp/cmp"
)

// fakeUsers are accounts by canonical name.
type fakeUsers map[string]account

func (f fakeUsers) account(_ context.Context, q question) (account, error) {
	a := f[q.name]
	a.name = q.name
	if secret := strings.HasPrefix(a.hash, secretScheme); secret != (q.credential != 0) || secret && q.credential != a.credentialID {
		a.credentialID, a.hash = 0, ""
	}
	return a, nil
}

func (f fakeUsers) current(_ context.Context, user, credential int64) (account, error) {
	for name, a := range f {
		if a.name = name; a.id == user && a.credentialID == credential {
			return a, nil
		}
	}
	return account{}, nil
}

func (f fakeUsers) standing(context.Context, string, throttle.Origin) (standing, error) {
	return standing{}, nil
}

// usersFunc is a lookup that a test controls.
type usersFunc func(ctx context.Context, q question) (account, error)

func (f usersFunc) account(ctx context.Context, q question) (account, error) { return f(ctx, q) }

func (f usersFunc) current(context.Context, int64, int64) (account, error) { return account{}, nil }

func (f usersFunc) standing(ctx context.Context, name string, _ throttle.Origin) (standing, error) {
	_, err := f(ctx, question{name: name})
	return standing{}, err
}

func withPassword(id int64, password string) account {
	return account{id: id, version: 1, enabled: true, hash: hashPassword(password, cheap), credentialID: id + 100}
}

// A6: whatever is wrong, the error is the same value, and the work is one lookup
// and one hash of the same cost, with the cache warm as well. Times are
// measured by TestA6Timing.
func TestA6OnePathForEveryFailure(t *testing.T) {
	t.Parallel()
	disabled := withPassword(2, "pw")
	disabled.enabled = false
	expired := withPassword(3, "pw")
	expired.expires = time.Now().Add(-time.Hour)
	elsewhere := withPassword(4, "pw")
	elsewhere.networks = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	users := fakeUsers{"alice": withPassword(1, "pw"), "disabled": disabled, "expired": expired, "elsewhere": elsewhere, "nohash": {id: 5, enabled: true}}
	var lookups atomic.Int64
	a := newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
		lookups.Add(1)
		return users.account(ctx, q)
	}), cheap, Config{})
	if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
		t.Fatal(err) // and now the cache is warm
	}
	for _, try := range []struct{ name, password string }{
		{"nobody", "pw"}, {"alice", "wrong"}, {"disabled", "pw"}, {"disabled", "wrong"},
		{"expired", "pw"}, {"elsewhere", "pw"}, {"nohash", "pw"},
	} {
		hashes, reads := a.hashing.done.Load(), lookups.Load()
		id, err := a.Verify(t.Context(), try.name, try.password, at(home))
		if err != ErrCredentials || !cmp.Equal(id, Identity{}) {
			t.Errorf("%v: %+v, %v; want the bare ErrCredentials", try, id, err)
		}
		if h, l := a.hashing.done.Load()-hashes, lookups.Load()-reads; h != 1 || l != 1 {
			t.Errorf("%v: %d hashes, %d lookups; want 1 and 1", try, h, l)
		}
	}
}

func TestDecoyMatchesNothing(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(fakeUsers{}, cheap, Config{})
	for _, account := range []account{{}, {hash: "broken"}} {
		h := a.hashOf(account, loginTry{})
		p, ok := h.(phc)
		if !ok || p.cost != cheap || h.matches("") || h.matches("password") {
			t.Errorf("%+v: %v", account, h)
		}
	}
}

func TestWarmCacheNeedsNoQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		users := fakeUsers{"alice": withPassword(1, "pw")}
		lookups := 0
		a := newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
			lookups++
			return users.account(ctx, q)
		}), cheap, Config{})
		verify := func(password string, want error) {
			t.Helper()
			if _, err := a.Verify(t.Context(), "alice", password, at(home)); !errors.Is(err, want) {
				t.Fatalf("err = %v, want %v", err, want)
			}
		}
		check := func(what string, wantLookups int, wantHashes int64) {
			t.Helper()
			if h := a.hashing.done.Load(); lookups != wantLookups || h != wantHashes {
				t.Fatalf("%s: %d lookups, %d hashes; want %d, %d", what, lookups, h, wantLookups, wantHashes)
			}
		}
		verify("pw", nil)
		check("cold", 1, 1)
		for range 1000 {
			verify("pw", nil)
		}
		check("warm", 1, 1)
		time.Sleep(fresh)
		for range 1000 {
			verify("pw", nil)
		}
		check("stale account", 2, 1)
		time.Sleep(successTTL)
		verify("pw", nil)
		check("old success", 3, 2)

		// A change elsewhere acts within five seconds, without any notification.
		changed := withPassword(1, "new")
		changed.version = 2
		users["alice"] = changed
		verify("new", nil) // immediately: what the cache does not know is looked up
		verify("pw", ErrCredentials)
		changed.enabled, changed.version = false, 3
		users["alice"] = changed
		time.Sleep(5 * time.Second)
		verify("new", ErrCredentials)
		delete(users, "alice")
		verify("new", ErrCredentials)
	})
}

func TestTroubleIsNeverAVerdict(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := false
		users := fakeUsers{"alice": withPassword(1, "pw")}
		a := newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
			if down {
				<-ctx.Done() // a database that does not answer
				return account{}, ctx.Err()
			}
			return users.account(ctx, q)
		}), cheap, Config{})
		if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
			t.Fatal(err)
		}
		down = true
		time.Sleep(fresh)
		for _, try := range []struct{ name, password string }{{"alice", "pw"}, {"alice", "wrong"}, {"nobody", "x"}} {
			for range 50 {
				start := time.Now()
				_, err := a.Verify(t.Context(), try.name, try.password, at(home))
				if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrCredentials) {
					t.Fatalf("%v: err = %v, want ErrUnavailable", try, err)
				}
				if d := time.Since(start); d > 5*time.Second {
					t.Fatalf("%v: took %s", try, d)
				}
			}
		}
		down = false
		if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
			t.Errorf("failures of ours were counted: %v", err)
		}
	})
}

// held is a hash that is computed for as long as the test wants. It stands in for
// the account's through hashing.
type held struct {
	running, most atomic.Int64
	begun         chan struct{}
	end           chan struct{}
}

func (h *held) work() {
	n := h.running.Add(1)
	for {
		most := h.most.Load()
		if n <= most || h.most.CompareAndSwap(most, n) {
			break
		}
	}
	h.begun <- struct{}{}
	<-h.end
	h.running.Add(-1)
}

// stranger is one of many addresses.
func stranger(i int) asker { return asker{address: netip.PrefixFrom(ip(i), 32)} }

// A7: never more hashes concurrently than permits, never more waiting than the queue
// holds, and no waiting beyond the patience.
func TestA7GateBoundsHashing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const permits, queue, clients = 2, 64, 1000
		g := newHashing(permits, queue, 2*time.Second)
		h := &held{begun: make(chan struct{}, clients), end: make(chan struct{})}
		results := make(chan error, clients)
		for i := range clients {
			go func() { results <- g.do(stranger(i), h.work) }()
		}
		synctest.Wait()
		if n := len(results); n != clients-permits-queue {
			t.Errorf("%d were turned away immediately, want %d", n, clients-permits-queue)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(results); n != clients-permits {
			t.Errorf("%d were turned away after the patience, want %d", n, clients-permits)
		}
		close(h.end)
		synctest.Wait()
		if most := h.most.Load(); most != permits || g.done.Load() != permits {
			t.Errorf("%d hashes concurrently, %d in all; want %d", most, g.done.Load(), permits)
		}
		busy := 0
		for range clients {
			if errors.Is(<-results, ErrBusy) {
				busy++
			}
		}
		if busy != clients-permits || g.refused.Load() != int64(busy) {
			t.Errorf("%d heard ErrBusy, %d were counted", busy, g.refused.Load())
		}
		if waited := time.Duration(g.waited.Load()); waited != queue*2*time.Second {
			t.Errorf("a wait of %v was counted, want that of %d for 2 s each", waited, queue)
		}
		if err := g.do(stranger(0), func() {}); err != nil {
			t.Errorf("permits were lost: %v", err)
		}
	})
}

// A7: clients that hang up while their password is hashed free no permit.
func TestA7DisconnectStormFreesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const permits = 2
		a := newAuthenticator(fakeUsers{}, cheap, Config{Permits: permits})
		h := &held{begun: make(chan struct{}, permits), end: make(chan struct{})}
		for range permits { // the permits are taken by hashes under way
			go a.hashing.do(stranger(0), h.work)
		}
		synctest.Wait()
		var sessions sync.WaitGroup
		for i := range 200 {
			ctx, hangUp := context.WithCancel(t.Context())
			sessions.Go(func() {
				_, err := a.Verify(ctx, fmt.Sprintf("user%d", i), "pw", at(home))
				if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBusy) {
					t.Errorf("err = %v", err)
				}
			})
			synctest.Wait()
			hangUp()
		}
		sessions.Wait()
		if n := a.hashing.done.Load(); n != permits {
			t.Errorf("%d hashes began while %d permits were taken", n, permits)
		}
		if n := a.hashing.waiting(); n > 64 {
			t.Errorf("%d wait", n)
		}
		close(h.end)
		synctest.Wait()
		time.Sleep(2 * time.Second) // whoever still waits gives up or is done
		synctest.Wait()
		if n := len(a.hashing.permits) + a.hashing.waiting(); n != 0 {
			t.Errorf("%d permits or places were lost", n)
		}
	})
}

// A7: 1,000 concurrent logins with wrong passwords stay within the memory of the
// permits. The memory held at a time is what one hash allocates, 19 MiB and at most a fifth
// more with all that is around it, for each permit: TestA7GateBoundsHashing shows that
// there are no more, and TestA7HeapOfHashes that they leave no garbage. What is added
// is for a thousand sessions, of which those that find no place to wait are refused.
func TestA7MemoryOfAStorm(t *testing.T) {
	const permits = 2
	a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, defaultCost, Config{Permits: permits, Queue: 16, Patience: time.Hour})
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak uint64
	var sessions sync.WaitGroup
	for i := range 1000 {
		sessions.Go(func() { a.Verify(t.Context(), "alice", fmt.Sprint("wrong", i), at(home)) })
	}
	done := make(chan struct{})
	go func() { sessions.Wait(); close(done) }()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-tick.C:
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
			continue
		case <-done:
			tick.Stop()
		}
		break
	}
	runtime.ReadMemStats(&now)
	if each := (now.TotalAlloc - before.TotalAlloc) / uint64(a.hashing.done.Load()); each > 19<<20*6/5 {
		t.Errorf("%d KiB were allocated for each hash", each>>10)
	}
	const bound = permits*19<<20*6/5 + 16<<20
	if peak > before.HeapAlloc+bound {
		t.Errorf("heap grew by %d MiB, bound %d MiB", (peak-before.HeapAlloc)>>20, bound>>20)
	}
}

func TestSamePasswordIsHashedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(fakeUsers{"app": withPassword(1, "pw")}, cheap, Config{Permits: 1})
		h := &held{begun: make(chan struct{}, 1), end: make(chan struct{})}
		go a.hashing.do(stranger(0), h.work) // the only permit: everybody has to wait
		synctest.Wait()
		var sessions sync.WaitGroup
		for range 500 {
			sessions.Go(func() {
				if _, err := a.Verify(t.Context(), "app", "pw", at(home)); err != nil {
					t.Errorf("err = %v", err)
				}
			})
		}
		synctest.Wait()
		close(h.end)
		sessions.Wait()
		if n := a.hashing.done.Load() - 1; n != 1 {
			t.Errorf("%d hashes for one password", n)
		}
	})
}

func TestLongAndEmptyPasswordsCostNothing(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
	for _, password := range []string{"", strings.Repeat("x", 1025)} {
		if _, err := a.Verify(t.Context(), "alice", password, at(home)); err != ErrCredentials {
			t.Errorf("%d octets: %v", len(password), err)
		}
	}
	if n := a.hashing.done.Load(); n != 0 {
		t.Errorf("%d hashes", n)
	}
}

func TestBrokenHashIsLogged(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := newAuthenticator(fakeUsers{"alice": {id: 7, enabled: true, hash: "$1$old"}}, cheap,
		Config{Log: slog.New(slog.NewJSONHandler(&out, nil))})
	if _, err := a.Verify(t.Context(), "alice", "hunter2", at(home)); err != ErrCredentials {
		t.Errorf("err = %v", err)
	}
	if s := out.String(); !strings.Contains(s, `"user":7`) || strings.Contains(s, "hunter2") || strings.Contains(s, "$1$old") {
		t.Errorf("log: %s", s)
	}
}

func BenchmarkVerifyWarm(b *testing.B) {
	a := newAuthenticator(fakeUsers{"alice@example.com": withPassword(1, "pw")}, cheap, Config{})
	for b.Loop() {
		if _, err := a.Verify(b.Context(), "Alice@example.com", "pw", at(home)); err != nil {
			b.Fatal(err)
		}
	}
}

// heapOfObjects returns the octets of objects that are alive or not yet collected.
func heapOfObjects() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// A7: when all permits come free at the same moment, none of those that follow begins
// before what was left is collected, be it by another of them.
func TestA7HeapOfHashesThatEndTogether(t *testing.T) { // alone, for others use the heap too
	const permits, each, rounds = 2, 19 << 20, 20
	g := newHashing(permits, permits*rounds, time.Hour)
	runtime.GC()
	before := heapOfObjects()
	var peak atomic.Uint64
	together := make(chan struct{}) // two meet here, and end
	var all sync.WaitGroup
	for i := range permits * rounds {
		all.Go(func() {
			err := g.do(stranger(i), func() {
				block := make([]byte, each)
				now := heapOfObjects()
				for old := peak.Load(); now > old && !peak.CompareAndSwap(old, now); old = peak.Load() {
				}
				select {
				case together <- struct{}{}:
				case <-together:
				}
				runtime.KeepAlive(block)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if grown, most := peak.Load()-min(peak.Load(), before), uint64(permits*each*12/10); grown > most {
		t.Errorf("the heap grew by %d MiB, and %d concurrent hashes take %d", grown>>20, permits, permits*each>>20)
	}
}

// A7: hashes leave no garbage behind that adds up: the heap grows by what is computed
// at a time, and a fifth of it.
func TestA7HeapOfHashes(t *testing.T) { // alone, for others use the heap too
	const permits, hashes = 2, 24
	g := newHashing(permits, hashes, time.Hour)
	h := decoy(defaultCost)
	runtime.GC()
	before, peak := heapOfObjects(), uint64(0)
	done := make(chan error, hashes)
	for i := range hashes {
		go func() { done <- g.do(stranger(i), func() { h.matches("wrong") }) }()
	}
	for finished := 0; finished < hashes; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished++
		case <-time.After(time.Millisecond):
			peak = max(peak, heapOfObjects())
		}
	}
	if grown, most := peak-min(peak, before), uint64(permits*19<<20*12/10); grown > most {
		t.Errorf("the heap grew by %d MiB, and %d concurrent hashes take %d", grown>>20, permits, permits*19)
	}
}
