package node

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// drainPart is one part of a node and how its work ends.
type drainPart struct {
	name  string
	until float64 // the share of the drain's time by which it has to be done
	// stop ends the part's work. When its context ends, it cuts what is left.
	stop func(context.Context) error
	// writes says that the part writes down what became of the others' work, and so
	// has a moment for it even when the drain is cut short.
	writes bool
}

const (
	// cutTime is what is left of a drain that is cut short.
	cutTime = 2 * time.Second
	// graceShare of the drain's time is what a part has, once its own time is over,
	// to cut what is left. Then it is left alone: a commit that hangs in the database
	// must not keep the outcomes of others from being written.
	graceShare = 0.04
)

var errAbandoned = errors.New("it does not end")

// drainer stops the parts of a node one after the other. It takes no longer than
// total, whatever they do, and no longer than cutTime once cut is closed.
type drainer struct {
	began time.Time
	total time.Duration
	cut   <-chan struct{}
	short bool // cut was closed
}

func newDrainer(total time.Duration, cut <-chan struct{}) *drainer {
	return &drainer{began: time.Now(), total: total, cut: cut}
}

// end stops one part and returns why not all of its work ended by itself.
func (d *drainer) end(p drainPart) error {
	left := d.left(p)
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.stop(ctx) }()
	timer := time.NewTimer(left)
	defer timer.Stop()
	for {
		select {
		case err := <-done:
			return wrapStop(p, err)
		case <-d.cut:
			d.cut, d.short = nil, true
			d.began, d.total = time.Now(), min(cutTime, time.Until(d.began.Add(d.total)))
			timer.Reset(d.left(p))
		case <-timer.C:
			cancel()
			select {
			case err := <-done:
				return wrapStop(p, err)
			case <-time.After(d.share(graceShare)):
				return wrapStop(p, errAbandoned)
			}
		}
	}
}

func wrapStop(p drainPart, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stop %s: %w", p.name, err)
}

func (d *drainer) share(of float64) time.Duration { return time.Duration(of * float64(d.total)) }

// left is how long a part may take from now on.
func (d *drainer) left(p drainPart) time.Duration {
	if d.short && !p.writes {
		return 0
	}
	return max(0, time.Until(d.began.Add(d.share(p.until))))
}

// rest does what has to come last, as far as there is time for it.
func (d *drainer) rest(do func()) {
	done := make(chan struct{})
	go func() {
		do()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Until(d.began.Add(d.total))):
	}
}
