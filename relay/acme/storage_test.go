package acme

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgtest"
	"postern/internal/smtptest"
	"postern/relay/certificate"
	"postern/relay/seal"
)

// patience bounds every wait of a test. None is as long when the code is right.
const patience = 3 * time.Minute

func newSealer(t testing.TB, fill byte) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testStorage(t testing.TB, db *pgtest.DB, node string) *storage {
	t.Helper()
	s := newStorage(Config{Pool: db.Pool, Sealer: newSealer(t, 1), Node: node, Log: slog.New(slog.DiscardHandler)})
	s.pollEvery = 20 * time.Millisecond
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// valid reports whether a client that trusts the issuer could use it now.
func valid(s certificate.Status) bool { return !s.StandIn && time.Now().Before(s.NotAfter) }

func TestStatements(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := db.Pool.Acquire(t.Context())
	must(t, err)
	defer conn.Release()
	for name, sql := range map[string]string{
		"putValues": putValues, "loadValues": loadValues, "deleteValues": deleteValues, "heldLocks": heldLocks,
		"listKeys": listKeys, "statKey": statKey, "takeLock": takeLock, "renewLock": renewLock, "giveLock": giveLock,
		"readRecord": readRecord, "recordFailure": recordFailure, "recordSuccess": recordSuccess, "listRecords": listRecords, "askRenewal": askRenewal, "askClock": askClock, "deleteLocks": deleteLocks, "deleteStates": deleteStates,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStorage is the contract of certmagic.Storage.
func TestStorage(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), testStorage(t, pgtest.New(t), "one")
	for key, value := range map[string]string{
		"a": "1", "a/b": "22", "a/b/c": "333", "a/d/e": "4444", "ab/c": "5", "a%/x": "6", "Z": "",
	} {
		must(t, s.Store(ctx, key, []byte(value)))
	}
	must(t, s.Store(ctx, "a", []byte("new")))
	for key, want := range map[string]string{"a": "new", "a/b/c": "333", "Z": ""} {
		if got, err := s.Load(ctx, key); err != nil || string(got) != want {
			t.Errorf("Load %s = %q, %v; want %q", key, got, err, want)
		}
	}
	for _, key := range []string{"a/d", "none", "", "a/"} {
		if _, err := s.Load(ctx, key); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load %q: %v, want ErrNotExist", key, err)
		}
	}
	for _, test := range []struct {
		path      string
		recursive bool
		want      []string
	}{
		{"a", false, []string{"a/b", "a/d"}},
		{"a/", false, []string{"a/b", "a/d"}},
		{"a", true, []string{"a/b", "a/b/c", "a/d", "a/d/e"}},
		{"", false, []string{"Z", "a", "a%", "ab"}},
		{"a%", false, []string{"a%/x"}},
	} {
		got, err := s.List(ctx, test.path, test.recursive)
		slices.Sort(got)
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("List %q %t: %v %s", test.path, test.recursive, err, diff)
		}
	}
	if _, err := s.List(ctx, "none", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing: %v, want ErrNotExist", err)
	}
	info, err := s.Stat(ctx, "a/b")
	if err != nil || !info.IsTerminal || info.Key != "a/b" || info.Size != 2 || time.Since(info.Modified) > time.Hour {
		t.Errorf("Stat of a file: %+v, %v", info, err)
	}
	if info, err := s.Stat(ctx, "a/d"); err != nil || info.IsTerminal || info.Key != "a/d" {
		t.Errorf("Stat of a folder: %+v, %v", info, err)
	}
	if _, err := s.Stat(ctx, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of nothing: %v", err)
	}
	if !s.Exists(ctx, "a") || !s.Exists(ctx, "a/d") || s.Exists(ctx, "none") {
		t.Error("Exists is wrong")
	}
	must(t, s.Delete(ctx, "none"))
	must(t, s.Delete(ctx, "a"))
	left, err := s.List(ctx, "", true)
	slices.Sort(left)
	if diff := cmp.Diff([]string{"Z", "a%", "a%/x", "ab", "ab/c"}, left); diff != "" || err != nil {
		t.Errorf("after Delete: %v %s", err, diff)
	}
}

// TestSealed: the database alone gives no value away, and none can be moved.
func TestSealed(t *testing.T) {
	t.Parallel()
	ctx, db := t.Context(), pgtest.New(t)
	s := testStorage(t, db, "one")
	must(t, s.Store(ctx, "acme/key", []byte("-----BEGIN EC PRIVATE KEY-----")))
	var raw []byte
	must(t, db.Pool.QueryRow(ctx, "select value from certificate_store").Scan(&raw))
	if bytes.Contains(raw, []byte("PRIVATE KEY")) {
		t.Error("the value is there to be read")
	}
	_, err := db.Pool.Exec(ctx, "insert into certificate_store (key, value, size) select 'moved', value, size from certificate_store")
	must(t, err)
	if value, err := s.Load(ctx, "moved"); !errors.Is(err, seal.ErrSeal) || value != nil {
		t.Errorf("a moved value: %q, %v", value, err)
	}
	other := newStorage(Config{Pool: db.Pool, Sealer: newSealer(t, 2), Node: "two", Log: slog.New(slog.DiscardHandler)})
	if _, err := other.Load(ctx, "acme/key"); !errors.Is(err, seal.ErrSeal) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "secret_key_file") {
		t.Errorf("with another key: %v", err)
	}
}

// TestLock: one holder at a time, and who waits gets it next.
func TestLock(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var inside, most, runs int
	var mu sync.Mutex
	count := func(by int) {
		mu.Lock()
		defer mu.Unlock()
		inside += by
		most, runs = max(most, inside), runs+1
	}
	var group sync.WaitGroup
	for _, node := range []string{"one", "two", "three"} {
		s := testStorage(t, db, node)
		for range 3 {
			group.Go(func() {
				ctx, end := withScope(t.Context())
				defer end(nil)
				if err := s.Lock(ctx, "name"); err != nil {
					t.Error(err)
					return
				}
				count(1)
				count(-1)
				if err := s.Unlock(ctx, "name"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	group.Wait()
	if most != 1 || runs != 18 {
		t.Errorf("%d concurrently, %d runs", most, runs)
	}
	var rows int
	must(t, db.Pool.QueryRow(t.Context(), "select count(*) from certificate_lock").Scan(&rows))
	if rows != 0 {
		t.Errorf("%d locks are left", rows)
	}
}

func TestTryLock(t *testing.T) {
	t.Parallel()
	ctx, db := t.Context(), pgtest.New(t)
	one, two := testStorage(t, db, "one"), testStorage(t, db, "two")
	if taken, err := one.TryLock(ctx, "name"); !taken || err != nil {
		t.Fatal(taken, err)
	}
	if taken, err := two.TryLock(ctx, "name"); taken || err != nil {
		t.Errorf("a held lock: %t, %v", taken, err)
	}
	must(t, one.RenewLockLease(ctx, "name", 24*time.Hour))
	var long bool
	must(t, db.Pool.QueryRow(ctx, "select expires_at > now() + interval '1 minute' from certificate_lock").Scan(&long))
	if long {
		t.Error("a long lease was given: a dead holder would keep the others waiting")
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := two.Lock(short, "name"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a lock: %v", err)
	}
	must(t, one.Unlock(ctx, "name"))
	if taken, err := two.TryLock(ctx, "name"); !taken || err != nil {
		t.Errorf("a lock that was given back: %t, %v", taken, err)
	}
	must(t, two.Unlock(ctx, "name"))
	if err := two.Unlock(ctx, "name"); err == nil {
		t.Error("a lock can be given back twice")
	}
	if err := two.RenewLockLease(ctx, "name", time.Second); !errors.Is(err, errLeaseLost) {
		t.Errorf("renewing what is not held: %v", err)
	}
}

// expire lets a lock's lease be over by the database's clock.
func expire(t testing.TB, pool *pgxpool.Pool, name string) {
	t.Helper()
	tag, err := pool.Exec(t.Context(), "update certificate_lock set expires_at = clock_timestamp() - interval '1 second' where name = $1", name)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatal(tag, err)
	}
}

// TestTakeover: a holder that is cut off loses the lock; nothing that it does then
// has an effect, and its work is told to end.
func TestTakeover(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	one, two := testStorage(t, db, "one"), testStorage(t, db, "two")
	first, end := withScope(t.Context())
	defer end(nil)
	one.lease, one.renewEvery = time.Hour, time.Hour // unless the test ends it
	must(t, one.Lock(first, "name"))
	must(t, one.Store(first, "value", []byte("one")))
	must(t, one.Store(first, "other", []byte("one")))

	expire(t, db.Pool, "name")
	if err := one.Store(first, "value", []byte("late")); !errors.Is(err, errLeaseLost) {
		t.Errorf("Store after the lease: %v", err)
	}
	second, end2 := withScope(t.Context())
	defer end2(nil)
	must(t, two.Lock(second, "name"))
	must(t, two.Store(second, "value", []byte("two")))

	if err := one.Store(first, "value", []byte("late")); !errors.Is(err, errLeaseLost) {
		t.Errorf("Store after the takeover: %v", err)
	}
	if err := one.Delete(first, "value"); !errors.Is(err, errLeaseLost) {
		t.Errorf("Delete after the takeover: %v", err)
	}
	if err := one.failed(first, Record{Name: "name", FailingSince: time.Now(), NextTry: time.Now()}); !errors.Is(err, errLeaseLost) {
		t.Errorf("a failure after the takeover: %v", err)
	}
	if err := one.RenewLockLease(first, "name", time.Minute); !errors.Is(err, errLeaseLost) {
		t.Errorf("renewal after the takeover: %v", err)
	}
	if err := one.Unlock(first, "name"); err != nil {
		t.Errorf("Unlock after the takeover: %v", err)
	}
	must(t, two.Store(second, "value", []byte("two again"))) // it has its lock still
	if got, err := two.Load(second, "value"); err != nil || string(got) != "two again" {
		t.Errorf("Load = %q, %v", got, err)
	}
	must(t, two.Delete(second, "nothing"))
	must(t, two.Unlock(second, "name"))
}

// TestLeaseIsKept: a held lock outlives its lease, and a lost one ends the work.
func TestLeaseIsKept(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := testStorage(t, db, "one")
	s.renewEvery = 10 * time.Millisecond
	ctx, end := withScope(t.Context())
	defer end(nil)
	must(t, s.Lock(ctx, "name"))
	expire(t, db.Pool, "name")
	var alive bool
	for deadline := time.Now().Add(patience); !alive && time.Now().Before(deadline); {
		must(t, db.Pool.QueryRow(ctx, "select expires_at > clock_timestamp() from certificate_lock").Scan(&alive))
	}
	if !alive {
		t.Fatal("the lease is not renewed")
	}
	_, err := db.Pool.Exec(t.Context(), "update certificate_lock set token = token + 1, holder = 'two'")
	must(t, err)
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the work goes on without its lock")
	}
	if why := context.Cause(ctx); !errors.Is(why, errLeaseLost) {
		t.Errorf("the work ended by %v", why)
	}
	must(t, s.Unlock(ctx, "name"))
	var holder string
	must(t, db.Pool.QueryRow(t.Context(), "select holder from certificate_lock").Scan(&holder))
	if holder != "two" {
		t.Errorf("the lock is %q's", holder)
	}
}

// TestWhole: a certificate's parts change together or not at all.
func TestWhole(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := testStorage(t, db, "one")
	s.lease, s.renewEvery = time.Hour, time.Hour
	ctx, end := withScope(t.Context())
	defer end(nil)
	must(t, s.Lock(ctx, "name"))
	const base = "certificates/ca/mail.test/mail.test"
	store := func(generation string) error {
		for _, part := range []string{".key", ".crt", ".json"} {
			if err := s.Store(ctx, base+part, []byte(generation)); err != nil {
				return err
			}
		}
		return nil
	}
	stored := func() string {
		var list []string
		for _, part := range []string{".key", ".crt", ".json"} {
			value, err := s.Load(t.Context(), base+part)
			if err != nil {
				value = []byte("-")
			}
			list = append(list, string(value))
		}
		return strings.Join(list, " ")
	}
	must(t, s.Store(ctx, base+".key", []byte("1")))
	must(t, s.Store(ctx, base+".crt", []byte("1")))
	if got := stored(); got != "- - -" {
		t.Errorf("two of three parts: %s", got)
	}
	must(t, store("2"))
	must(t, s.Store(ctx, base+".json", []byte("3"))) // renewal information
	if got := stored(); got != "2 2 3" {
		t.Errorf("stored: %s", got)
	}
	expire(t, db.Pool, "name")
	if err := store("4"); !errors.Is(err, errLeaseLost) {
		t.Errorf("without the lock: %v", err)
	}
	// What certmagic does when the third part fails.
	must(t, s.Delete(ctx, base+".crt"))
	must(t, s.Delete(ctx, base+".key"))
	if got := stored(); got != "2 2 3" {
		t.Errorf("after a write that failed: %s", got)
	}
	must(t, s.Unlock(ctx, "name"))
	must(t, s.Delete(ctx, base+".key")) // a real one
	if got := stored(); got != "- 2 3" {
		t.Errorf("after Delete: %s", got)
	}
}

// TestLoadWhileRenewed: a node that starts while another renews reads no key beside
// another's certificate.
func TestLoadWhileRenewed(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), smtptest.NewCA(t)
	other := testStorage(t, db, "other")
	const base = "certificates/ca/mail.test/mail.test"
	renew := func() {
		ctx, end := withScope(t.Context())
		defer end(nil)
		leaf := ca.Leaf(t, "mail.test")
		must(t, errors.Join(other.Store(ctx, base+".key", leaf.KeyPEM), other.Store(ctx, base+".crt", leaf.CertPEM), other.Store(ctx, base+".json", []byte("{}"))))
	}
	renew()
	cfg := db.Pool.Config()
	cfg.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { renew(); return true, nil } // before each statement
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	defer pool.Close()
	k := &Keeper{storage: newStorage(Config{Pool: pool, Sealer: newSealer(t, 1), Node: "one", Log: slog.New(slog.DiscardHandler)})}
	_, err = k.load(t.Context(), "ca", "mail.test")
	must(t, err)
}

// TestStorageAway: trouble with the database is an error in time, and no ErrNotExist,
// which would have certmagic order.
func TestStorageAway(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := db.Pool.Config()
	cfg.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	defer pool.Close()
	held, err := pool.Acquire(t.Context()) // nothing answers
	must(t, err)
	defer held.Release()
	s := testStorage(t, db, "one")
	s.pool = pool
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, loadErr := s.Load(ctx, "a")
	_, listErr := s.List(ctx, "a", true)
	_, statErr := s.Stat(ctx, "a")
	_, recordErr := s.record(ctx, "a", "b")
	for name, err := range map[string]error{
		"Load": loadErr, "List": listErr, "Stat": statErr, "record": recordErr,
		"Store": s.Store(ctx, "a", nil), "Delete": s.Delete(ctx, "a"), "Lock": s.Lock(ctx, "a"),
	} {
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.Exists(ctx, "a") {
		t.Error("Exists without a database")
	}
}

// The first failure in a row, and each new certificate, is an event; no late one is.
func TestStorageTellsTheFeed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := testStorage(t, db, "one")
	s.lease, s.renewEvery = time.Hour, time.Hour // unless the test ends it
	ctx, end := withScope(t.Context())
	defer end(nil)
	must(t, s.Lock(ctx, "name"))
	now := time.Now()
	for range 2 {
		must(t, s.failed(ctx, Record{Authority: "ca", Name: "relay.example.com", FailingSince: now, LastError: "no", NextTry: now}))
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: now, NotAfter: now.Add(time.Hour)}
	for range 2 {
		must(t, s.succeeded(ctx, "ca", "relay.example.com", leaf, time.Now()))
	}
	must(t, s.failed(ctx, Record{Authority: "ca", Name: "relay.example.com", FailingSince: now, LastError: "again", NextTry: now}))
	must(t, s.succeeded(ctx, "ca", "relay.example.com", leaf, time.Now())) // the failure is over; it is the same certificate
	expire(t, db.Pool, "name")
	if err := s.failed(ctx, Record{Authority: "ca", Name: "relay.example.com", FailingSince: now, NextTry: now}); !errors.Is(err, errLeaseLost) {
		t.Error(err)
	}
	var events string
	must(t, db.Pool.QueryRow(t.Context(), `select string_agg(kind || ' ' || object || ' ' || coalesce(detail->>'error', detail->>'serial'), ', ' order by id) from event`).Scan(&events))
	if want := "certificate.failing relay.example.com no, certificate.issued relay.example.com 7, certificate.failing relay.example.com again"; events != want {
		t.Errorf("events: %s", events)
	}
}
