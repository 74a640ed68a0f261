package smtp

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/smtptest"
)

// inBubble has a conversation over a pipe under a fake clock, with the timeouts of
// RFC 5321, and says how it ended, how long it took and whether the connection lived.
func inBubble(t *testing.T, cfg smtptest.Config) (how string, took time.Duration, usable bool) {
	t.Helper()
	s := smtptest.New(cfg)
	ours, theirs := net.Pipe()
	go s.ServeConn(theirs)
	c := NewClient(ours, ClientConfig{Hello: "client.test"})
	began := time.Now()
	if err := c.Greet(context.Background()); err != nil {
		how = ending(err, nil)
	} else {
		res := c.Send(context.Background(), transaction(2))
		how = ending(nil, &res)
	}
	took, usable = time.Since(began), c.Usable()
	_ = c.Close()
	s.Close()
	synctest.Wait()
	return how, took, usable
}

// TestA28Time: stalls, and answers a second before and a second after the limit.
// A connection that timed out is never used again.
func TestA28Time(t *testing.T) {
	t.Parallel()
	type phase = smtptest.Phase
	tests := []struct {
		phase phase
		limit time.Duration
		late  string
	}{
		{smtptest.PhaseBanner, 5 * time.Minute, "trouble at greeting"},
		{smtptest.PhaseHello, 5 * time.Minute, "trouble at ehlo"},
		{smtptest.PhaseMail, 5 * time.Minute, "retry, trouble at mail"},
		{smtptest.PhaseRcpt, 5 * time.Minute, "retry, trouble at rcpt"},
		{smtptest.PhaseData, 2 * time.Minute, "retry, trouble at data"},
		{smtptest.PhaseDot, 10 * time.Minute, "unknown, trouble at dot"},
	}
	for _, test := range tests {
		for _, early := range []bool{true, false} {
			name, want, took := "in time at ", "delivered", test.limit-time.Second
			delay := took
			if !early {
				name, want, took = "too late at ", test.late, test.limit
				delay = test.limit + time.Second
			}
			t.Run(name+string(test.phase), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					how, lasted, usable := inBubble(t, smtptest.Config{Hooks: map[phase]smtptest.Hook{
						test.phase: smtptest.Once(smtptest.Then(smtptest.Delay(delay), smtptest.Normal())),
					}})
					if how != want || lasted != took || usable != early {
						t.Errorf("ended %q after %v (usable %v), want %q after %v", how, lasted, usable, want, took)
					}
				})
			})
		}
	}
}

// TestA28Drip: a reply that comes octet by octet has no more time than one that comes whole.
func TestA28Drip(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		phase  smtptest.Phase
		action smtptest.Action
		want   string
		took   time.Duration
	}{
		{"1 octet a second", smtptest.PhaseMail, smtptest.Drip("250 2.1.0 ok\r\n", time.Second), "delivered", 13 * time.Second},
		{"for half an hour", smtptest.PhaseMail, smtptest.Drip("250-"+strings.Repeat("x", 1800)+"\r\n250 ok\r\n", time.Second),
			"retry, trouble at mail", 5 * time.Minute},
		{"lines for half an hour", smtptest.PhaseDot, smtptest.Drip(strings.Repeat("250-ok\r\n", 100), 3*time.Second),
			"unknown, trouble at dot", 10 * time.Minute},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				how, took, _ := inBubble(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
					test.phase: smtptest.Once(test.action),
				}})
				if how != test.want || took != test.took {
					t.Errorf("ended %q after %v, want %q after %v", how, took, test.want, test.took)
				}
			})
		})
	}
}

// slowReader rests before each read once it is armed.
type slowReader struct {
	net.Conn
	armed atomic.Bool
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.armed.Load() {
		time.Sleep(r.pause)
	}
	return r.Conn.Read(p)
}

// TestClientBodyDeadline: each block of a body has a deadline of its own, so a slow
// reader may take long over a large message, and one that stops is given up.
func TestClientBodyDeadline(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("x\r\n", 200_000)
	tests := []struct {
		name     string
		stop     bool
		want     string
		min, max time.Duration
	}{
		// The server reads 16 KiB at a time, so a block of 32 takes a minute of 3.
		{"slow", false, "delivered", 15 * time.Minute, 30 * time.Minute},
		{"stopped", true, "retry, trouble at body", 3 * time.Minute, 3 * time.Minute},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				slow := &slowReader{Conn: theirs, pause: 30 * time.Second}
				action := smtptest.Do(func() { slow.armed.Store(true) })
				if test.stop {
					action = smtptest.Stall()
				}
				s := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
					smtptest.PhaseBody: smtptest.Always(action),
				}})
				go s.ServeConn(slow)
				c := NewClient(ours, ClientConfig{Hello: "client.test"})
				if err := c.Greet(context.Background()); err != nil {
					t.Fatal(err)
				}
				tx := transaction(1)
				tx.Body, tx.Size = strings.NewReader(body), int64(len(body))
				began := time.Now()
				res := c.Send(context.Background(), tx)
				took := time.Since(began)
				if how := ending(nil, &res); how != test.want || took < test.min || took > test.max {
					t.Errorf("ended %q after %v, want %q after %v to %v", how, took, test.want, test.min, test.max)
				}
				_ = c.Close()
				s.Close()
			})
		})
	}
}

// TestClientContextDeadline: a deadline of the context that is earlier than the
// step's ends the step.
func TestClientContextDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseMail: smtptest.Always(smtptest.Stall()),
		}})
		ours, theirs := net.Pipe()
		go s.ServeConn(theirs)
		c := NewClient(ours, ClientConfig{Hello: "client.test"})
		if err := c.Greet(context.Background()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 7*time.Second)
		defer cancel()
		began := time.Now()
		res := c.Send(ctx, transaction(1))
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("took %v", took)
		}
		if !errors.Is(res.Err, os.ErrDeadlineExceeded) && !errors.Is(res.Err, context.DeadlineExceeded) {
			t.Errorf("err %v", res.Err)
		}
		if res.DotSent || c.Usable() {
			t.Errorf("got %+v", res)
		}
		s.Close()
	})
}

// TestClientQuitIsBrief: a server that does not answer QUIT is not waited for.
func TestClientQuitIsBrief(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseQuit: smtptest.Always(smtptest.Stall()),
		}})
		ours, theirs := net.Pipe()
		go s.ServeConn(theirs)
		c := NewClient(ours, ClientConfig{Hello: "client.test"})
		if err := c.Greet(context.Background()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := c.Quit(context.Background()); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("took %v", took)
		}
		s.Close()
	})
}
