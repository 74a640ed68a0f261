package auth

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/policy/quota"
)

// news is what a Watch told.
type news struct {
	ids []int64
	all bool
}

// watcher polls by hand and keeps what it is told.
type watcher struct {
	*Watch
	t    *testing.T
	told []news
}

func newWatcher(t *testing.T, s *Store) *watcher {
	w := &watcher{Watch: NewWatch(s.pool(), slog.New(slog.DiscardHandler), false), t: t}
	w.look()
	w.told = nil
	return w
}

func (w *watcher) look() []news {
	w.t.Helper()
	w.told = nil
	must(w.t, w.poll(w.t.Context(), w.pool, func(ids []int64, all bool) {
		slices.Sort(ids)
		w.told = append(w.told, news{ids, all})
	}))
	return w.told
}

func addUsers(t *testing.T, s *Store, n int) (ids []int64) {
	for i := range n {
		u, err := s.AddUser(t.Context(), NewUser{Name: fmt.Sprint("user", i), Password: "pw"})
		must(t, err)
		ids = append(ids, u.ID)
	}
	return ids
}

func TestWatchTellsEachChangeOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	ids := addUsers(t, s, 3)
	w := newWatcher(t, s)
	expect := func(what string, want ...news) {
		t.Helper()
		got := w.look()
		if !slices.EqualFunc(got, want, func(a, b news) bool { return slices.Equal(a.ids, b.ids) && a.all == b.all }) {
			t.Errorf("%s: told %v, want %v", what, got, want)
		}
	}
	expect("nothing")
	must(t, s.SetEnabled(ctx, "user0", false, ""))
	must(t, s.AddSender(ctx, "user2", "a@b"))
	expect("two users", news{ids: []int64{ids[0], ids[2]}})
	expect("nothing since")
	must(t, s.SetEnabled(ctx, "user0", true, ""))
	expect("one again", news{ids: ids[:1]})
	addNew, err := s.AddUser(ctx, NewUser{Name: "new"})
	must(t, err)
	expect("a new user is no change")
	c, _, err := s.AddCredential(ctx, "new", NewCredential{})
	must(t, err)
	expect("a credential", news{ids: []int64{addNew.ID}})
	must(t, s.SetLimits(ctx, LimitTarget{Credential: c.ID}, []quota.Limit{{Kind: quota.Size, Max: 1}}))
	expect("a limit", news{ids: []int64{addNew.ID}})
	must(t, s.SetLimits(ctx, LimitTarget{Default: true}, []quota.Limit{{Kind: quota.Size, Max: 1}}))
	expect("a default", news{all: true})
	must(t, s.RemoveUser(ctx, "new"))
	expect("a user who is gone", news{all: true})
	expect("nothing at the end")
}

// A change is found however long after its statement the commit comes.
func TestWatchFindsLateCommits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	ids := addUsers(t, s, 2)
	w := newWatcher(t, s)
	tx, err := s.pool().Begin(ctx)
	must(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	must(t, NewStore(tx).SetEnabled(ctx, "user0", false, ""))
	for range 3 {
		must(t, s.SetEnabled(ctx, "user1", false, ""))
		if got := w.look(); len(got) != 1 || !slices.Equal(got[0].ids, ids[1:]) {
			t.Errorf("told %v", got)
		}
		// As if the window were over: only what still runs holds the floor back.
		if w.floor.After(time.Now().Add(-watchWindow + time.Second)) {
			t.Fatalf("floor %s", w.floor)
		}
	}
	var began time.Time
	must(t, tx.QueryRow(ctx, `select now()`).Scan(&began))
	var floor time.Time
	must(t, s.db.QueryRow(ctx, watchFloor, 0.0).Scan(&floor))
	if floor.After(began) {
		t.Errorf("the next poll looks from %s, a transaction runs since %s", floor, began)
	}
	must(t, tx.Commit(ctx))
	if got := w.look(); len(got) != 1 || !slices.Equal(got[0].ids, ids[:1]) {
		t.Errorf("told %v", got)
	}
	eventually(t, "the floor rises", func() bool { // autovacuum has transactions too
		must(t, s.db.QueryRow(ctx, watchFloor, 0.0).Scan(&floor))
		return floor.After(began)
	})
}

// What changed while nobody could ask is told afterwards, and very much is everybody.
func TestWatchAfterAGap(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	ids := addUsers(t, s, 1)
	w := newWatcher(t, s)
	_, err := s.db.Exec(ctx, `update app_user set version = 7, updated_at = now() - interval '10 minutes'`)
	must(t, err)
	if got := w.look(); len(got) != 0 {
		t.Errorf("told %v of long ago", got)
	}
	w.floor = w.floor.Add(-time.Hour) // the last look
	if got := w.look(); len(got) != 1 || !slices.Equal(got[0].ids, ids) {
		t.Errorf("told %v", got)
	}
	_, err = s.db.Exec(ctx, `insert into app_user (name, version) select 'u' || n, 2 from generate_series(1, $1::int) n`, watchMax+1)
	must(t, err)
	if got := w.look(); len(got) != 1 || !got[0].all {
		t.Errorf("told %d times", len(got))
	}
}

// With LISTEN a change is told immediately, and when the connection breaks another is made.
func TestWatchListens(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := testStore(t)
	ids := addUsers(t, s, 1)
	w := NewWatch(s.pool(), slog.New(slog.DiscardHandler), true)
	told := make(chan news, 1000)
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx, func(ids []int64, all bool) { told <- news{ids, all} }) })
	defer running.Wait()
	defer cancel()
	wait := func(what string, id int64) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case n := <-told:
				if n.all && id == 0 || slices.Contains(n.ids, id) {
					return
				}
			case <-timeout:
				t.Fatalf("%s was not told within %v", what, patience)
			}
		}
	}
	listening := func() (pid int32) {
		t.Helper()
		eventually(t, "somebody listens", func() bool {
			return s.db.QueryRow(ctx, `
				select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
				and query in ('listen '||$1, $2) and state = 'idle' limit 1`, Channel, watchDefaults).Scan(&pid) == nil
		})
		return pid
	}
	first := listening()
	// Ids that no poll could find, so only the notification tells them.
	must(t, s.Announce(ctx, 4711))
	wait("a notification", 4711)
	must(t, s.Announce(ctx, 0))
	wait("everybody", 0)
	_, err := s.db.Exec(ctx, `select pg_terminate_backend($1)`, first)
	must(t, err)
	_, err = s.db.Exec(ctx, `update app_user set version = version + 1, updated_at = clock_timestamp()`) // unannounced
	must(t, err)
	wait("a change while the connection was broken", ids[0])
	must(t, s.Announce(ctx, 4712))
	wait("a notification on the new connection", 4712)
}

// Without LISTEN changes are told all the same, and Forget makes them act.
func TestWatchWithoutListen(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := testStore(t)
	addUsers(t, s, 1)
	a := NewAuthenticator(s, patient)
	_, err := a.Verify(ctx, "user0", "pw", at(home))
	must(t, err)
	w := NewWatch(s.pool(), slog.New(slog.DiscardHandler), false)
	told := make(chan struct{}, 100)
	var running sync.WaitGroup
	running.Go(func() {
		w.Run(ctx, func(ids []int64, all bool) { a.Forget(ids, all); told <- struct{}{} })
	})
	defer running.Wait()
	defer cancel()
	must(t, pgx.BeginFunc(ctx, s.pool(), func(tx pgx.Tx) error { return NewStore(tx).SetEnabled(ctx, "user0", false, "") }))
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatalf("not told within %v", patience)
	}
	if _, err := a.Verify(ctx, "user0", "pw", at(home)); err != ErrCredentials {
		t.Errorf("err = %v", err)
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // what is remembered is fresh for seconds
		lookups := 0
		users := fakeUsers{"alice": withPassword(1, "pw"), "bob": withPassword(2, "pw")}
		a := newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
			lookups++
			return users.account(ctx, q)
		}), cheap, Config{})
		verify := func(want int) {
			t.Helper()
			for _, name := range []string{"alice", "bob"} {
				if _, err := a.Verify(t.Context(), name, "pw", at(home)); err != nil {
					t.Fatal(err)
				}
			}
			if lookups != want {
				t.Errorf("%d lookups, want %d", lookups, want)
			}
		}
		verify(2)
		verify(2)
		a.Forget([]int64{1, 77}, false)
		verify(3)
		a.Forget(nil, true)
		verify(5)
	})
}
