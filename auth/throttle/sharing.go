package throttle

import (
	"context"
	"time"

	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
)

const (
	// ShareEvery is how often a node is to Share.
	ShareEvery = 500 * time.Millisecond

	shareBatch = 1000 // counts written by one statement
	pullMax    = 10_000
	// A row may be older than those that were read before it: its time is that of the
	// statement, not of the commit. Reading one twice changes nothing.
	pullSlack = 2 * time.Second
	// After so long, 18 half-lives, a count is 0.
	failuresKept = 3 * time.Hour
	expireEvery  = time.Minute
	callTime     = 10 * time.Second // of each call to the database
)

// Share makes the counts those of all nodes: it adds the counts of this node to the table
// auth_failure, and takes over the sums that changed. It is not for concurrent use.
//
// While the database is away, counts stay in memory, within the same bounds, until they
// can be written.
func (t *Throttle) Share(ctx context.Context, db pg.DB) error {
	if err := t.Tell(ctx, db); err != nil {
		return err
	}
	if err := t.pull(ctx, db); err != nil {
		return err
	}
	if now := time.Now(); now.Sub(t.expired) >= expireEvery {
		t.expired = now
		return expire(ctx, db)
	}
	return nil
}

// Tell is the half of Share that writes.
func (t *Throttle) Tell(ctx context.Context, db pg.DB) error {
	for {
		reports := t.take(shareBatch)
		if len(reports) == 0 {
			return nil
		}
		if err := add(ctx, db, reports); err != nil {
			t.giveBack(reports)
			return err
		}
		if len(reports) < shareBatch {
			return nil
		}
	}
}

func (t *Throttle) pull(ctx context.Context, db pg.DB) error {
	began, window := time.Now(), failuresKept
	if !t.pulled.IsZero() {
		window = min(began.Sub(t.pulled)+pullSlack, failuresKept)
	}
	totals, err := changed(ctx, db, window)
	if err != nil {
		return err
	}
	t.merge(totals, time.Now())
	t.pulled = began
	return nil
}

// add writes reports. Those that begin anew go first and each statement locks
// its rows in the order of their keys, so that nodes do not block each other.
func add(ctx context.Context, db pg.DB, reports []report) error {
	var cleared, keys [][]byte
	var failures []int32
	for _, r := range reports {
		if r.cleared {
			cleared = append(cleared, r.key[:])
		}
		if r.failures > 0 {
			keys, failures = append(keys, r.key[:]), append(failures, int32(r.failures))
		}
	}
	if len(cleared) > 0 {
		if err := relaxed(ctx, db, clearFailures, cleared); err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return relaxed(ctx, db, addFailures, keys, failures)
}

const (
	clearFailures = `
		insert into auth_failure (key, failures, since, updated_at)
		select r.key, 0, clock_timestamp(), clock_timestamp() from unnest($1::bytea[]) r(key)
		on conflict (key) do update set failures = 0, since = excluded.since, updated_at = excluded.updated_at`

	halvings    = `least(31, floor(extract(epoch from excluded.updated_at - f.since) / 600))::integer`
	addFailures = `
		insert into auth_failure as f (key, failures, since, updated_at)
		select r.key, r.n, clock_timestamp(), clock_timestamp() from unnest($1::bytea[], $2::integer[]) r(key, n)
		on conflict (key) do update set
			failures = (f.failures >> ` + halvings + `) + excluded.failures,
			since = case when f.failures >> ` + halvings + ` = 0 then excluded.since
			        else f.since + ` + halvings + ` * interval '10 minutes' end,
			updated_at = excluded.updated_at`
)

func relaxed(ctx context.Context, db pg.DB, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return pg.Relaxed(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// changed returns the newest of the counts that were changed within a time.
func changed(ctx context.Context, db pg.DB, within time.Duration) ([]total, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := db.Query(ctx, `
		select key, failures, extract(epoch from clock_timestamp() - since)::float8 from auth_failure
		where updated_at > now() - make_interval(secs => $1) order by updated_at desc limit $2`,
		within.Seconds(), pullMax)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t total, err error) {
		var k []byte
		var age float64
		err = row.Scan(&k, &t.failures, &age)
		copy(t.key[:], k)
		t.age = time.Duration(age * float64(time.Second))
		return t, err
	})
}

// expire deletes counts that are 0 by now.
func expire(ctx context.Context, db pg.DB) error {
	const batch = 10_000
	for {
		n, err := expireOnce(ctx, db, batch)
		if err != nil || n < batch {
			return err
		}
	}
}

func expireOnce(ctx context.Context, db pg.DB, most int64) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = pg.Relaxed(ctx, db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			delete from auth_failure where key in (
				select key from auth_failure where updated_at < now() - make_interval(secs => $1)
				order by key for update skip locked limit $2)`, failuresKept.Seconds(), most)
		n = tag.RowsAffected()
		return err
	})
	return n, err
}
