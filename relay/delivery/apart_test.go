package delivery

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/smtptest"
	"postern/relay/queue"
)

func by(user int64, d *queue.Delivery) *queue.Delivery {
	d.Message.UserID = user
	return d
}

// TestOneUserSuspendsNobodyElse: a user whose messages make the server hang up, wherever
// it does so, keeps nobody else from the destination. That user's mail is left alone for a
// while, and their next success ends it.
func TestOneUserSuspendsNobodyElse(t *testing.T) {
	t.Parallel()
	const bad = "bad@one.test"
	for _, phase := range []smtptest.Phase{smtptest.PhaseRcpt, smtptest.PhaseData, smtptest.PhaseDot} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := smtptest.New(smtptest.Config{})
				defer server.Close()
				server.On(phase, func(s smtptest.Session) smtptest.Action {
					if strings.Contains(s.Command+strings.Join(s.Rcpts, " "), bad) {
						return smtptest.Close()
					}
					return smtptest.Action{}
				})
				q := newFakeQueue()
				e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true})
				_, dials := pipes(e, server)
				e.Start()
				defer stop(t, e)
				take := func(user int64, rcpt string) queue.Outcome {
					d := by(user, message(t, rcpt))
					e.Take(d)
					time.Sleep(defaultPauses[len(defaultPauses)-1])
					synctest.Wait()
					return q.outcome(t, d, 0)
				}
				for range (len(defaultPauses) + 2) * troubleLimit {
					if o := take(1, bad); o.Result != queue.Deferred || o.WaitsFor != "" {
						t.Fatalf("outcome %+v", o)
					}
				}
				before := dials.Load()
				if o := take(1, "good@one.test"); o.Result != queue.Deferred || !o.NotAnAttempt || o.WaitsFor != "" || dials.Load() != before {
					t.Errorf("the user who broke off all conversations: %+v", o)
				}
				if o := take(2, "good@one.test"); o.Result != queue.Delivered {
					t.Errorf("another user: %+v", o)
				}
				time.Sleep(defaultBackoff[2])
				for range 2 {
					if o := take(1, "good@one.test"); o.Result != queue.Delivered {
						t.Errorf("the user, later: %+v", o)
					}
				}
			})
		})
	}
}

// TestOneUserIsWokenByAnAdmin: `queue retry` ends the wait of one user too.
func TestOneUserIsWokenByAnAdmin(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), limit: 5}
	j := &job{parcel: &parcel{Delivery: by(1, message(t, "a@one.test"))}}
	for range 2 * troubleLimit {
		d.brokeOff(&trouble{}, 1)
	}
	if trouble, _ := d.hindrance(j); trouble == nil {
		t.Fatal("the user is not left alone")
	}
	d.tryAgain()
	if trouble, _ := d.hindrance(j); trouble != nil {
		t.Error("the user still is")
	}
}
