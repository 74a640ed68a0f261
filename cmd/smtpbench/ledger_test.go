package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// copyOf is message n as it must arrive, for these of its recipients.
func (c *corpus) copyOf(n int, rcpts ...int) arrival {
	a := arrival{run: []byte(c.run), n: n, from: []byte(c.from), intact: true}
	for _, k := range rcpts {
		a.rcpts = append(a.rcpts, c.appendRecipient(nil, n, k))
	}
	return a
}

func TestLedger(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		happens func(*ledger, *corpus)
		want    tally
	}{
		"as it must be": {func(l *ledger, c *corpus) {
			l.answered(0, acked)
			l.arrive(c.copyOf(0, 0, 1))
		}, tally{Accepted: 1, Arrived: 2}},
		"in parts and before the answer": {func(l *ledger, c *corpus) {
			l.arrive(c.copyOf(0, 1))
			l.answered(0, acked)
			l.arrive(c.copyOf(0, 0))
		}, tally{Accepted: 1, Arrived: 2}},
		"lost": {func(l *ledger, c *corpus) {
			l.answered(0, acked)
			l.arrive(c.copyOf(0, 0))
			l.answered(1, acked)
		}, tally{Accepted: 2, Arrived: 1, Lost: 3}},
		"doubled": {func(l *ledger, c *corpus) {
			l.answered(0, acked)
			l.arrive(c.copyOf(0, 0, 1))
			l.arrive(c.copyOf(0, 1))
		}, tally{Accepted: 1, Arrived: 2, Doubled: 1}},
		"altered": {func(l *ledger, c *corpus) {
			l.answered(0, acked)
			a := c.copyOf(0, 0, 1)
			a.intact = false
			l.arrive(a)
		}, tally{Accepted: 1, Altered: 1, Lost: 2}},
		"no such message": {func(l *ledger, c *corpus) {
			l.arrive(c.copyOf(9, 0))
		}, tally{Altered: 1}},
		"refused and delivered": {func(l *ledger, c *corpus) {
			l.answered(1, forbidden)
			l.arrive(c.copyOf(1, 0))
		}, tally{Refused: 1, Arrived: 1, Refuted: 1}},
		"no answer": {func(l *ledger, c *corpus) {
			l.arrive(c.copyOf(1, 0)) // may arrive, and need not
		}, tally{Arrived: 1}},
		"wrong sender": {func(l *ledger, c *corpus) {
			l.answered(0, acked)
			a := c.copyOf(0, 0, 1)
			a.from = []byte("other@example.com")
			l.arrive(a)
		}, tally{Accepted: 1, Arrived: 2, Envelope: 1}},
		"another message's recipient": {func(l *ledger, c *corpus) {
			a := c.copyOf(0, 0)
			a.rcpts = append(a.rcpts, c.appendRecipient(nil, 1, 0), c.appendRecipient(nil, 0, 7), []byte("x@example.org"), nil)
			l.arrive(a)
		}, tally{Arrived: 1, Envelope: 4}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testCorpus(t, 2, 2, minSize)
			l := newLedger(c)
			test.happens(l, c)
			got, _ := l.verdict()
			if got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
			sound := test.want
			sound.Accepted, sound.Refused, sound.Arrived = 0, 0, 0
			if got.sound() != (sound == tally{}) {
				t.Errorf("%+v is sound: %t", got, got.sound())
			}
		})
	}
}

// TestWait ends with the last arrival, and without it when patience is over.
func TestWait(t *testing.T) {
	t.Parallel()
	c := testCorpus(t, 3, 1, minSize)
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(c)
		for n := range 3 {
			l.answered(n, acked)
		}
		start := time.Now()
		go func() {
			for n := range 2 {
				time.Sleep(8 * time.Second)
				l.arrive(c.copyOf(n, 0))
			}
		}()
		l.wait(t.Context(), 10*time.Second)
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("gave up after %s", took)
		}
		l.arrive(c.copyOf(2, 0))
		l.wait(t.Context(), 10*time.Second)
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("waited for what is there, until %s", took)
		}
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	t.Parallel()
	l := newLedger(testCorpus(t, 1, 1, minSize))
	l.answered(0, acked)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.wait(ctx, time.Hour)
}
