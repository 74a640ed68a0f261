package reserve

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

// ctxOf bounds a test's use of the database.
func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func exec(t testing.TB, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(ctxOf(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t testing.TB, db *pgtest.DB, sql string) int {
	t.Helper()
	var n int
	if err := db.Pool.QueryRow(ctxOf(t), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// eventually polls what other goroutines bring about in the database.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("did not come about within %v: %s", patience, what)
}

// byHand is a node's room, which looks when the test says so and makes the reserve immediately.
func byHand(db *pgtest.DB, size int64) *Room {
	return New(Config{Pool: db.Pool, Log: slog.New(slog.DiscardHandler), Size: size, First: 1, Again: 1})
}

func look(t *testing.T, r *Room) {
	t.Helper()
	if err := r.Look(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
}

func reserved(t *testing.T, db *pgtest.DB) int {
	t.Helper()
	return count(t, db, sqlReserved)
}

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// TestR5CrashGivesTheReserveBack: a server that dies of a full disk finds the room for its
// recovery, and the reserve is made again.
func TestR5CrashGivesTheReserveBack(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	server := pgtest.Server(t, pgserver.Config{Dir: dir})
	db := pgtest.On(t, server)
	r := byHand(db, 2<<20)
	look(t, r)
	if n := reserved(t, db); n < 2<<20 {
		t.Fatalf("%d octets are in reserve", n)
	}
	exec(t, db, `checkpoint`)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	again, err := pgserver.Start(ctxOf(t), pgserver.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop() })
	db.Pool.Reset()
	eventually(t, "the test's own connections are new", func() bool { return db.Pool.Ping(context.Background()) == nil })
	if n := reserved(t, db); n != 0 {
		t.Errorf("%d octets are in reserve after the recovery", n)
	}
	look(t, r)
	if n := reserved(t, db); n < 2<<20 {
		t.Errorf("%d octets are in reserve again", n)
	}
}

// TestR5WhatIsBeingWrittenEndsFirst: the reserve is for outcomes; mail that is being written when
// the disk is full would take it.
func TestR5WhatIsBeingWrittenEndsFirst(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	writing, asked := make(chan struct{}), make(chan struct{}, 100)
	r := New(Config{Pool: db.Pool, Log: slog.New(slog.DiscardHandler), Size: 1 << 20, First: 1, Again: time.Hour, Look: time.Hour,
		Announce: func(context.Context) {}, Written: func() { asked <- struct{}{}; <-writing }})
	look(t, r)
	ctx, stop := context.WithCancel(ctxOf(t))
	defer stop()
	go r.Run(ctx)
	r.Heard(&pgconn.PgError{Code: "53100"})
	<-asked
	if !r.Full() || reserved(t, db) == 0 {
		t.Errorf("full: %v, %d octets in reserve", r.Full(), reserved(t, db))
	}
	close(writing)
	eventually(t, "the reserve is given back", func() bool { return reserved(t, db) == 0 })
}

// TestR5TryThatIsLeft: a node that is stopped while it fills the reserve has not found the
// disk full.
func TestR5TryThatIsLeft(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r := byHand(db, 1<<20)
	hold, err := db.Pool.Begin(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(ctxOf(t), `lock table reserve in share mode`); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(ctxOf(t))
	looked := make(chan error, 1)
	go func() { looked <- r.Look(ctx) }()
	eventually(t, "the reserve is being filled", func() bool {
		return count(t, db, `select count(*) from pg_locks where relation = 'reserve'::regclass and not granted`) == 1
	})
	stop()
	if err := <-looked; err == nil {
		t.Error("the reserve was filled beside the lock")
	}
	if err := hold.Rollback(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, `select count(*) from room where trying or full_at is not null`); n != 0 {
		t.Error("the next node takes it for a full disk")
	}
}

// TestR5ClockSetBack: a try that was noted while the clock was wrong keeps no node from
// finding out that there is room.
func TestR5ClockSetBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r := byHand(db, 1<<20)
	r.cfg.Again = tryEvery
	exec(t, db, sqlFull)
	exec(t, db, `update room set tried_at = now() + interval '1 day'`)
	look(t, r)
	if err := r.Refuses(); err != nil {
		t.Error(err)
	}
}
