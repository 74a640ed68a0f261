package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

var (
	sqlVoidMessage = texts.Bind("void_message", "id", "user_id", "credential_id", "sender_local", "sender_domain", "size", "accepted_at", "node", "recipients")
	sqlVoidRows    = texts.Bind("void_rows", "message_id", "epoch", "node", "kept")
)

// voids removes messages whose commit is in doubt and whose client was answered 451. Until
// then their rows, if there are any, are ours: nobody sends them.
type voids struct {
	q    *Queue
	s    *pg.Dedicated
	mu   sync.Mutex
	list []*submittal
	kick chan struct{}
}

func newVoids(q *Queue) *voids {
	return &voids{q: q, s: pg.NewDedicated(q.cfg.EnqueuePool, pg.TuneWork), kick: make(chan struct{}, 1)}
}

// add takes j, whose rows stay in hand until they are gone.
func (v *voids) add(j *submittal) {
	v.mu.Lock()
	v.list = append(v.list, j)
	v.mu.Unlock()
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

func (v *voids) pending() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.list)
}

// run voids until ctx ends, and logs what is left then.
func (v *voids) run(ctx context.Context) {
	defer v.s.Close()
	for {
		wait := time.Hour
		if v.round(ctx) > 0 {
			wait = time.Second
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			v.round(context.WithoutCancel(ctx))
			if n := v.pending(); n > 0 {
				v.q.log.Error("queue: messages that were refused with 451 could not be voided and may be delivered", "messages", n)
			}
			return
		case <-v.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// round tries each once and returns how many are left.
func (v *voids) round(ctx context.Context) int {
	v.mu.Lock()
	list := v.list
	v.list = nil
	v.mu.Unlock()
	var left []*submittal
	for i, j := range list {
		err := v.s.Panicked(v.q.cfg.Guard.Try("queue: voiding", func() error { return v.void(ctx, j) }))
		if err == nil {
			continue
		}
		v.q.room.Heard(err)
		v.q.log.Warn("queue: cannot void a message, will retry", "id", j.m.ID, "error", err)
		if !pg.OfTheRow(err) {
			left = append(left, list[i:]...)
			break
		}
		left = append(left, j) // the others need not wait for it
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(left, v.list...)
	return len(v.list)
}

// sqlTaken counts the rows that somebody else has by now.
const sqlTaken = `select count(*) from recipient where message_id = $1 and n <> all($2)`

// void removes j. Recipients of which a duplicate was accepted meanwhile are released instead: its
// client was answered 250 for them.
func (v *voids) void(ctx context.Context, j *submittal) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := v.s.Get(ctx)
	if err != nil {
		return err
	}
	taken := 0
	var kept []int32
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		m := &j.m
		if _, err := tx.Exec(ctx, sqlVoidMessage, m.ID, m.UserID, m.CredentialID, m.Sender.Local, m.Sender.Domain,
			m.Size, m.AcceptedAt, v.q.cfg.Node, len(j.rcpts)); err != nil {
			return fmt.Errorf("void message: %w", err)
		}
		var err error
		if kept, err = unkey(ctx, tx, j); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlVoidRows, m.ID, j.epoch, v.q.cfg.Node, kept); err != nil {
			return fmt.Errorf("void rows: %w", err)
		}
		return tx.QueryRow(ctx, sqlTaken, m.ID, kept).Scan(&taken)
	})
	if err = v.s.End(err); err != nil {
		return err
	}
	v.q.inHand.remove(j.m.ID, len(j.rcpts)-len(kept))
	j.rcpts = make([]Recipient, len(kept))
	for i, n := range kept {
		j.rcpts[i].N = int(n)
	}
	v.q.settles.park(j)
	if taken > 0 {
		v.q.log.Error("queue: a message that was refused with 451 was taken over before it was voided", "id", j.m.ID, "recipients", taken)
	}
	return nil
}
