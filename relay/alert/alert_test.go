package alert

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/mail"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/internal/pgtest"
	"postern/relay/queue"
	"postern/relay/smtp"
)

var update = flag.Bool("update", false, "write the golden file")

// box takes mails as the queue does: in one transaction with their record.
type box struct {
	db *pgtest.DB

	mu    sync.Mutex
	mails []string
}

func (b *box) EnqueueOwn(ctx context.Context, m queue.Message, rcpts []queue.Recipient, body []byte, record func(context.Context, pgx.Tx) (bool, error)) (sent bool, err error) {
	err = pgx.BeginFunc(ctx, b.db.Pool, func(tx pgx.Tx) error {
		sent, err = record(ctx, tx)
		return err
	})
	if sent && err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mails = append(b.mails, string(body))
		if !m.Sender.IsNull() || rcpts[0].Notify != smtp.NotifyNever {
			return sent, errors.New("it would bounce")
		}
	}
	return sent, err
}

// take is the subjects of the mails since the last time.
func (b *box) take(t *testing.T) string {
	t.Helper()
	var subjects []string
	for _, text := range b.mails {
		m, err := mail.ReadMessage(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, m.Header.Get("Subject"))
	}
	b.mails = nil
	return strings.Join(subjects, "; ")
}

func newAlerts(b *box, node string) *Alerts {
	a := New(Config{DB: b.db.Pool, Queue: b, Node: node, Hostname: "relay.test", Log: slog.New(slog.DiscardHandler),
		Find: func(context.Context) []health.Finding { return []health.Finding{fine, down} }})
	a.SendTo([]smtp.Address{{Local: "ops", Domain: "example.com"}})
	return a
}

func exec(t *testing.T, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// pass lets time pass for the tables.
func pass(t *testing.T, db *pgtest.DB, d time.Duration) {
	t.Helper()
	exec(t, db, `update alert_finding set since = since - $1::interval, seen_at = seen_at - $1::interval`, d)
	exec(t, db, `update alert set mailed_at = mailed_at - $1::interval`, d)
}

var (
	down = health.Finding{ID: "upstream.open", Status: health.Failed, Subject: "upstream out", Text: "breaker open", Todo: "mend it"}
	low  = health.Finding{ID: "db.room-low", Status: health.Warning, Subject: "disk", Text: "1 GiB free"}
	fine = health.Finding{ID: "db.ok", Status: health.OK, Subject: "database", Text: "answers"}
)

// One mail when something is new, an hour apart, again while it stays, and one when all is well.
func TestMails(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	b := &box{db: db}
	a, other := newAlerts(b, "a"), newAlerts(b, "b")
	const bad, both, warn = "[postern relay.test] 1 failure", "[postern relay.test] 1 failure, 1 warning", "[postern relay.test] 1 warning"
	const ok = "[postern relay.test] all is well again"
	for i, step := range []struct {
		after time.Duration // since the last step
		found []health.Finding
		want  string
	}{
		{0, []health.Finding{fine}, ""},
		{0, []health.Finding{fine, down}, ""}, // seen once
		{lookEvery, []health.Finding{down}, bad},
		{lookEvery, []health.Finding{down, low}, ""},
		{lookEvery, []health.Finding{down, low}, ""}, // within the hour
		{lookEvery, nil, ""},                         // one look without them is not their end
		{4 * lookEvery, []health.Finding{down, low}, ""},
		{lookEvery, []health.Finding{down, low}, both},
		{time.Hour, []health.Finding{down, low}, ""},
		{lookEvery, []health.Finding{down, low}, ""},
		{23 * time.Hour, []health.Finding{down, low}, both}, // a day; nobody looked meanwhile
		{lookEvery, []health.Finding{down, low}, ""},
		{time.Hour, []health.Finding{low}, ""},
		{lookEvery, []health.Finding{low}, ""}, // better is no news
		{lookEvery, []health.Finding{low, down}, ""},
		{lookEvery, []health.Finding{low, down}, both}, // it came back
		{2 * time.Hour, []health.Finding{fine}, ok},
		{2 * time.Hour, []health.Finding{fine}, ""},
		{0, []health.Finding{low}, ""},
		{lookEvery, []health.Finding{low}, warn},
		{2 * 24 * time.Hour, []health.Finding{low}, ""},   // nobody looked meanwhile
		{2 * time.Hour, []health.Finding{fine, down}, ""}, // neither is sure
		{lookEvery, nil, ""},
		{2 * time.Hour, nil, ok},
	} {
		pass(t, db, step.after)
		var mailing sync.WaitGroup
		for _, each := range []*Alerts{a, other} {
			if err := each.note(t.Context(), step.found); err != nil {
				t.Fatal(err)
			}
		}
		for _, each := range []*Alerts{a, other} {
			mailing.Go(func() {
				if err := each.mail(t.Context(), true); err != nil {
					t.Error(err)
				}
			})
		}
		mailing.Wait()
		if got := b.take(t); got != step.want {
			t.Errorf("step %d: mails %q, want %q", i, got, step.want)
		}
	}
	if s := a.Status(); s.MailedAt.IsZero() || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
}

// A database whose clock was ahead for a while mutes no mail, and remembers nothing for ever.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	b := &box{db: db}
	a := newAlerts(b, "a")
	for i, step := range []struct {
		after time.Duration
		found []health.Finding
		want  string
	}{
		{0, []health.Finding{down, low}, ""},
		{lookEvery, []health.Finding{down, low}, "[postern relay.test] 1 failure, 1 warning"},
		{-365 * 24 * time.Hour, []health.Finding{low}, "[postern relay.test] 1 warning"},
		{lookEvery + apart, nil, "[postern relay.test] all is well again"},
	} {
		pass(t, db, step.after)
		if err := a.note(t.Context(), step.found); err != nil {
			t.Fatal(err)
		}
		if err := a.mail(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if got := b.take(t); got != step.want {
			t.Errorf("step %d: mails %q, want %q", i, got, step.want)
		}
	}
}

// Warnings are told again after a week.
func TestWeekly(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		ago    time.Duration
		status health.Status
		want   occasion
	}{
		{again, health.Failed, still}, {again - 1, health.Failed, nothing},
		{again, health.Warning, nothing}, {againWarns, health.Warning, still},
	} {
		mailed := now.Add(-tt.ago)
		s := state{mailed: &mailed, now: now}
		if got := s.due([]finding{{Finding: health.Finding{Status: tt.status}}}); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// The text of a mail, and what bounds it.
func TestText(t *testing.T) {
	t.Parallel()
	at := time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)
	d := digest{id: "018f0000-0000-7000-8000-000000000001", hostname: "relay.test", what: worse, now: at,
		to: []smtp.Address{{Local: "ops", Domain: "example.com"}, {Local: "night", Domain: "example.com"}}, told: []string{"feed.held events", "db.room-low disk"},
		found: []finding{
			{health.Finding{ID: "upstream.open", Status: health.Failed, Subject: "upstream m365", Todo: "correct what its reply names, at the provider or with 'postern upstream set'; then 'postern upstream resume' has it probed",
				Text: "breaker open since 10:59, by node a: AUTH 535 5.7.139 Authentication unsuccessful, café " + strings.Repeat("x", 100)}, "k", at.Add(-time.Hour), []string{"a", "b"}, true, true},
			{health.Finding{ID: "db.room-low", Status: health.Warning, Subject: "disk", Text: "1 GiB free for the database"}, "db.room-low disk", at.Add(-48 * time.Hour), []string{"a"}, true, false},
		}}
	got := d.bytes()
	const golden = "testdata/mail.txt"
	if *update {
		if err := os.WriteFile(golden, bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != strings.ReplaceAll(string(want), "\n", "\r\n") {
		t.Errorf("%s", got)
	}
	for i := range 1000 {
		d.found = append(d.found, finding{Finding: health.Finding{ID: "x", Subject: fmt.Sprint(i), Text: strings.Repeat("word ", 50)}})
	}
	lines := strings.Split(string(d.bytes()), "\r\n")
	if len(lines) > 200 || !strings.Contains(string(d.bytes()), "more: 'postern check' shows them.") {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 80 || !smtp.IsASCII(line) {
			t.Errorf("%q", line)
		}
	}
}

// A test sends one mail, from one of the nodes, whatever was sent before, about what that node finds now. A test that
// ran out of patience sends none.
func TestTest(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	b := &box{db: db}
	if _, err := Test(t.Context(), db.Pool, 0); !errors.Is(err, ErrNobody) {
		t.Errorf("%v", err)
	}
	a, other := newAlerts(b, "a"), newAlerts(b, "b")
	for _, each := range []*Alerts{a, other} { // it was given up
		if err := each.mail(t.Context(), false); err != nil || len(b.mails) != 0 {
			t.Errorf("%v, %q", err, b.mails)
		}
	}
	over := make(chan error, 1)
	go func() {
		_, err := Test(context.Background(), db.Pool, time.Hour)
		over <- err
	}()
	for done := false; !done; {
		select {
		case err := <-over:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
			for _, each := range []*Alerts{a, other} {
				if err := each.mail(t.Context(), false); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := b.take(t); got != "[postern relay.test] test: 1 failure" {
		t.Errorf("%q", got)
	}
}

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}
