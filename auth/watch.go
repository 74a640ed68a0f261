package auth

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	watchEvery = time.Second
	// How long after it was made a change is looked for.
	watchWindow = 15 * time.Second
	// How many changed users of one look count as everybody.
	watchMax = 1000
)

// Watch tells a node which users changed. It finds every change within a second by
// asking the database, and immediately where the database can notify.
//
// A change is never missed: Watch looks for it until 15 s after it was made and, if its
// transaction takes longer, until that has ended. After an outage of the database it reports
// everything that changed meanwhile.
type Watch struct {
	pool     *pgxpool.Pool
	notify   bool
	trouble  trouble
	floor    time.Time       // changes from then on may be news; the database's clock
	seen     map[int64]int64 // versions of users that changed since floor
	defaults time.Time       // defaults_changed_at as told; zero: not read yet
}

// NewWatch returns a Watch on pool. With notify it keeps one connection of the pool
// for LISTEN, which must lead to the server itself and not to a pooler.
func NewWatch(pool *pgxpool.Pool, log *slog.Logger, notify bool) *Watch {
	return &Watch{pool: pool, notify: notify, trouble: trouble{what: "the watch for changed users", log: log}}
}

// Run calls changed for the users that changed, or with all set for everybody, until ctx
// ends. The calls come one after the other, and may come twice for one change. A broken
// connection is replaced.
func (w *Watch) Run(ctx context.Context, changed func(ids []int64, all bool)) {
	look := func() {
		if w.notify {
			w.trouble.heard(w.listen(ctx, changed)) // returns when the connection broke
			return
		}
		w.trouble.heard(w.poll(ctx, w.pool, changed))
	}
	look()
	every(ctx, watchEvery, look)
}

// listen waits for notifications and polls, on one connection, until that fails.
func (w *Watch) listen(ctx context.Context, changed func(ids []int64, all bool)) error {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer func() {
		_ = conn.Conn().Close(context.WithoutCancel(ctx)) // it listens: not for others
		conn.Release()
	}()
	if err := w.begin(ctx, conn.Conn()); err != nil {
		return err
	}
	for {
		if err := w.poll(ctx, conn, changed); err != nil {
			return err
		}
		w.trouble.heard(nil)
		if err := w.await(ctx, conn.Conn(), changed); err != nil {
			return err
		}
	}
}

func (w *Watch) begin(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, "listen "+Channel)
	return err
}

// await forwards notifications until it is time to poll.
func (w *Watch) await(ctx context.Context, conn *pgx.Conn, changed func(ids []int64, all bool)) error {
	waiting, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	for {
		n, err := conn.WaitForNotification(waiting)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && pgconn.Timeout(err):
			return nil
		case err != nil:
			return err
		}
		if id, err := strconv.ParseInt(n.Payload, 10, 64); err == nil && n.Channel == Channel {
			told(id, changed)
		}
	}
}

func told(id int64, changed func(ids []int64, all bool)) {
	if id == 0 {
		changed(nil, true)
		return
	}
	changed([]int64{id}, false)
}

const (
	// The time from which on the next poll has to look: no change that is not
	// committed yet was made before its transaction began. Transactions of other roles may
	// be invisible to ours; then only the window counts.
	watchFloor = `
		select least(now() - make_interval(secs => $1), (
			select min(xact_start) from pg_stat_activity where datname = current_database() and backend_xid is not null))`
	// A user of version 1 has just been added: nobody has anything cached of it.
	watchUsers = `
		select id, version from app_user
		where updated_at >= coalesce($1, now() - make_interval(secs => $2)) and version > 1
		order by updated_at limit $3`
	watchDefaults = `select defaults_changed_at from auth_state`
)

// poll asks who changed. The floor of the next poll is read first, on a snapshot before
// that of the users.
func (w *Watch) poll(ctx context.Context, db pg.DB, changed func(ids []int64, all bool)) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var floor, defaults time.Time
	versions := make(map[int64]int64)
	var batch pgx.Batch
	batch.Queue(watchFloor, watchWindow.Seconds()).QueryRow(func(row pgx.Row) error { return row.Scan(&floor) })
	batch.Queue(watchUsers, nullTime(w.floor), watchWindow.Seconds(), watchMax+1).Query(func(rows pgx.Rows) error {
		var id, version int64
		_, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error { versions[id] = version; return nil })
		return err
	})
	batch.Queue(watchDefaults).QueryRow(func(row pgx.Row) error { return row.Scan(&defaults) })
	if err := db.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("read changed users: %w", err)
	}
	w.tell(versions, defaults, changed)
	w.floor = floor
	return nil
}

func (w *Watch) tell(versions map[int64]int64, defaults time.Time, changed func(ids []int64, all bool)) {
	var news []int64
	for id, version := range versions {
		if w.seen[id] != version {
			news = append(news, id)
		}
	}
	all := len(versions) > watchMax || !w.defaults.IsZero() && !defaults.Equal(w.defaults)
	w.seen, w.defaults = versions, defaults
	switch {
	case all:
		changed(nil, true)
	case len(news) > 0:
		changed(news, false)
	}
}
