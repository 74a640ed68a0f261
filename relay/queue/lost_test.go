package queue

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// failureNotice has a message fail and its notice committed and claimed.
func failureNotice(t *testing.T, q *Queue) (about ID, notice *Delivery) {
	t.Helper()
	m, d := put(t, q, true, "gone@example.net")
	q.Settle(outcome(d, 0, Failed))
	nm, rcpt, body := noticeMessage()
	if err := q.EnqueueNotice(ctxOf(t), dueNotices(t, q, 1)[0], nm, rcpt, body); err != nil {
		t.Fatal(err)
	}
	for _, d := range claimAll(t, q, all) {
		if d.Message.ID == nm.ID {
			return m.ID, d
		}
	}
	t.Fatal("the notice is not claimed")
	return ID{}, nil
}

// expire has the lifetime of a waiting message end.
func expire(t *testing.T, db *pgtest.DB, q *Queue, id ID) {
	t.Helper()
	exec(t, db, `update recipient set expires_at = now(), next_attempt_at = now() where message_id = $1`, id)
	eventually(t, "it expires", func() bool {
		if list, err := q.Claim(ctxOf(t), all); err != nil || len(list) > 0 {
			t.Fatalf("claim gave %v, %v", list, err)
		}
		return rows(t, db, id) == ""
	})
}

// losses are what q tells of now.
func losses(t *testing.T, q *Queue) (list []LostNotice) {
	t.Helper()
	if err := q.TellLost(ctxOf(t), func(n LostNotice) { list = append(list, n) }); err != nil {
		t.Fatal(err)
	}
	return list
}

// P03: whatever ends a notice but its delivery is told, once and also by a process that
// comes later. How people read of it is relay/queue/desk's.
func TestP03LostNoticeIsTold(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end  func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery)
		want *LostNotice // nil: it is not lost
	}{
		"delivered": {func(_ *testing.T, _ *pgtest.DB, q *Queue, d *Delivery) { q.Settle(outcome(d, 0, Delivered)) }, nil},
		"refused": {func(_ *testing.T, _ *pgtest.DB, q *Queue, d *Delivery) { q.Settle(outcome(d, 0, Failed)) },
			&LostNotice{Loss: "failed", Reply: smtp.Permanent(550, 1, 1, "no such user")}},
		"deferred too late": {func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
			exec(t, db, `update recipient set expires_at = now() where message_id = $1`, d.Message.ID)
			q.Settle(outcome(d, 0, Deferred))
		}, &LostNotice{Loss: "expired", Reply: smtp.Temporary(450, 2, 1, "later")}},
		"expired while it waited": {func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
			q.Settle(outcome(d, 0, Deferred))
			becomes(t, db, d.Message.ID, "0 waiting")
			expire(t, db, q, d.Message.ID)
		}, &LostNotice{Loss: "expired", Reply: smtp.Temporary(450, 2, 1, "later")}},
		"expired before it was tried": {func(t *testing.T, db *pgtest.DB, q *Queue, d *Delivery) {
			q.Release(d, []int{0}, 0)
			becomes(t, db, d.Message.ID, "0 waiting")
			expire(t, db, q, d.Message.ID)
		}, &LostNotice{Loss: "expired", Reply: smtp.Temporary(451, 4, 7, "Delivery time expired after 120h0m0s")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := start(t, calmConfig(db))
			about, d := failureNotice(t, q)
			if got := losses(t, q); got != nil {
				t.Fatalf("told before the end: %+v", got)
			}
			tt.end(t, db, q, d)
			becomes(t, db, d.Message.ID, "")
			cfg := calmConfig(db)
			cfg.Node = "b"
			other := start(t, cfg)
			got := losses(t, other)
			if tt.want == nil {
				if got != nil {
					t.Errorf("told %+v", got)
				}
			} else {
				tt.want.ID, tt.want.About, tt.want.Kind, tt.want.To = d.Message.ID, about, NoticeFailure, address("alice@example.com")
				if diff := cmp.Diff([]LostNotice{*tt.want}, got); diff != "" {
					t.Error(diff)
				}
			}
			if again := append(losses(t, q), losses(t, other)...); again != nil {
				t.Errorf("told again: %+v", again)
			}
		})
	}
}

// Whoever is told and fails, or dies, is told again: nothing is marked before.
func TestP03LostNoticeIsToldAgain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := failureNotice(t, q)
	q.Settle(outcome(d, 0, Failed))
	becomes(t, db, d.Message.ID, "")
	func() {
		defer func() { _ = recover() }()
		_ = q.TellLost(ctxOf(t), func(LostNotice) { panic("injected") })
	}()
	if got := losses(t, q); len(got) != 1 {
		t.Errorf("told of %d", len(got))
	}
}

// A loss whose commit was in doubt is one loss.
func TestP03LossInDoubt(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faults{"not persisted": {settle: pg.Faults{Before: once(cut)}}, "persisted but error": {settle: pg.Faults{After: once(cut)}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := start(t, calmConfig(db))
			_, d := failureNotice(t, q)
			eventually(t, "all is settled", func() bool { return len(q.settles.in) == 0 })
			other := calmConfig(db)
			other.Node = "b"
			b := start(t, other, func(q *Queue) { q.faults = fault })
			exec(t, db, `update recipient set owner = null, next_attempt_at = now() where message_id = $1`, d.Message.ID)
			d = claimAll(t, b, all)[0]
			b.Settle(outcome(d, 0, Failed))
			eventually(t, "it is settled", func() bool { return !b.inHand.has(d.Message.ID) })
			if got := losses(t, b); len(got) != 1 || got[0].Loss != "failed" {
				t.Errorf("told %+v", got)
			}
		})
	}
}
