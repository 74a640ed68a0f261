package node

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// parts that end when asked, when cut, and never.
func obedient(ctx context.Context) error { return nil }

func untilCut(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// endsAfter needs so long, and longer than it may.
func endsAfter(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// never does not end until the test does.
func never(t *testing.T) func(context.Context) error {
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	return func(context.Context) error { <-over; return nil }
}

func TestDrainShares(t *testing.T) {
	const total = 100 * time.Second
	for name, tc := range map[string]struct {
		stops [4]func(context.Context) error // submission, notices, delivery, queue
		cutAt time.Duration                  // 0: not
		at    [4]time.Duration               // when each part was asked to stop
		ends  time.Duration
		bad   string // the parts that did not end by themselves
	}{
		"all immediately":                  {stops: [4]func(context.Context) error{obedient, obedient, obedient, obedient}},
		"what is not needed is left":       {stops: [4]func(context.Context) error{endsAfter(time.Second), obedient, endsAfter(70 * time.Second), obedient}, at: [4]time.Duration{0, 1e9, 1e9, 71e9}, ends: 71 * time.Second},
		"each is cut by its share":         {stops: [4]func(context.Context) error{untilCut, untilCut, untilCut, untilCut}, at: [4]time.Duration{0, 40e9, 50e9, 75e9}, ends: 95 * time.Second, bad: "submission notices delivery queue"},
		"what never ends is left alone":    {stops: [4]func(context.Context) error{nil, obedient, nil, obedient}, at: [4]time.Duration{0, 44e9, 44e9, 79e9}, ends: 79 * time.Second, bad: "submission delivery"},
		"none ends":                        {stops: [4]func(context.Context) error{nil, nil, nil, nil}, at: [4]time.Duration{0, 44e9, 54e9, 79e9}, ends: 99 * time.Second, bad: "submission notices delivery queue"},
		"cut: only what writes has time":   {stops: [4]func(context.Context) error{untilCut, untilCut, untilCut, endsAfter(time.Second)}, cutAt: 3 * time.Second, at: [4]time.Duration{0, 3e9, 3e9, 3e9}, ends: 4 * time.Second, bad: "submission notices delivery"},
		"cut while it writes":              {stops: [4]func(context.Context) error{obedient, obedient, obedient, untilCut}, cutAt: 3 * time.Second, ends: 4900 * time.Millisecond, bad: "queue"},
		"cut, and what never ends is left": {stops: [4]func(context.Context) error{nil, nil, nil, nil}, cutAt: time.Second, at: [4]time.Duration{0, 1080e6, 1160e6, 1240e6}, ends: 2980 * time.Millisecond, bad: "submission notices delivery queue"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cut := make(chan struct{})
				if tc.cutAt > 0 {
					time.AfterFunc(tc.cutAt, func() { close(cut) })
				}
				began := time.Now()
				d := newDrainer(total, cut)
				var bad []string
				for i, p := range []drainPart{{name: "submission", until: 0.40}, {name: "notices", until: 0.50}, {name: "delivery", until: 0.75}, {name: "queue", until: 0.95, writes: true}} {
					if p.stop = tc.stops[i]; p.stop == nil {
						p.stop = never(t)
					}
					if at := time.Since(began); at != tc.at[i] {
						t.Errorf("%s was asked to stop after %v, want %v", p.name, at, tc.at[i])
					}
					if err := d.end(p); err != nil {
						bad = append(bad, p.name)
					}
				}
				if took := time.Since(began); took != tc.ends {
					t.Errorf("it took %v, want %v", took, tc.ends)
				}
				if got := strings.Join(bad, " "); got != tc.bad {
					t.Errorf("did not end by themselves: %q, want %q", got, tc.bad)
				}
			})
		})
	}
}

// TestPulse: a loop that stands still is told, a database that is away is no reason.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(pulse)
		alive := func(want bool, heartbeat, dispatcher time.Duration, answers bool) {
			t.Helper()
			if err := p.judge(heartbeat, dispatcher, answers); (err == nil) != want {
				t.Errorf("judged %v, want alive: %t", err, want)
			}
		}
		alive(true, 5*time.Second, 10*time.Second, true)
		alive(false, time.Minute, 0, true)
		alive(false, 0, 3*time.Minute, true)
		for range 60 { // ten minutes without the database
			alive(true, 10*time.Second, 10*time.Minute, false)
			time.Sleep(10 * time.Second)
		}
		alive(true, time.Second, 10*time.Minute, true) // it is back, and the dispatcher goes on
		alive(false, time.Minute, 0, false)
		time.Sleep(dispatcherTurn + time.Second)
		alive(false, time.Second, 12*time.Minute, true)
	})
}

// TestDrainRest: what comes last has the time that is left, and not more.
func TestDrainRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		d := newDrainer(10*time.Second, nil)
		d.rest(func() { time.Sleep(time.Second) })
		if took := time.Since(began); took != time.Second {
			t.Errorf("the rest was waited for %v, want 1s", took)
		}
		over := make(chan struct{})
		d.rest(func() { <-over })
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("a rest that never ends was waited for until %v, want 10s", took)
		}
		close(over)
	})
}
