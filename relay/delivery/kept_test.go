package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// TestP14KeptConnectionsAreDead: a server is restarted while many connections to it are
// kept. What comes then goes out over new ones, and nothing is deferred.
func TestP14KeptConnectionsAreDead(t *testing.T) {
	t.Parallel()
	const kept, burst = 20, 60
	for name, end := range map[string]smtptest.Action{"closed": smtptest.Close(), "reset": smtptest.Reset()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var restarted atomic.Bool
			gathered := make(chan struct{})
			server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
				smtptest.PhaseMail: func(s smtptest.Session) smtptest.Action {
					if s.Messages > 0 && s.Conn <= kept && restarted.Load() {
						return end // as a server does that is gone when MAIL arrives
					}
					return smtptest.Action{}
				},
				smtptest.PhaseDot: func(smtptest.Session) smtptest.Action {
					return smtptest.Then(smtptest.StallUntil(gathered), smtptest.Normal())
				},
			}})
			q := newFakeQueue()
			up := upstreamAt(server)
			up.MaxConnections = kept
			e := startEngine(t, q, Config{Routes: routes{def: up}, IdleTime: time.Hour})
			e.windows.by = map[string]*window{queue.Way(up.Name, ""): {most: kept, limit: kept}} // as it has proven
			for range kept {
				e.Take(message(t, "a@one.test"))
			}
			server.WaitPhase(t, smtptest.PhaseDot, kept)
			close(gathered)
			q.waitEnded(t, kept)
			restarted.Store(true)
			var sent []*queue.Delivery
			for range burst {
				d := message(t, "b@one.test")
				sent = append(sent, d)
				e.Take(d)
			}
			q.waitEnded(t, kept+burst)
			for _, d := range sent {
				if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
					t.Fatalf("outcome %+v", o)
				}
			}
		})
	}
}

// TestR7Goodbye: a goodbye that crosses our MAIL on a kept connection says nothing about
// the message; on a new one it does.
func TestR7Goodbye(t *testing.T) {
	t.Parallel()
	for _, goodbye := range []string{"421 4.4.2 idle too long", "421 closing", "451 4.4.2 timeout exceeded"} {
		for _, used := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, used %v", goodbye, used), func(t *testing.T) {
				t.Parallel()
				server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
					smtptest.PhaseMail: func(s smtptest.Session) smtptest.Action {
						if (s.Messages > 0) == used && (used || s.Conn == 1) {
							return smtptest.Reply(goodbye)
						}
						return smtptest.Action{}
					}}})
				q := newFakeQueue()
				e := startEngine(t, q, Config{Routes: routes{def: upstreamAt(server)}})
				want := queue.Deferred
				if used {
					want = queue.Delivered
				}
				for i := range 2 {
					d := message(t, "a@one.test")
					e.Take(d)
					q.waitEnded(t, i+1)
					if o := q.outcome(t, d, 0); o.Result != want {
						t.Errorf("message %d: %+v, want %s", i, o, want)
					}
					if !used {
						return
					}
				}
			})
		}
	}
}

// TestP14NoNewConnection: a job that finds kept connections ended, one after the other, and
// gets no new one goes back to the line, for as long as a restart takes. Later it is an
// attempt, and counts.
func TestP14NoNewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}})
		e.dialer.Dial = func(context.Context, connect.Target) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		d := &destination{e: e, via: piped.Name, upstream: piped, window: windowAt(5), live: 1} // others are served
		m := message(t, "a@one.test")
		j := &job{parcel: &parcel{Delivery: m}, rcpts: m.Recipients}
		j.jobs.Store(1)
		const kept = 20
		for n := range kept + 1 {
			w := newWorker(d)
			if next := w.afresh(j); next != nil {
				t.Fatal("a connection was made")
			}
			if waits := d.waiting.pop() == j; waits != (n < kept) || q.hasEnded(m) == waits {
				t.Fatalf("time %d: the job waits: %v", n+1, waits)
			}
			if n == kept-1 {
				time.Sleep(returnTime + time.Second)
			}
		}
		if o := q.outcome(t, m, 0); o.Result != queue.Deferred || o.NotAnAttempt {
			t.Errorf("outcome %+v", o)
		}
	})
}

// TestR2OneUsersMail: a restart that breaks off conversations which are all of one user is
// a restart: the destination pauses, and that user waits no longer than others.
func TestR2OneUsersMail(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), window: windowAt(20)}
	d.succeeded(1, 0)
	for range 4 * troubleLimit {
		d.brokeOff(&trouble{}, 1)
	}
	if d.apart.trouble != nil || d.suspensions > 0 || d.pauses == 0 {
		t.Errorf("%+v", d)
	}
	for range 2 * troubleLimit {
		d.brokeOff(&trouble{}, 1)
	}
	if d.apart.trouble == nil || d.suspensions > 0 {
		t.Errorf("after the pauses %+v", d)
	}
}

// TestR3IdleWithoutMail: a connection that was made for a job which another one took
// is kept although it has carried nothing, and what it ends with costs nobody an attempt.
func TestR3IdleWithoutMail(t *testing.T) {
	t.Parallel()
	for _, res := range []smtp.Result{
		{Err: &smtp.StageError{Stage: smtp.StageMail, Err: net.ErrClosed}},
		{Err: &smtp.StageError{Stage: smtp.StageMail, Reply: smtp.Temporary(421, 4, 2, "idle")}},
	} {
		if !unheard(res) {
			t.Errorf("%+v is a word about the message", res)
		}
	}
	server := smtptest.New(smtptest.Config{})
	defer server.Close()
	ours, theirs := net.Pipe()
	go server.ServeConn(theirs)
	e := newEngine(newFakeQueue(), Config{Routes: routes{}})
	w := newWorker(&destination{e: e, window: windowAt(1)})
	w.conn = &conn{Conn: &connect.Conn{Client: smtp.NewClient(ours, smtp.ClientConfig{Hello: "relay.test"})}}
	defer w.conn.Client.Close()
	if err := w.conn.Client.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.conn.kept {
		t.Fatal("a new connection counts as kept")
	}
	w.jobs <- &job{}
	if w.idle(time.Hour) == nil || !w.conn.kept {
		t.Error("a connection that waited for a job does not count as kept")
	}
}

// TestR3IdleWorkerHangsUp: a worker notices without a message that its server is gone.
func TestR3IdleWorkerHangsUp(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	server := smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
		smtptest.PhaseDot: smtptest.Always(smtptest.Then(smtptest.Normal(), smtptest.StallUntil(gone), smtptest.Close()))}})
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: upstreamAt(server)}, IdleTime: time.Hour})
	open, _ := countOpen(e)
	e.Start()
	t.Cleanup(func() { stop(t, e) })
	e.Take(message(t, "a@one.test"))
	q.waitEnded(t, 1)
	close(gone)
	server.WaitIdle(t)
	for end := time.Now().Add(patience); open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the connection is kept although its server has closed it")
		}
	}
}

// TestR2Restart: a destination that worked a moment ago and refuses connections for some
// seconds costs nobody an attempt; afterwards it has its connections back.
func TestR2Restart(t *testing.T) {
	t.Parallel()
	for _, away := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second, 6 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := smtptest.New(smtptest.Config{})
				defer server.Close()
				q := newFakeQueue()
				e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true, IdleTime: 100 * time.Millisecond})
				down, _ := pipes(e, server)
				e.Start()
				defer stop(t, e)
				e.Take(message(t, "a@one.test"))
				time.Sleep(time.Second) // delivered, and the connection has gone
				down.Store(true)
				began := time.Now()
				var sent []*queue.Delivery
				for time.Since(began) < away || len(sent) < 10 {
					d := message(t, "a@one.test")
					sent = append(sent, d)
					e.Take(d)
					time.Sleep(50 * time.Millisecond)
				}
				down.Store(false)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				for i, d := range sent {
					if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
						t.Fatalf("message %d: %+v", i, o)
					}
				}
				if limit := e.destinations[queue.Way("sink", "")].window.limit; limit != piped.MaxConnections {
					t.Errorf("%d connections are allowed afterwards, want %d", limit, piped.MaxConnections)
				}
			})
		})
	}
}

// TestR2Suspension: what stays away is suspended after the pauses; what waits then is
// marked as waiting for it, and the queue hears when it is back.
func TestR2Suspension(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true, IdleTime: time.Second})
		down, dials := pipes(e, server)
		e.Start()
		defer stop(t, e)
		e.Take(message(t, "a@one.test"))
		time.Sleep(2 * time.Second)
		if got := q.takeRecovered(); len(got) != 1 {
			t.Errorf("recovered: %q, want the new destination, for the time before a restart", got)
		}
		down.Store(true)
		d := message(t, "a@one.test")
		e.Take(d)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if n := dials.Load(); n != 4 {
			t.Fatalf("%d dials after 6 s, want one before and at 0, 1 and 3 s", n)
		}
		if q.hasEnded(d) {
			t.Fatal("the message does not wait in the line")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.WaitsFor == "" {
			t.Errorf("outcome %+v, want one that waits for the destination", o)
		}
		down.Store(false)
		time.Sleep(40 * time.Second)
		e.Take(message(t, "a@one.test"))
		synctest.Wait()
		if got := q.takeRecovered(); len(got) != 1 || got[0] != queue.Way("sink", "") {
			t.Errorf("recovered: %q", got)
		}
	})
}

// TestR2NothingWasTried: what comes while its destination is suspended was not tried: it
// counts no attempt and says what it waits for.
func TestR2NothingWasTried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true})
		down, dials := pipes(e, server)
		down.Store(true)
		e.Start()
		defer stop(t, e)
		for n, want := range []queue.Outcome{
			{Reply: smtp.Temporary(451, 4, 1, "upstream sink"), WaitsFor: "upstream sink"},
			{Reply: smtp.Temporary(451, 4, 1, "waits for upstream sink, not used until 00:00:30 UTC after \"451 4.4.1 upstream sink"), WaitsFor: "upstream sink", NotAnAttempt: true},
		} {
			d := message(t, "a@one.test")
			d.Message.AcceptedAt = time.Now().Add(-time.Hour)
			e.Take(d)
			synctest.Wait()
			o := q.outcome(t, d, 0)
			if o.NotAnAttempt != want.NotAnAttempt || o.WaitsFor != want.WaitsFor || !strings.HasPrefix(o.Reply.String(), want.Reply.String()) || dials.Load() != 1 {
				t.Errorf("message %d: %+v after %d dials", n+1, o, dials.Load())
			}
			if want.NotAnAttempt && (o.RetryIn < 50*time.Minute || o.RetryIn > 70*time.Minute) {
				t.Errorf("mail of an hour is looked at again after %v, want the step of the schedule for its age", o.RetryIn)
			}
		}
	})
}

// TestR2NeverWorked: a destination that has not worked recently gets no pauses.
func TestR2NeverWorked(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), window: windowAt(5)}
	refused := &trouble{Trouble: connect.Trouble{Reply: smtp.Temporary(451, 4, 1, "refused"), Err: syscall.ECONNREFUSED}}
	d.connectFailed(refused, 0)
	if d.suspensions != 1 || d.pauses != 0 {
		t.Errorf("%d suspensions, %d pauses", d.suspensions, d.pauses)
	}
	d.connected(&worker{})
	d.disconnected(&worker{live: true})
	d.connectFailed(&trouble{Trouble: connect.Trouble{Reply: smtp.Permanent(535, 7, 8, "bad password"), Err: errors.New("auth")}}, 0)
	if d.suspensions != 1 || d.pauses != 0 {
		t.Errorf("after a refusal: %d suspensions, %d pauses", d.suspensions, d.pauses)
	}
}

// TestR2Flapping: a server that greets and then breaks off every conversation is
// suspended all the same.
func TestR2Flapping(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), window: windowAt(5)}
	for i := range (len(defaultPauses) + 1) * troubleLimit {
		w := &worker{}
		d.connected(w)
		d.disconnected(w)
		d.brokeOff(&trouble{Trouble: connect.Trouble{Reply: smtp.Temporary(451, 4, 2, "lost"), Err: net.ErrClosed}}, userOf(i%2))
	}
	if d.suspensions != 1 {
		t.Errorf("%d suspensions after %d pauses", d.suspensions, d.pauses)
	}
}

// TestR7GoodbyeToTheRest: the goodbye is recognised although another recipient was
// answered without a word to the server.
func TestR7GoodbyeToTheRest(t *testing.T) {
	t.Parallel()
	if !unheard(smtp.Result{
		Replies: []smtp.Reply{smtp.Permanent(553, 6, 7, "needs SMTPUTF8"), smtp.Temporary(451, 4, 2, "idle")},
		Stages:  []smtp.Stage{smtp.StageHello, smtp.StageMail},
	}) {
		t.Error("a goodbye to MAIL counts as the server's word about the message")
	}
}

// TestR2BackElsewhere: what another node has found to be back is not spared any longer.
func TestR2BackElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}})
		down, _ := pipes(e, server)
		down.Store(true)
		e.Start()
		defer stop(t, e)
		e.Take(message(t, "a@one.test"))
		synctest.Wait()
		down.Store(false)
		d := message(t, "a@one.test")
		q.mu.Lock()
		q.back = []string{queue.Way("sink", "")}
		q.mu.Unlock()
		q.offer(d)
		time.Sleep(time.Second)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
			t.Errorf("outcome %+v", o)
		}
	})
}

// TestR2AnotherServer: an upstream that was changed inherits neither pauses nor the name
// of one that works.
func TestR2AnotherServer(t *testing.T) {
	t.Parallel()
	e := newEngine(newFakeQueue(), Config{Routes: routes{def: piped}})
	other := *piped
	other.Host = "192.0.2.2"
	d := &destination{e: e, upstream: piped, pauses: 2, failures: 2, window: windowAt(5), talkedAt: time.Now()}
	d.update(&other)
	if d.pauses != 0 || d.failures != 0 || !d.talkedAt.IsZero() {
		t.Errorf("%+v", d)
	}
}

// TestR2FlappingWakesNobody: mail that a suspension deferred stays with its schedule while
// the server only greets, and is due as soon as a transaction comes to its end.
func TestR2FlappingWakesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseMail: smtptest.Always(smtptest.Close())}})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true})
		_, dials := pipes(e, server)
		e.Start()
		defer stop(t, e)
		for i := range 20 {
			e.Take(by(int64(i%2), message(t, "a@one.test")))
			time.Sleep(time.Minute)
		}
		if got := q.takeRecovered(); len(got) > 0 || dials.Load() < 20 {
			t.Errorf("recovered: %q after %d dials", got, dials.Load())
		}
		server.On(smtptest.PhaseMail, smtptest.Always(smtptest.Reply("451 4.3.0 busy")))
		e.Take(message(t, "a@one.test"))
		time.Sleep(time.Minute)
		if got := q.takeRecovered(); len(got) != 1 {
			t.Errorf("recovered: %q", got)
		}
	})
}

// TestPutBackForIdle: a job that is put back by a worker which may not connect again goes
// to one that is idle, and does not wait for the end of its idle time.
func TestPutBackForIdle(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), workers: 2, live: 1, window: windowAt(1)}
	d.window.used = 2
	idle, j := newWorker(d), &job{}
	d.idle = []*worker{idle}
	d.putBack(j)
	if !d.leave() {
		t.Fatal("the worker stays")
	}
	select {
	case got := <-idle.jobs:
		if got != j || d.waiting.len() != 0 {
			t.Errorf("the idle worker has %v, %d wait", got, d.waiting.len())
		}
	default:
		t.Error("the idle worker has nothing to do")
	}
}

// TestR2RefusedBesideOthers: a connection refused by a host that restarts, while others
// still count as open, does not keep the destination on one connection for long. A host
// that says it has enough of them is believed.
func TestR2RefusedBesideOthers(t *testing.T) {
	t.Parallel()
	for said, want := range map[bool]int{false: 20, true: 1} {
		synctest.Test(t, func(t *testing.T) {
			d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{}}), window: windowAt(20), live: 1, workers: 2}
			d.window.used = 2
			d.connectFailed(&trouble{Trouble: connect.Trouble{Reply: smtp.Temporary(421, 4, 1, "x"), Said: said}}, 0)
			d.window.used = 20
			time.Sleep(2 * refusedPause)
			for range 20 * 20 {
				d.window.ended(0, true)
			}
			if limit := d.window.limit; limit != want {
				t.Errorf("said %t: %d connections, want %d", said, limit, want)
			}
		})
	}
}
