package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

var (
	sqlLiving    = texts.Bind("living", "reap_after", "never")
	sqlReap      = texts.BindWith("reap", pg.Constants{"one": "false", "message_id": "null", "n": "null", "epoch": "null"}, "rows", "doubt_wait")
	sqlReapOne   = texts.BindWith("reap", pg.Constants{"one": "true", "rows": "null"}, "message_id", "n", "epoch", "doubt_wait")
	sqlLeftovers = texts.BindWith("hand_back", pg.Constants{"all": "false", "rows": "null"}, "message_id", "epoch", "doubt_wait")
	sqlHandBack  = texts.BindWith("hand_back", pg.Constants{"all": "true", "message_id": "null"}, "epoch", "rows", "doubt_wait")
	sqlDead      = texts.Bind("dead", "rows")
	sqlNeverDue  = texts.Bind("never_due")
	sqlNeverTold = texts.Bind("never_told")
)

const (
	reapRows   = 1000 // rows that one statement takes back
	sweepEvery = time.Minute
)

// sweeps puts right what a crash or a lost answer left behind.
type sweeps struct {
	q *Queue
	s *pg.Dedicated

	seen     map[int64]beatSeen // of other epochs, to be sure that they are silent
	nodes    atomic.Int64       // that live, at the last round
	suspects map[ID]bool        // rows of ours that nobody had in hand at the last round
	slow     time.Time          // when times are looked at next
}

type beatSeen struct {
	beat  string // its last heartbeat as text, which may not be a valid time
	since time.Duration
}

func newSweeps(q *Queue) *sweeps {
	return &sweeps{q: q, s: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork), seen: make(map[int64]beatSeen), slow: time.Now().Add(sweepEvery)}
}

func (s *sweeps) run(ctx context.Context) {
	defer s.s.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.q.cfg.Heartbeat):
		}
		if err := s.round(ctx); err != nil && ctx.Err() == nil {
			s.s.Drop()
			if !s.q.epochs.suspectIfDown(err) {
				s.q.log.Warn("queue: sweep failed, will retry", "error", err)
			}
		}
	}
}

func (s *sweeps) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := s.s.Get(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(s.reap(ctx, conn), s.leftovers(ctx, conn))
	if err == nil && time.Now().After(s.slow) {
		s.slow = time.Now().Add(sweepEvery)
		err = s.timeless(ctx, conn)
	}
	return s.s.End(err)
}

// sqlKill ends an epoch. A heartbeat that races with it either moves beat_at first, and this
// changes nothing, or comes too late and changes nothing itself.
const sqlKill = `update node set reaped_at = clock_timestamp() where epoch = $1 and beat_at::text = $2 and reaped_at is null`

// reap buries silent epochs and takes their rows back.
func (s *sweeps) reap(ctx context.Context, conn *pgx.Conn) error {
	if err := s.bury(ctx, conn); err != nil {
		return fmt.Errorf("reap: %w", err)
	}
	for {
		var count int
		err := conn.QueryRow(ctx, sqlReap, reapRows, DoubtWait).Scan(&count, nil)
		if pg.OfTheRow(err) {
			count, err = s.reapEach(ctx, conn)
		}
		if err != nil {
			return fmt.Errorf("reap rows: %w", err)
		}
		if count > 0 {
			s.q.log.Warn("queue: took back the recipients of a dead epoch", "recipients", count)
			s.q.announce()
		}
		if count < reapRows {
			return nil
		}
	}
}

// reapEach takes rows of dead epochs back one by one, and sets aside those at which it fails.
func (s *sweeps) reapEach(ctx context.Context, conn *pgx.Conn) (count int, err error) {
	type row struct {
		ID    ID
		N     int
		Owner int64
	}
	rows, _ := conn.Query(ctx, sqlDead, reapRows) // CollectRows has its error
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	for _, r := range list {
		var one int
		err := conn.QueryRow(ctx, sqlReapOne, r.ID, r.N, r.Owner, DoubtWait).Scan(&one, nil)
		switch {
		case pg.OfTheRow(err):
			s.q.setAside(r.ID, r.N, r.Owner, ofRows(err))
		case err != nil:
			return count, err
		}
		count += one
	}
	return count, err
}

// bury ends the epochs whose lease is over and which were silent for ReapAfter. The silence
// counts while the lease still runs, so that the mail of a dead node does not wait for one
// after the other.
func (s *sweeps) bury(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, sqlLiving, s.q.cfg.ReapAfter, s.q.cfg.Lease+s.q.cfg.ReapAfter)
	if err != nil {
		return err
	}
	type living struct {
		Epoch int64
		Name  string
		Beat  string
		Over  bool // its lease, for long enough
		Never bool // its lease would end too late
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[living])
	if err != nil {
		return err
	}
	names := make(map[string]bool, len(list))
	known := s.seen
	s.seen = make(map[int64]beatSeen, len(list))
	for _, e := range list {
		names[e.Name] = true
		was, ok := known[e.Epoch]
		if !ok || was.beat != e.Beat {
			was = beatSeen{e.Beat, s.q.clock.Now()}
		}
		s.seen[e.Epoch] = was
		// The database's clock may have jumped: a living node would have beaten since.
		silence := s.q.cfg.ReapAfter
		if e.Never {
			silence += s.q.cfg.Lease // only the silence counts
		}
		if !e.Over && !e.Never || s.q.clock.Now()-was.since < silence {
			continue
		}
		tag, err := conn.Exec(ctx, sqlKill, e.Epoch, e.Beat)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 {
			s.q.log.Warn("queue: an epoch is dead", "epoch", e.Epoch, "node", e.Name, "beat", e.Beat)
		}
	}
	s.nodes.Store(int64(len(names)))
	return nil
}

// Nodes is how many nodes lived a few seconds ago, one that has just died among them; 0 while
// that is unknown.
func (q *Queue) Nodes() int { return int(q.sweeps.nodes.Load()) }

// sqlOwned lists messages with rows of one epoch, sqlOwnedOf its rows of one message.
const (
	sqlOwned   = `select distinct message_id from recipient where owner = $1`
	sqlOwnedOf = `select n from recipient where message_id = $1 and owner = $2`
)

// leftovers releases rows of our own epoch that nobody here has in hand: the answer to a
// claim was lost after its commit, or the database has lost the end of an attempt. They are
// released once two rounds have met them, since an answer may be on its way.
func (s *sweeps) leftovers(ctx context.Context, conn *pgx.Conn) error {
	epoch := s.q.epochs.valid()
	if epoch == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlOwned, epoch)
	if err != nil {
		return fmt.Errorf("leftovers: %w", err)
	}
	suspects := make(map[ID]bool)
	var lost [][16]byte
	var id ID
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		if s.q.inHand.has(id) {
			return nil
		}
		suspects[id] = true
		if s.suspects[id] {
			lost = append(lost, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("leftovers: %w", err)
	}
	s.suspects = suspects
	if len(lost) == 0 {
		return nil
	}
	// Other rows of the same messages may be claimed meanwhile.
	s.q.claims.mu.Lock()
	defer s.q.claims.mu.Unlock()
	lost = slices.DeleteFunc(lost, func(id [16]byte) bool { return s.q.inHand.has(id) })
	if len(lost) == 0 {
		return nil
	}
	count := 0
	err = halved(lost, func(some [][16]byte) error {
		var n int
		err := conn.QueryRow(ctx, sqlLeftovers, some, epoch, DoubtWait).Scan(&n, nil)
		count += n
		return err
	}, func(id [16]byte, err error) {
		ns, _ := conn.Query(ctx, sqlOwnedOf, id, epoch) // without an answer the next round asks again
		list, _ := pgx.CollectRows(ns, pgx.RowTo[int])
		for _, n := range list {
			s.q.setAside(id, n, epoch, ofRows(err))
		}
	})
	if err != nil {
		return fmt.Errorf("release leftovers: %w", err)
	}
	if count > 0 {
		s.q.log.Warn("queue: released recipients that nobody had in hand", "recipients", count)
		s.q.announce()
	}
	return nil
}

// timeless corrects times that would keep mail for ever: it is due now.
func (s *sweeps) timeless(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{sqlNeverDue, sqlNeverTold} {
		tag, err := conn.Exec(ctx, sql)
		if err != nil {
			return fmt.Errorf("mend times: %w", err)
		}
		if n := tag.RowsAffected(); n > 0 {
			s.q.log.Warn("queue: recipients with a time that never comes are due now", "recipients", n)
			s.q.announce()
		}
	}
	return nil
}

// handBack releases the rows that this node still owns at its end.
func (s *sweeps) handBack(ctx context.Context) error {
	l := s.q.epochs.current.Load()
	if l == nil {
		return nil
	}
	conn, err := s.s.Get(ctx)
	if err != nil {
		return fmt.Errorf("hand back: %w", err)
	}
	defer s.s.Close()
	for {
		var count int
		if err := conn.QueryRow(ctx, sqlHandBack, l.epoch, reapRows, DoubtWait).Scan(&count, nil); err != nil {
			return fmt.Errorf("hand back: %w", err)
		}
		if count > 0 {
			_, _ = conn.Exec(ctx, sqlNotify)
		}
		if count < reapRows {
			return nil
		}
	}
}
