package queue

import (
	"context"
	"errors"
	"strings"
	"time"

	"postern/internal/pg"
)

// channel is the notification channel: "there is work to claim". The payload is
// empty, payloadAsked when an operator asked for it, payloadBack and a way that has
// recovered, or payloadFull when a node has found the disk full.
const (
	channel      = "postern_queue"
	payloadAsked = "asked"
	payloadBack  = "back "
	payloadFull  = "full"
)

// signals wakes the claims of this node and of others. A notification is a hint:
// polling is the truth.
type signals struct {
	q     *Queue
	s     *pg.Dedicated // of the listener
	say   *pg.Dedicated
	woken chan struct{} // capacity 1
	tell  chan struct{} // capacity 1
}

func newSignals(q *Queue) *signals {
	s := &signals{q: q, s: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork), say: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork),
		woken: make(chan struct{}, 1), tell: make(chan struct{}, 1)}
	return s
}

// wake wakes this node's Wait.
func (q *Queue) wake() {
	select {
	case q.signals.woken <- struct{}{}:
	default:
	}
}

// announce wakes this node now and the others soon. It is never called within a
// transaction: NOTIFY takes a lock of the whole database until its commit.
func (q *Queue) announce() {
	q.wake()
	select {
	case q.signals.tell <- struct{}{}:
	default:
	}
}

// sqlNotifyFull is sent immediately: the others have no time to lose.
const sqlNotifyFull = `select pg_notify('` + channel + `', '` + payloadFull + `')`

// announceFull tells the other nodes that the disk is full. Nodes that miss it find out at
// their heartbeat.
func (q *Queue) announceFull(ctx context.Context) {
	if !q.cfg.NoNotify {
		_, _ = q.cfg.WorkPool.Exec(ctx, sqlNotifyFull)
	}
}

// Wait returns when a Claim may find work: after a notification, when the next
// row falls due, or after the poll interval.
func (q *Queue) Wait(ctx context.Context) error {
	timer := time.NewTimer(q.claims.nextDue(q.cfg.Poll))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-q.signals.woken:
		return nil
	case <-timer.C:
		return nil
	}
}

// Asked counts how often operators have asked for mail to be tried now, as far as this node
// knows: destinations in trouble are then no longer spared. It needs NOTIFY; without it such
// mail waits until the trouble is over.
func (q *Queue) Asked() uint64 { return q.asked.Load() }

// sqlNotifyAsked announces an operator's request.
const sqlNotifyAsked = `select pg_notify('` + channel + `', '` + payloadAsked + `')`

// Hurry tells running nodes that an operator asks them to look for work now. It is only a
// hint: poolers may not carry it, and polling finds the rows.
func Hurry(ctx context.Context, db pg.DB) {
	if rows, err := db.Query(ctx, sqlNotifyAsked); err == nil {
		rows.Close()
	}
}

// sqlNotify is sent at most 20 times a second by each node.
const sqlNotify = `select pg_notify('` + channel + `', '')`

// notify sends the announcements, coalesced.
func (s *signals) notify(ctx context.Context) {
	defer s.say.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.tell:
		}
		if s.q.cfg.NoNotify {
			continue
		}
		if conn, err := s.say.Get(ctx); err == nil {
			brief, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err = conn.Exec(brief, sqlNotify)
			cancel()
			if s.say.End(err) != nil {
				s.say.Drop()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// listen turns notifications into wake-ups, on a connection that is made again
// when it breaks; one wake-up makes up for notifications missed meanwhile.
func (s *signals) listen(ctx context.Context) {
	if s.q.cfg.NoNotify {
		return
	}
	defer s.s.Close()
	for ctx.Err() == nil {
		if err := s.hear(ctx); ctx.Err() == nil {
			s.q.log.Warn("queue: LISTEN interrupted, polling goes on", "error", err)
			s.s.Drop()
			s.q.epochs.lookNow() // a database that is away is known immediately
			select {
			case <-ctx.Done():
			case <-time.After(s.q.cfg.Poll):
			}
		}
	}
}

// checkListener is how often a silent listener looks whether its server is there.
const checkListener = 30 * time.Second

// hear listens until something breaks, and returns the error.
func (s *signals) hear(ctx context.Context) error {
	conn, err := s.s.Get(ctx)
	if err != nil {
		return err
	}
	if err := bounded(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, "listen "+channel)
		return err
	}); err != nil {
		return err
	}
	s.q.wake()
	for {
		brief, cancel := context.WithTimeout(ctx, checkListener)
		n, err := conn.WaitForNotification(brief)
		cancel()
		switch {
		case err == nil:
			switch way, back := strings.CutPrefix(n.Payload, payloadBack); {
			case back:
				s.q.recovered.hear(way)
			case n.Payload == payloadAsked:
				s.q.asked.Add(1)
			case n.Payload == payloadFull:
				s.q.room.Tell(true)
			}
			s.q.wake()
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && !conn.IsClosed():
			if err := bounded(ctx, conn.Ping); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// bounded runs a query that takes no time.
func bounded(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return ask(ctx)
}
