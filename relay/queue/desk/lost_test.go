package desk

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// P03: how a notice ended is told, and stands in the traces of the notice and of the mail.
func TestP03LostNoticeIsTraced(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end  func(t *testing.T, db *pgtest.DB, q *queue.Queue, d *queue.Delivery)
		want *queue.LostNotice // nil: it is not lost
	}{
		"delivered": {func(_ *testing.T, _ *pgtest.DB, q *queue.Queue, d *queue.Delivery) {
			q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
		}, nil},
		"refused": {func(_ *testing.T, _ *pgtest.DB, q *queue.Queue, d *queue.Delivery) {
			q.Settle(queuetest.Outcome(d, 0, queue.Failed))
		},
			&queue.LostNotice{Loss: "failed", Reply: smtp.Permanent(550, 1, 1, "no such user")}},
		"cancelled": {func(t *testing.T, db *pgtest.DB, q *queue.Queue, d *queue.Delivery) {
			q.Release(d, []int{0}, time.Hour)
			queuetest.Becomes(t, db, d.Message.ID, "0 waiting")
			if n, err := NewAdmin(db.Pool).As("root").Cancel(queuetest.Context(t), Filter{}, false); err != nil || n != 1 {
				t.Fatal(n, err)
			}
		}, &queue.LostNotice{Loss: "cancelled"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			q := queuetest.Start(t, queuetest.Config(db))
			about, d := failureNotice(t, q)
			tt.end(t, db, q, d)
			queuetest.Becomes(t, db, d.Message.ID, "")
			var told []queue.LostNotice
			if err := q.TellLost(queuetest.Context(t), func(n queue.LostNotice) { told = append(told, n) }); err != nil || (len(told) == 1) != (tt.want != nil) {
				t.Fatalf("told %+v, %v", told, err)
			}
			if tt.want != nil {
				tt.want.ID, tt.want.About, tt.want.Kind, tt.want.To = d.Message.ID, about, queue.NoticeFailure, queuetest.Address("alice@example.com")
				if diff := cmp.Diff([]queue.LostNotice{*tt.want}, told); diff != "" {
					t.Error(diff)
				}
			}
			traced(t, db, about, d.Message.ID, tt.want)
			list, err := NewAdmin(db.Pool).Lost(queuetest.Context(t), 9)
			if err != nil || (len(list) == 1) != (tt.want != nil) || len(list) == 1 && (list[0].About != about || list[0].Lost != tt.want.Loss) {
				t.Errorf("listed %+v, %v", list, err)
			}
		})
	}
}

// failureNotice has a message fail and its notice committed and claimed.
func failureNotice(t *testing.T, q *queue.Queue) (about queue.ID, notice *queue.Delivery) {
	t.Helper()
	d := queuetest.Put(t, q, queuetest.Message(), true, "gone@example.net")
	q.Settle(queuetest.Outcome(d, 0, queue.Failed))
	var due []*queue.Notice
	queuetest.Eventually(t, "a notice is due", func() bool {
		list, err := q.ClaimNotices(queuetest.Context(t), 1)
		due = list
		return err == nil && len(list) == 1
	})
	m := queue.Message{ID: queue.NewID(), AcceptedAt: time.Now(), Listener: "notice"}
	if err := q.EnqueueNotice(queuetest.Context(t), due[0], m, queue.Recipient{Address: queuetest.Address("alice@example.com"), Notify: smtp.NotifyNever}, []byte("Subject: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	notice = claimOne(t, q)
	if notice.Message.ID != m.ID {
		t.Fatal("another message is claimed")
	}
	return d.Message.ID, notice
}

// traced wants the traces of a message and of its notice to say whether that was lost.
func traced(t *testing.T, db *pgtest.DB, about, notice queue.ID, want *queue.LostNotice) {
	t.Helper()
	a := NewAdmin(db.Pool)
	mail, err := a.Trace(queuetest.Context(t), about)
	if err != nil {
		t.Fatal(err)
	}
	told, err := a.Trace(queuetest.Context(t), notice)
	if err != nil {
		t.Fatal(err)
	}
	if mail.Notice != nil || len(mail.Notices) != 1 || told.Notice == nil || len(told.Notices) != 0 {
		t.Fatalf("trace of the mail %+v, of the notice %+v", mail, told)
	}
	if diff := cmp.Diff(mail.Notices[0], *told.Notice); diff != "" {
		t.Errorf("the traces differ: %s", diff)
	}
	n := told.Notice
	if n.ID != notice || n.About != about || n.Kind != queue.NoticeFailure {
		t.Errorf("notice %+v", n)
	}
	if want == nil {
		if n.Lost != "" || n.LostAt != nil {
			t.Errorf("lost: %+v", n)
		}
		return
	}
	reply := "by root"
	if !want.Reply.IsZero() {
		reply = want.Reply.String()
	}
	if n.Lost != want.Loss || n.LostAt == nil || n.To != "alice@example.com" || n.Reply != reply {
		t.Errorf("lost: %+v, want %+v", n, want)
	}
}
