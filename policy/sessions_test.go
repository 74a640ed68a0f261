package policy

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/internal/pgtest"
)

// addNode starts an epoch.
func addNode(t *testing.T, db *pgtest.DB) int64 {
	t.Helper()
	var epoch int64
	err := db.Pool.QueryRow(t.Context(), `insert into node (name, expires_at) values ('n', now()) returning epoch`).Scan(&epoch)
	if err != nil {
		t.Fatal(err)
	}
	return epoch
}

func newTestSessions(t *testing.T, db *pgtest.DB) (*Sessions, int64) {
	epoch := addNode(t, db)
	return patientSessions(db.Pool, func() int64 { return epoch }), epoch
}

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

func patientSessions(pool *pgxpool.Pool, epoch func() int64) *Sessions {
	s := NewSessions(pool, epoch, slog.New(slog.DiscardHandler))
	s.calls = patience
	return s
}

// run runs s until stop is called, or the test ends.
func run(t *testing.T, s *Sessions) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func exec(t *testing.T, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func rows(t *testing.T, db *pgtest.DB) (n int) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), `select count(*) from live_session`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// waitRows waits until the background work has left n rows.
func waitRows(t *testing.T, db *pgtest.DB, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for got := rows(t, db); got != n; got = rows(t, db) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are counted after %v, want %d", got, patience, n)
		}
		<-tick.C
	}
}

// enter wants a session let in, or refused with text.
func enter(t *testing.T, s *Sessions, id auth.Identity, refused string) (leave func()) {
	t.Helper()
	leave, v, err := s.Enter(t.Context(), id)
	if err != nil || v.Allowed != (refused == "") {
		t.Fatalf("enter: %+v, %v; want %q", v, err, refused)
	}
	if !v.Allowed && (!strings.HasPrefix(v.Reply.String(), "454 4.7.0 ") || !strings.Contains(v.Reply.String()+" "+v.Rule, refused)) {
		t.Errorf("refused with %s by %s, want %q", v.Reply, v.Rule, refused)
	}
	return leave
}

func under(credential int64, limits ...auth.Limit) auth.Identity {
	return auth.Identity{UserID: 7, CredentialID: credential, Name: "alice", Limits: limits}
}

func sessions(most int64, source auth.LimitSource) auth.Limit {
	return auth.Limit{Kind: auth.LimitSessions, Max: most, Source: source}
}

func TestSessionsStatements(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for name, sql := range map[string]string{
		"lock": sqlLockSessions, "enter": sqlEnterSession, "notDurable": sqlSessionsNotDurable,
		"leave": sqlLeaveSessions, "list": sqlListSessions, "open": sqlOpenSessions, "unlist": sqlUnlistSessions,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSessionsExact: two nodes at once never let in more than the limit, nor fewer, in
// whichever way statements are sent; poolers ask for the others than the usual one.
func TestSessionsExact(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cfg := db.Pool.Config()
			cfg.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			nodes := make([]*Sessions, 2)
			for i := range nodes {
				epoch := addNode(t, db)
				nodes[i] = patientSessions(pool, func() int64 { return epoch })
				run(t, nodes[i])
			}
			for range 3 {
				fillAndLeave(t, db, nodes)
			}
		})
	}
}

// fillAndLeave has 50 sessions want in at once where 7 may be, and ends those that are.
func fillAndLeave(t *testing.T, db *pgtest.DB, nodes []*Sessions) {
	t.Helper()
	const most, clients = 7, 50
	id := under(9, sessions(most, auth.FromUser), sessions(most+1, auth.FromCredential))
	var mu sync.Mutex
	var leaves []func()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			leave, v, err := nodes[i%len(nodes)].Enter(context.Background(), id)
			if err != nil {
				t.Error(err)
			}
			if v.Allowed {
				mu.Lock()
				leaves = append(leaves, leave)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(leaves) != most || rows(t, db) != most {
		t.Errorf("%d were let in and %d are counted, want %d", len(leaves), rows(t, db), most)
	}
	for _, leave := range leaves {
		all.Go(leave)
	}
	all.Wait()
	for _, s := range nodes { // as Run does every half minute
		if err := s.relist(t.Context(), s.epoch()); err != nil {
			t.Error(err)
		}
	}
	waitRows(t, db, 0)
}

// TestSessionsScopes: the tightest limit on the user counts all credentials, that of a
// credential its own; the reply says which one refused.
func TestSessionsScopes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, _ := newTestSessions(t, db)
	user := []auth.Limit{sessions(5, auth.FromDefault), sessions(3, auth.FromUser)}
	both := append(user, sessions(1, auth.FromCredential))
	enter(t, s, under(1, both...), "")
	enter(t, s, under(1, both...), "by this credential: 1 are open, at most 1 are allowed; close one or try again later sessions credential")
	enter(t, s, under(2, both...), "")
	enter(t, s, under(3, user...), "")
	enter(t, s, under(4, user...), "for you: 3 are open, at most 3 are allowed; close one or try again later sessions user")
	enter(t, s, under(4, sessions(2, auth.FromDefault)), "sessions default")
	enter(t, s, under(4, sessions(0, auth.FromCredential)), "0 are open, at most 0")
	other := under(1, both...)
	other.UserID = 8
	enter(t, s, other, "")
}

// TestSessionsDeadEpoch: the sessions of a node that died are free at once, and whoever
// meets their rows deletes them.
func TestSessionsDeadEpoch(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	dead, epoch := newTestSessions(t, db)
	alive, _ := newTestSessions(t, db)
	id := under(9, sessions(2, auth.FromUser))
	enter(t, dead, id, "")
	enter(t, dead, id, "")
	enter(t, alive, id, "2 are open")
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	enter(t, alive, id, "")
	if n := rows(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if _, _, err := dead.Enter(t.Context(), id); err == nil {
		t.Error("a session was let in under a dead epoch")
	}
	if n := rows(t, db); n != 1 {
		t.Errorf("%d rows, want 1: one under a dead epoch counts for nothing", n)
	}
}

// TestSessionsNewEpoch: a node that lost its epoch lists what is open under the new one.
func TestSessionsNewEpoch(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var mu sync.Mutex
	epoch := addNode(t, db)
	s := patientSessions(db.Pool, func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return epoch
	})
	id := under(9, sessions(2, auth.FromUser))
	first := enter(t, s, id, "")
	enter(t, s, id, "")
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	exec(t, db, `delete from live_session where id = (select min(id) from live_session)`) // met by another node
	mu.Lock()
	epoch = addNode(t, db)
	mu.Unlock()
	if err := s.relist(t.Context(), epoch); err != nil {
		t.Fatal(err)
	}
	enter(t, s, id, "2 are open")
	first()
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	enter(t, s, id, "")
}

// TestSessionsLostRow: a row whose delete was lost does not count for ever; one that is
// as old and open does.
func TestSessionsLostRow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, epoch := newTestSessions(t, db)
	id := under(9, sessions(3, auth.FromUser))
	enter(t, s, id, "")
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) values ($1, 7, 9)`, epoch)
	exec(t, db, `update live_session set opened_at = opened_at - interval '2 minutes'`)
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) values ($1, 7, 9)`, epoch) // on its way
	enter(t, s, id, "3 are open")
	run(t, s) // a new epoch is listed with the first tick
	waitRows(t, db, 2)
	enter(t, s, id, "")
	enter(t, s, id, "3 are open")
}

// TestSessionsOfTheDead: what a node that died has left goes, also when nobody's
// sessions are limited any more.
func TestSessionsOfTheDead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, epoch := newTestSessions(t, db)
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) select $1 + 1000, 7, 9 from generate_series(1, 10)`, epoch)
	other := addNode(t, db)
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) values ($1, 7, 9)`, other)
	run(t, s)
	waitRows(t, db, 1)
}

// TestSessionsLeaveInTrouble: what could not be deleted is deleted when the database is
// back, and at the end.
func TestSessionsLeaveInTrouble(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, _ := newTestSessions(t, db)
	id := under(9, sessions(3, auth.FromUser))
	leave, last := enter(t, s, id, ""), enter(t, s, id, "")
	broken, cancel := context.WithCancel(t.Context())
	cancel()
	leave()
	if err := s.sweep(broken); err == nil {
		t.Fatal("swept without a database")
	}
	if n := rows(t, db); n != 2 {
		t.Fatalf("%d rows, want 2", n)
	}
	stop := run(t, s)
	waitRows(t, db, 1)
	last()
	stop()
	if n := rows(t, db); n != 0 {
		t.Errorf("%d rows are left at the end", n)
	}
}

// TestSessionsWithoutLimit costs nothing once it has looked for what others left: there
// is no database here at all.
func TestSessionsWithoutLimit(t *testing.T) {
	t.Parallel()
	s := NewSessions(nil, func() int64 { return 1 }, slog.New(slog.DiscardHandler))
	s.seen = true
	leave := enter(t, s, under(9, auth.Limit{Kind: auth.LimitSize, Max: 1, Source: auth.FromUser}), "")
	leave()
	if err := errors.Join(s.sweep(t.Context()), s.relist(t.Context(), 1)); err != nil {
		t.Error(err)
	}
	none := NewSessions(nil, func() int64 { return 0 }, slog.New(slog.DiscardHandler))
	if _, _, err := none.Enter(t.Context(), under(9, sessions(1, auth.FromUser))); !errors.Is(err, errNoEpoch) {
		t.Errorf("without an epoch: %v", err)
	}
}
