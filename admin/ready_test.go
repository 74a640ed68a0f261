package admin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/admin/health"
	"postern/relay/queue/reserve"
)

// However often it is asked, a check is asked once a second; one that hangs costs the
// page its patience, and is not asked again until it has answered.
func TestReadinessIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quick, slow atomic.Int32
		release := make(chan struct{})
		r := newReadiness([]Check{
			{"quick", func(context.Context) health.Finding { quick.Add(1); return health.Finding{Status: health.OK} }},
			{"slow", func(context.Context) health.Finding {
				if slow.Add(1) == 1 {
					<-release
				}
				return health.Finding{Status: health.OK, Text: "late"}
			}},
		})
		began := time.Now()
		first := r.report(t.Context())
		if took := time.Since(began); took != checkTime || first.Ready || first.Checks[1].State != health.Failed || first.Checks[0].State != health.OK {
			t.Fatalf("after %v: %+v", took, first)
		}
		for range 100 {
			r.report(t.Context())
		}
		if quick.Load() != 1 {
			t.Errorf("asked %d times within a second", quick.Load())
		}
		time.Sleep(checkAge)
		if r.report(t.Context()).Ready || slow.Load() != 1 {
			t.Errorf("the check that hangs was asked %d times", slow.Load())
		}
		close(release)
		time.Sleep(time.Hour)
		if now := r.report(t.Context()); !now.Ready || slow.Load() != 2 {
			t.Errorf("an answer of an hour ago was taken, or none: asked %d times, %+v", slow.Load(), now)
		}
		r.wait()
	})
}

// A client that goes away does not make the node unready for the next.
func TestReadinessOutlivesItsClient(t *testing.T) {
	t.Parallel()
	r := newReadiness([]Check{{"one", func(ctx context.Context) health.Finding {
		if ctx.Err() != nil {
			return health.Finding{Status: health.Failed}
		}
		return health.Finding{Status: health.OK}
	}}})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if found := r.report(gone); !found.Ready {
		t.Errorf("%+v", found)
	}
}

func TestCertificateCheck(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	cert := func(age, left time.Duration) health.Certificate {
		return health.Certificate{Name: "relay.test", NotBefore: now.Add(-age), NotAfter: now.Add(left)}
	}
	failing := func(c health.Certificate) health.Certificate {
		c.FailingSince, c.Error = now.Add(-time.Hour), "the CA is down"
		return c
	}
	for _, tc := range []struct {
		name  string
		list  []health.Certificate
		state health.Status
		says  string
	}{
		{"none at all", nil, health.Failed, "no certificate"},
		{"none yet", []health.Certificate{{Name: "relay.test", Error: "the CA is down"}}, health.Failed, "the CA is down"},
		{"fresh", []health.Certificate{cert(day, 89*day)}, health.OK, "valid until 2030-03-31"},
		{"expired", []health.Certificate{cert(90*day, -time.Second)}, health.Failed, "expired at"},
		{"at its last second", []health.Certificate{cert(90*day, 0)}, health.Failed, "expired at"},
		{"within the hour", []health.Certificate{cert(90*day, 59*time.Minute)}, health.Failed, "within the hour"},
		{"within a week", []health.Certificate{cert(84*day, 6*day)}, health.Warning, "expires at"},
		{"a week and more", []health.Certificate{cert(82*day, 8*day)}, health.OK, ""},
		{"of six days, young", []health.Certificate{cert(day, 5*day)}, health.OK, ""},
		{"of six days, old", []health.Certificate{cert(5*day, day)}, health.Warning, ""},
		{"not yet valid", []health.Certificate{cert(-time.Minute, 89*day)}, health.Failed, "not valid before"},
		{"a CA that fails", []health.Certificate{failing(cert(60*day, 30*day))}, health.Warning, "the CA is down; the certificate is valid until"},
		{"a CA that fails too long", []health.Certificate{failing(cert(90*day, -day))}, health.Failed, "expired at"},
		{"the worst counts", []health.Certificate{cert(day, 89*day), cert(84*day, 6*day), cert(90*day, -day), cert(day, 89*day)}, health.Failed, "expired"},
	} {
		check := CertificateCheck(func() []health.Certificate { return tc.list }, func() time.Time { return now })
		f := check.Run(t.Context())
		if f.Status != tc.state || !strings.Contains(f.Text, tc.says) || (f.Status != health.OK) != (f.Todo != "") {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

func TestOtherChecks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	free, err := health.FreeSpace(dir)
	if err != nil || free <= 0 {
		t.Fatalf("%d, %v", free, err)
	}
	broken := errors.New("connection refused")
	octets := func(n int64) func() int64 { return func() int64 { return n } }
	for _, tc := range []struct {
		name  string
		check Check
		state health.Status
		says  string
	}{
		{"database", DatabaseCheck(func(context.Context) error { return nil }), health.OK, "answers"},
		{"database away", DatabaseCheck(func(context.Context) error { return broken }), health.Failed, "connection refused"},
		{"epoch", EpochCheck(func() error { return nil }), health.OK, ""},
		{"an epoch and a full disk", EpochCheck(func() error { return fmt.Errorf("refused: %w", reserve.ErrFull) }), health.OK, ""},
		{"room on the disk", DiskCheck(func() error { return broken }), health.OK, ""},
		{"a full disk", DiskCheck(func() error { return fmt.Errorf("refused: %w", reserve.ErrFull) }), health.Failed, "full"},
		{"no epoch", EpochCheck(func() error { return broken }), health.Failed, "connection refused"},
		{"takes mail", DrainCheck(func() bool { return false }), health.OK, ""},
		{"drains", DrainCheck(func() bool { return true }), health.Failed, "stopping"},
		{"room", RoomCheck(dir, octets(1)), health.OK, dir},
		{"little room", RoomCheck(dir, octets(free/2)), health.Warning, dir},
		{"no room", RoomCheck(dir, octets(2*free)), health.Failed, "less than one message"},
		{"no folder", RoomCheck(filepath.Join(dir, "gone"), octets(1)), health.Failed, "no such file"},
	} {
		if f := tc.check.Run(t.Context()); f.Status != tc.state || !strings.Contains(f.Text, tc.says) || (f.Status == health.OK) != (f.Todo == "") {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

// A database that hangs is given up before the page's patience ends, so that the
// page can say so.
func TestDatabaseCheckHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadiness([]Check{DatabaseCheck(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })})
		if c := r.report(t.Context()).Checks[0]; c.State != health.Failed || !strings.Contains(c.Detail, "deadline exceeded") {
			t.Errorf("%+v", c)
		}
		r.wait()
	})
}
