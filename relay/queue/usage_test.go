package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/policy/quota"
)

// What an admin is shown is what a charge finds, and looking costs nothing.
func TestUsageAndTryCharge(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	limits := []quota.Limit{
		limitOf(quota.Messages, 2, time.Hour),
		limitOf(quota.Recipients, 3, time.Hour),
		{Scope: quota.Credential, Subject: "7", Kind: quota.Bytes, Window: 24 * time.Hour, Max: 100},
	}
	if over, err := quota.Try(ctxOf(t), db.Pool, quota.Charge{Limits: limits, Recipients: 1, Size: 10}); err != nil || over != nil {
		t.Fatalf("before anything was sent: %+v, %v", over, err)
	}
	if n := count(t, db, `select count(*) from usage_window`); n != 0 {
		t.Fatalf("trying left %d rows", n)
	}
	if _, err := charged(t, q, []string{"a@example.net", "b@example.net"}, limits...); err != nil {
		t.Fatal(err)
	}
	used, err := quota.ReadUsage(ctxOf(t), db.Pool, limits)
	if err != nil || len(used) != 3 {
		t.Fatalf("%+v, %v", used, err)
	}
	for i, want := range []int64{1, 2, 10} {
		if n, ok := used.Of(limits[i]); n != want || !ok {
			t.Errorf("%d, want %d used of %+v", n, want, limits[i])
		}
	}
	if used, err := quota.ReadUsage(ctxOf(t), db.Pool, []quota.Limit{{Kind: quota.Messages, Scope: quota.User, Subject: "2"}}); err != nil || len(used) != 0 {
		t.Errorf("of another user: %+v, %v", used, err)
	}
	for range 2 {
		over, err := quota.Try(ctxOf(t), db.Pool, quota.Charge{Limits: limits, Recipients: 2, Size: 10})
		if err != nil || over == nil || over.Kind != quota.Recipients || over.Used != 2 || over.Amount != 2 || over.RetryAt.IsZero() {
			t.Fatalf("%+v, %v", over, err)
		}
	}
	if over, err := quota.Try(ctxOf(t), db.Pool, quota.Charge{Limits: limits, Recipients: 1, Size: 91}); err != nil || over == nil || over.Kind != quota.Bytes {
		t.Fatalf("%+v, %v", over, err)
	}
}

// What is forgotten by a charge is not shown either.
func TestUsageForgets(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db, `insert into usage_window (scope, subject, kind, window_s, at, n)
		select 'user', 1, 'messages', 3600, array[b - 62, b - 61, b], array[100, 10, 1]
		from (select floor(extract(epoch from clock_timestamp()) / 60)::bigint as b) x`)
	limit := limitOf(quota.Messages, 2, time.Hour)
	used, err := quota.ReadUsage(ctxOf(t), db.Pool, []quota.Limit{limit})
	// Or 1, when a bucket ended just now.
	if n, _ := used.Of(limit); err != nil || (n != 11 && n != 1) {
		t.Fatalf("%+v, %v", used, err)
	}
}
