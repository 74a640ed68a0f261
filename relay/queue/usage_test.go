package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
)

// What an admin is shown is what a charge finds, and looking costs nothing.
func TestUsageAndTryCharge(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	limits := []Charge{
		limitOf(ChargeMessages, 2, time.Hour),
		limitOf(ChargeRecipients, 3, time.Hour),
		{Scope: ChargeCredential, Subject: 7, Kind: ChargeBytes, Window: 24 * time.Hour, Max: 100},
	}
	if over, err := TryCharge(ctxOf(t), db.Pool, limits, 1, 10); err != nil || over != nil {
		t.Fatalf("before anything was sent: %+v, %v", over, err)
	}
	if n := count(t, db, `select count(*) from usage_window`); n != 0 {
		t.Fatalf("trying left %d rows", n)
	}
	if _, err := charged(t, q, []string{"a@example.net", "b@example.net"}, limits...); err != nil {
		t.Fatal(err)
	}
	list, err := ReadUsage(ctxOf(t), db.Pool, 1, 7)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, want := range []int64{1, 2, 10} {
		if list[i].Used != want || list[i].Kind != limits[i].Kind || list[i].Window != limits[i].Window || list[i].Subject != limits[i].Subject {
			t.Errorf("%+v, want %d used of %+v", list[i], want, limits[i])
		}
	}
	if list, err := ReadUsage(ctxOf(t), db.Pool, 2); err != nil || len(list) != 0 {
		t.Errorf("of another user: %+v, %v", list, err)
	}
	for range 2 {
		over, err := TryCharge(ctxOf(t), db.Pool, limits, 2, 10)
		if err != nil || over == nil || over.Kind != ChargeRecipients || over.Used != 2 || over.Amount != 2 || over.RetryAt.IsZero() {
			t.Fatalf("%+v, %v", over, err)
		}
	}
	if over, err := TryCharge(ctxOf(t), db.Pool, limits, 1, 91); err != nil || over == nil || over.Kind != ChargeBytes {
		t.Fatalf("%+v, %v", over, err)
	}
}

// What is forgotten by a charge is not shown either.
func TestUsageForgets(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db, `insert into usage_window (scope, subject, kind, window_s, at, n)
		select 1, 1, 1, 3600, array[b - 62, b - 61, b], array[100, 10, 1]
		from (select floor(extract(epoch from clock_timestamp()) / 60)::bigint as b) x`)
	list, err := ReadUsage(ctxOf(t), db.Pool, 1)
	// Or 1, when a bucket ended just now.
	if err != nil || len(list) != 1 || (list[0].Used != 11 && list[0].Used != 1) {
		t.Fatalf("%+v, %v", list, err)
	}
}
