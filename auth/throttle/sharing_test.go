package throttle

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgtest"
)

// node is a Throttle that shares only when it is told to.
type node struct {
	*Throttle
	db *pgxpool.Pool
}

func nodes(t *testing.T) (one, two node) {
	db := pgtest.New(t).Pool
	return node{New(), db}, node{New(), db}
}

func (n node) round(ctx context.Context) error { return n.Share(ctx, n.db) }

func (n node) count(k Key) int {
	if c := n.counts[k]; c != nil {
		return c.failures
	}
	return 0
}

func TestSharingAddsUp(t *testing.T) {
	t.Parallel()
	one, two := nodes(t)
	from := OriginOf(home, "alice")
	for range 3 {
		one.fails(from, time.Now())
		two.fails(from, time.Now())
	}
	must(t, one.round(t.Context()))
	must(t, two.round(t.Context()))
	for range 3 {
		two.fails(from, time.Now())
		must(t, one.round(t.Context())) // reads the same rows again
	}
	must(t, two.round(t.Context()))
	must(t, one.round(t.Context()))
	own := from.OwnAddress()
	one.Failed([]Key{own}, time.Now())
	two.Failed([]Key{own, own}, time.Now())
	share := func() {
		must(t, one.round(t.Context()))
		must(t, two.round(t.Context()))
		must(t, one.round(t.Context()))
	}
	both := func(when string, k Key, want int) {
		t.Helper()
		if a, b := one.count(k), two.count(k); a != want || b != want {
			t.Errorf("%s, class %d: %d and %d failures, want %d", when, k[0], a, b, want)
		}
	}
	share()
	both("shared", own, 3)
	for _, k := range from.Public() {
		both("shared", k, 9)
	}
	if wait := one.waits(OriginOf(ip(1), "bob").Public(), time.Now()); wait != 0 {
		t.Errorf("others wait %s", wait)
	}
	// A success on one node clears the account's own count, and that alone, on both.
	one.Succeeded(from, time.Now())
	share()
	both("after a success", own, 0)
	for _, k := range from.Public() {
		both("after a success", k, 9)
	}
	// And a node that has just started knows all of it.
	three := node{New(), one.db}
	must(t, three.round(t.Context()))
	if n := three.count(from.Public()[2]); n != 9 {
		t.Errorf("a new node knows of %d", n)
	}
}

func TestSharedFailuresAreHalved(t *testing.T) {
	t.Parallel()
	one, two := nodes(t)
	from := OriginOf(home, "alice")
	for range 41 {
		one.fails(from, time.Now())
	}
	must(t, one.round(t.Context()))
	_, err := one.db.Exec(t.Context(), `update auth_failure set since = since - interval '21 minutes'`)
	must(t, err)
	must(t, two.round(t.Context()))
	if n := two.count(from.Pair()); n != 10 {
		t.Errorf("%d after two half-lives, want 10", n)
	}
	two.fails(from, time.Now())
	must(t, two.round(t.Context()))
	var n int
	var age float64
	must(t, two.db.QueryRow(t.Context(), `
		select failures, extract(epoch from clock_timestamp() - since) from auth_failure where key = $1`,
		keySlice(from.Pair())).Scan(&n, &age))
	if n != 11 || age < 60 || age > 120 {
		t.Errorf("%d failures, %.0f s old; want 11, 60 s", n, age)
	}
}

func keySlice(k Key) []byte { return k[:] }

// Names that nobody has do not stay in the table.
func TestFailuresExpire(t *testing.T) {
	t.Parallel()
	one, _ := nodes(t)
	for i := range 100 {
		one.fails(OriginOf(ip(i), fmt.Sprint("nobody", i)), time.Now())
	}
	must(t, one.round(t.Context()))
	rows := func() (n int) {
		must(t, one.db.QueryRow(t.Context(), `select count(*) from auth_failure`).Scan(&n))
		return n
	}
	if n := rows(); n != 400 {
		t.Fatalf("%d rows", n)
	}
	_, err := one.db.Exec(t.Context(), `update auth_failure set updated_at = now() - interval '4 hours' where ctid <> (select max(ctid) from auth_failure)`)
	must(t, err)
	must(t, one.round(t.Context()))
	if n := rows(); n != 400 {
		t.Errorf("%d rows before it is time", n)
	}
	one.expired = time.Time{}
	must(t, one.round(t.Context()))
	if n := rows(); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// A success that could not be shared is not undone by what came before it.
func TestGiveBackKeepsTheOrder(t *testing.T) {
	t.Parallel()
	th := New()
	now := time.Now()
	from := OriginOf(home, "alice")
	own := from.OwnAddress()
	judges := append(from.Public(), own)
	th.Failed(judges, now)
	reports := th.take(100)
	th.Succeeded(from, now)
	th.Failed(judges, now)
	th.giveBack(reports)
	for _, r := range th.take(100) {
		want := report{r.key, false, 2}
		if r.key == own {
			want = report{r.key, true, 1}
		}
		if r != want {
			t.Errorf("report %+v, want %+v", r, want)
		}
	}
}

// Nor by what the others had heard before it.
func TestMergeKeepsTheOrder(t *testing.T) {
	t.Parallel()
	th := New()
	now := time.Now()
	from := OriginOf(home, "alice")
	own := []Key{from.OwnAddress()}
	th.Failed(own, now)
	th.take(100)
	th.Succeeded(from, now)
	th.merge([]total{{own[0], 50, 0}}, now)
	if wait := th.waits(own, now); wait != 0 {
		t.Errorf("waits %s", wait)
	}
	th.take(100)
	th.Failed(own, now)
	th.merge([]total{{own[0], 50, 0}}, now)
	if n := th.counts[own[0]].failures; n != 51 {
		t.Errorf("%d failures, want those of others and ours", n)
	}
}
