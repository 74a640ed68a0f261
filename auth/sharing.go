package auth

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	shareEvery = 500 * time.Millisecond
	shareBatch = 1000 // counts written at once
	pullMax    = 10_000
	// A row may be older than those that were read before it: its time is that of the
	// statement, not of the commit. Reading one twice changes nothing.
	pullSlack = 2 * time.Second
	// After so long, 18 half-lives, a count is 0.
	failuresKept = 3 * time.Hour
	expireEvery  = time.Minute
)

// sharing makes the counts of a throttle those of all nodes: it adds what was counted
// here to the table auth_failure, and takes over the sums that changed.
//
// A database that is away costs nothing but the view of the other nodes. What was
// counted meanwhile stays in the throttle, as bounded as it is, until it can be written.
type sharing struct {
	store    *Store
	throttle *throttle
	last     time.Duration // what is left is told within it
	trouble  trouble
	pulled   time.Time // when the last pull began; zero: never
	expired  time.Time
}

// run shares until ctx ends, and then tells the others what is left.
func (s *sharing) run(ctx context.Context) {
	every(ctx, shareEvery, func() { s.trouble.heard(s.round(ctx)) })
	ctx, cancel := atLast(ctx, s.last)
	defer cancel()
	s.trouble.heard(s.push(ctx))
}

func (s *sharing) round(ctx context.Context) error {
	if err := s.push(ctx); err != nil {
		return err
	}
	if err := s.pull(ctx); err != nil {
		return err
	}
	if now := time.Now(); now.Sub(s.expired) >= expireEvery {
		s.expired = now
		return s.store.expireFailures(ctx)
	}
	return nil
}

func (s *sharing) push(ctx context.Context) error {
	for {
		reports := s.throttle.take(shareBatch)
		if len(reports) == 0 {
			return nil
		}
		if err := s.store.addFailures(ctx, reports); err != nil {
			s.throttle.giveBack(reports)
			return err
		}
		if len(reports) < shareBatch {
			return nil
		}
	}
}

func (s *sharing) pull(ctx context.Context) error {
	began, window := time.Now(), failuresKept
	if !s.pulled.IsZero() {
		window = min(began.Sub(s.pulled)+pullSlack, failuresKept)
	}
	totals, err := s.store.failures(ctx, window)
	if err != nil {
		return err
	}
	s.throttle.merge(totals, time.Now())
	s.pulled = began
	return nil
}

// addFailures writes reports. Those that begin anew go first and each statement locks
// its rows in the order of their keys, so that nodes do not block each other.
func (s *Store) addFailures(ctx context.Context, reports []report) error {
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
		if err := s.relaxedExec(ctx, clearFailures, cleared); err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return s.relaxedExec(ctx, addFailures, keys, failures)
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

func (s *Store) relaxedExec(ctx context.Context, sql string, args ...any) error {
	return s.relaxed(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// failures returns the newest of the counts that were changed within a time.
func (s *Store) failures(ctx context.Context, within time.Duration) ([]total, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, `
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

// expireFailures deletes counts that are 0 by now.
func (s *Store) expireFailures(ctx context.Context) error {
	const batch = 10_000
	for {
		var n int64
		err := s.relaxed(ctx, func(ctx context.Context, tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `
				delete from auth_failure where key in (
					select key from auth_failure where updated_at < now() - make_interval(secs => $1)
					order by key for update skip locked limit $2)`, failuresKept.Seconds(), batch)
			n = tag.RowsAffected()
			return err
		})
		if err != nil || n < batch {
			return err
		}
	}
}
