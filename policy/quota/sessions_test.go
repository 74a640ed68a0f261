package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

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

func newTestSessions(t *testing.T, db *pgtest.DB) (*Counter, int64) {
	epoch := addNode(t, db)
	return patientSessions(db.Pool, func() int64 { return epoch }), epoch
}

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

func patientSessions(pool *pgxpool.Pool, epoch func() int64) *Counter {
	s := NewCounter(pool, epoch, slog.New(slog.DiscardHandler))
	s.calls = patience
	return s
}

// run runs s until stop is called, or the test ends.
func run(t *testing.T, s *Counter) (stop func()) {
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

// person is who has sessions, and the limits that it is under.
type person struct {
	Session
	limits []Limit
}

// enter wants a session let in, or refused by a limit as text has it: "3 of 3 user".
func enter(t *testing.T, s *Counter, p person, refused string) (leave func()) {
	t.Helper()
	leave, over, err := s.Enter(t.Context(), p.Session, p.limits)
	if err != nil || (over == nil) != (refused == "") {
		t.Fatalf("enter: %+v, %v; want %q", over, err, refused)
	}
	if over != nil {
		if got := fmt.Sprintf("%d of %d %s", over.Used, over.Max, over.Scope); got != refused || over.Kind != Sessions {
			t.Errorf("refused by %s of %s, want %q", got, over.Kind, refused)
		}
	}
	return leave
}

// under is user 7 by a credential.
func under(credential int64, limits ...Limit) person {
	p := person{Session{User: 7, Credential: credential, Domain: "example.com"}, slices.Clone(limits)}
	for i := range p.limits {
		p.limits[i].Subject = map[Scope]string{Domain: "example.com", Credential: ID(credential)}[p.limits[i].Scope]
		if p.limits[i].Subject == "" {
			p.limits[i].Subject = ID(7)
		}
	}
	return p
}

func sessions(most int64, scope Scope) Limit {
	return Limit{Kind: Sessions, Max: most, Scope: scope}
}

// Every statement of the package is one that the schema understands.
func TestSessionsStatements(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// TestSessionsExact: two nodes together never let in more than the limit, nor fewer, in
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
			nodes := make([]*Counter, 2)
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

// fillAndLeave has 50 sessions want in concurrently where 7 may be, and ends those that are.
func fillAndLeave(t *testing.T, db *pgtest.DB, nodes []*Counter) {
	t.Helper()
	const most, clients = 7, 50
	id := under(9, sessions(most, User), sessions(most+1, Credential))
	var mu sync.Mutex
	var leaves []func()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			leave, over, err := nodes[i%len(nodes)].Enter(context.Background(), id.Session, id.limits)
			if err != nil {
				t.Error(err)
			}
			if over == nil {
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
// credential its own; the result says which one refused.
func TestSessionsScopes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, _ := newTestSessions(t, db)
	user := []Limit{sessions(5, Default), sessions(3, User)}
	both := append(user, sessions(1, Credential))
	enter(t, s, under(1, both...), "")
	enter(t, s, under(1, both...), "1 of 1 credential")
	enter(t, s, under(2, both...), "")
	enter(t, s, under(3, user...), "")
	enter(t, s, under(4, user...), "3 of 3 user")
	enter(t, s, under(4, sessions(2, Default)), "3 of 2 default")
	enter(t, s, under(4, sessions(0, Credential)), "0 of 0 credential")
	other := under(1, both...)
	other.User = 8
	enter(t, s, other, "")
}

// TestSessionsDeadEpoch: the sessions of a node that died are free immediately, and whoever
// meets their rows deletes them.
func TestSessionsDeadEpoch(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	dead, epoch := newTestSessions(t, db)
	alive, _ := newTestSessions(t, db)
	id := under(9, sessions(2, User))
	enter(t, dead, id, "")
	enter(t, dead, id, "")
	enter(t, alive, id, "2 of 2 user")
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	enter(t, alive, id, "")
	if n := rows(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if _, _, err := dead.Enter(t.Context(), id.Session, id.limits); err == nil {
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
	id := under(9, sessions(2, User))
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
	enter(t, s, id, "2 of 2 user")
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
	id := under(9, sessions(3, User))
	enter(t, s, id, "")
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) values ($1, 7, 9)`, epoch)
	exec(t, db, `update live_session set opened_at = opened_at - interval '2 minutes'`)
	exec(t, db, `insert into live_session (epoch, user_id, credential_id) values ($1, 7, 9)`, epoch) // on its way
	enter(t, s, id, "3 of 3 user")
	run(t, s) // a new epoch is listed with the first tick
	waitRows(t, db, 2)
	enter(t, s, id, "")
	enter(t, s, id, "3 of 3 user")
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
	id := under(9, sessions(3, User))
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
	s := NewCounter(nil, func() int64 { return 1 }, slog.New(slog.DiscardHandler))
	s.seen = true
	leave := enter(t, s, under(9, Limit{Kind: Size, Max: 1, Scope: User}), "")
	leave()
	if err := errors.Join(s.sweep(t.Context()), s.relist(t.Context(), 1)); err != nil {
		t.Error(err)
	}
	none := NewCounter(nil, func() int64 { return 0 }, slog.New(slog.DiscardHandler))
	if _, _, err := none.Enter(t.Context(), Session{User: 7, Credential: 9}, under(9, sessions(1, User)).limits); !errors.Is(err, errNoEpoch) {
		t.Errorf("without an epoch: %v", err)
	}
}

// TestSessionsOfADomain: a domain's limit counts the sessions of all its users, across all
// nodes, those from before it was set too, and nobody else's.
func TestSessionsOfADomain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a, epoch := newTestSessions(t, db)
	b, _ := newTestSessions(t, db)
	of := func(user int64, limits ...Limit) person {
		p := under(9, limits...)
		p.User = user
		return p
	}
	together, own := sessions(3, Domain), sessions(2, User)
	enter(t, a, of(1, own), "")
	enter(t, b, of(2, own, together), "")
	leave := enter(t, b, of(3, together), "")
	enter(t, a, of(4, together), "3 of 3 domain")
	other := of(5, own)
	other.Domain = "example.net"
	enter(t, a, other, "")
	leave()
	if err := b.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	enter(t, b, of(2, own, together), "")
	enter(t, b, of(4, together), "3 of 3 domain")
	limits := of(2, own, together).limits
	used, err := ReadUsage(t.Context(), db.Pool, limits)
	if n, _ := used.Of(limits[1]); err != nil || n != 3 {
		t.Errorf("%v, %v", used, err)
	}
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	enter(t, b, of(4, together), "")
	if err := b.relist(t.Context(), b.epoch()); err != nil {
		t.Fatal(err)
	}
	enter(t, b, of(4, together), "3 of 3 domain")
}

// Two nodes never let in more of a domain than its limit, whoever wants in.
func TestSessionsOfADomainExact(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a, _ := newTestSessions(t, db)
	b, _ := newTestSessions(t, db)
	var mu sync.Mutex
	let := 0
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			who := under(9, sessions(7, Domain))
			who.User = int64(i % 5)
			_, over, err := []*Counter{a, b}[i%2].Enter(context.Background(), who.Session, who.limits)
			if err != nil {
				t.Error(err)
			}
			if over == nil {
				mu.Lock()
				let++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if let != 7 || rows(t, db) != 7 {
		t.Errorf("%d were let in and %d are counted, want 7", let, rows(t, db))
	}
}
