package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/queue/insert"
	"postern/relay/queue/reserve"
)

// waryStatements is how many statements with keys call admit, which expects copies, after one that does
// not has failed because of a copy. Copies come in loops, and PostgreSQL logs each failure.
const waryStatements = 64

// blockedTime bounds how long a group waits for a table that somebody has locked, one lock_timeout after
// the other.
const blockedTime = 15 * time.Second

// Committers of each kind: while one waits for its commit, the next gathers.
const (
	smallCommitters = 2
	largeCommitters = 4
)

// How a committer of small messages lets others run before it gathers.
const (
	yields      = 8                    // at most
	yieldEnough = 16                   // messages that wait: it gathers
	busyTime    = 2 * time.Millisecond // if yielding takes longer, all processors are busy
	busyWait    = 8 * time.Millisecond
)

// commits is the accepting half: the committers, and the voider behind them.
type commits struct {
	q     *Queue
	small chan *submittal
	large chan *submittal
	voids *voids
	done  sync.WaitGroup

	doubted atomic.Int64 // messages in resolve
	writing sync.RWMutex // read-locked while a group is being written
}

func newCommits(q *Queue) *commits {
	return &commits{q: q, small: make(chan *submittal, 4*groupMessages), large: make(chan *submittal, 4), voids: newVoids(q)}
}

func (c *commits) start() {
	run := func(n int, mail chan *submittal, limit int) {
		for range n {
			w := &committer{q: c.q, mail: mail, limit: limit, voids: c.voids, s: dedicated(c.q.cfg.EnqueuePool, pg.TuneCommit, &c.q.faults.commit)}
			c.done.Go(func() { c.q.cfg.Guard.Keep(context.Background(), "queue: the committer", w.run) })
		}
	}
	run(smallCommitters, c.small, groupMessages)
	run(largeCommitters, c.large, 1)
}

// stop ends the committers once nobody submits any more.
func (c *commits) stop() {
	close(c.small)
	close(c.large)
	c.done.Wait()
}

// settled waits until the groups that are being written have ended.
func (c *commits) settled() {
	c.writing.Lock()
	defer c.writing.Unlock()
}

// submit gives j to a committer and waits for its end. After an error the queue has nothing
// of j, or j is being voided.
func (c *commits) submit(j *submittal) result {
	mail := c.small
	if j.body.Size() > smallBody {
		mail = c.large
	}
	patience := time.NewTimer(time.Until(j.until))
	defer patience.Stop()
	for {
		select {
		case mail <- j:
		case <-patience.C:
			c.q.inHand.remove(j.m.ID, len(j.rcpts))
			return failed(context.DeadlineExceeded)
		}
		var r result
		select {
		case r = <-j.done:
		case <-patience.C:
			if j.taken.CompareAndSwap(false, true) {
				c.q.inHand.remove(j.m.ID, len(j.rcpts))
				return failed(context.DeadlineExceeded)
			}
			r = <-j.done
		}
		if !r.again {
			return r
		}
		j.taken.Store(false)
	}
}

// committer commits groups one after the other over its own connection.
type committer struct {
	q     *Queue
	mail  chan *submittal
	limit int
	voids *voids
	s     *pg.Dedicated
	group insert.Group
}

func (c *committer) run() {
	defer c.s.Close()
	for first := range c.mail {
		if c.limit > 1 {
			c.yield()
		}
		var size int64
		mail := gather(first, c.mail, c.limit, func(j *submittal) bool {
			size += j.m.Size
			return size >= groupBytes
		})
		mine := mail[:0]
		for _, j := range mail {
			if j.taken.CompareAndSwap(false, true) {
				mine = append(mine, j)
			}
		}
		if mine = c.distinct(mine); len(mine) > 0 {
			c.commit(mine)
		}
	}
}

// yield lets sessions run that are about to submit, so that their messages come into the same group. It
// takes microseconds unless all processors are busy, for instance with DKIM signatures: then messages
// would come one by one, and each transaction costs as much as several messages.
func (c *committer) yield() {
	began := time.Now()
	for range yields {
		runtime.Gosched()
		if len(c.mail) >= yieldEnough {
			return
		}
		if time.Since(began) >= busyTime {
			time.Sleep(busyWait) // what clients have sent is looked for every 10 ms now
			return
		}
	}
}

// commit brings every message of the group to its end.
func (c *committer) commit(mail []*submittal) {
	began := time.Now()
	for try := 1; ; try++ {
		err := c.try(mail, false)
		if err == nil {
			c.accept(mail, false)
			return
		}
		switch sure := pg.CertaintyOf(err); {
		case errors.Is(err, reserve.ErrFull):
			c.refuse(mail, err)
			return
		case sure == pg.Uncertain, isTaken(err):
			c.q.log.Warn("queue: the fate of a commit is unknown, asking again", "messages", len(mail), "error", err)
			c.resolve(mail, err)
			return
		case hasCopy(err) && c.group.Wary == 0:
			c.group.Wary = waryStatements
			try--
			continue
		case isBlocked(err) && time.Since(began) < blockedTime:
			try--
			continue
		case len(apart(mail, err)) > 1:
			for _, part := range apart(mail, err) {
				c.commit(part)
			}
			return
		case sure == pg.NotSent && try == 1, isLocked(err) && try == 1, worthAnother(err) && try < 3:
			continue
		}
		c.q.epochs.suspectIfDown(err)
		c.refuse(mail, err) // its sessions log it
		return
	}
}

// try runs the transaction of the group once, or returns reserve.ErrFull.
func (c *committer) try(mail []*submittal, again bool) error {
	if !again && c.q.room.Full() {
		return reserve.ErrFull // no need to wait for settled
	}
	c.q.commits.writing.RLock()
	defer c.q.commits.writing.RUnlock()
	if !again && c.q.room.Full() { // it may have become full since they came
		return reserve.ErrFull
	}
	work, began := WorkEnqueue, time.Now()
	if c.limit == 1 {
		work = WorkLarge
	}
	err := c.s.Panicked(c.q.cfg.Guard.Try("queue: committing mail", func() error { return c.transact(mail, again) }))
	c.q.committed(work, len(mail), began, err)
	return err
}

func (c *committer) transact(mail []*submittal, again bool) error {
	// Not the context of any session: a commit is never cancelled.
	ctx, cancel := context.WithDeadline(context.Background(), earliest(mail))
	defer cancel()
	conn, err := c.s.Get(ctx)
	if err != nil {
		return err
	}
	// The commit may wait for the disk, or for a server that will never answer.
	slow := time.AfterFunc(c.q.waits.slowCommit, c.q.epochs.lookNow)
	defer slow.Stop()
	if c.limit == 1 {
		err = c.insertLarge(ctx, conn, mail[0], again)
	} else {
		err = c.insert(ctx, conn, mail, again)
	}
	return c.s.End(err)
}

// resolve runs the insert of a group whose commit is in doubt again, under the same
// ids, on new connections, until it is known to be durable or the clients' time is
// up. Whichever of the two transactions wins, the rerun returns after it, and since
// the rerun writes something of its own in any case, its commit waits behind the
// first one's place in the log, for the standbys too.
func (c *committer) resolve(mail []*submittal, cause error) {
	doubted := int64(len(mail))
	c.q.commits.doubted.Add(doubted)
	defer func() { c.q.commits.doubted.Add(-doubted) }()
	for wait := 25 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		c.s.Drop()
		mail = c.giveUp(mail, cause)
		if len(mail) == 0 {
			return
		}
		err := c.try(mail, true)
		switch {
		case err == nil:
			c.accept(mail, true)
			return
		case isTaken(err): // the first has committed since: the next rerun finds its mail
		case pg.CertaintyOf(err) != pg.Rejected:
		case len(apart(mail, err)) > 1:
			c.q.commits.doubted.Add(-doubted) // the parts count themselves
			doubted = 0
			for _, part := range apart(mail, err) {
				c.resolve(part, err)
			}
			return
		case pg.OfTheRow(err):
			c.void(mail[0], err)
			return
		}
		c.q.epochs.suspectIfDown(err)
		cause = err
		time.Sleep(min(wait, time.Until(earliest(mail))))
	}
}

// earliest is when the first client's patience ends.
func earliest(mail []*submittal) time.Time {
	until := mail[0].until
	for _, j := range mail[1:] {
		if j.until.Before(until) {
			until = j.until
		}
	}
	return until
}

// giveUp voids the mail whose time is up and returns the others.
func (c *committer) giveUp(mail []*submittal, cause error) []*submittal {
	left := make([]*submittal, 0, len(mail))
	for _, j := range mail {
		if time.Until(j.until) <= 0 {
			c.void(j, cause)
			continue
		}
		left = append(left, j)
	}
	return left
}

// void refuses j, which may be in the queue all the same, and has it removed.
func (c *committer) void(j *submittal, cause error) {
	c.remove(j)
	j.done <- failed(fmt.Errorf("commit is unknown: %w", cause))
}

// remove has j, which is being refused, removed from the queue, where it may be.
func (c *committer) remove(j *submittal) {
	j.body = nil // its owner may drop it now
	c.voids.add(j)
}

// apart divides a group that was rejected with err so that the cause is in one part: another
// transaction holds a limit's row or a duplicate's key, or a message's own row cannot be written.
// It returns one part where dividing does not help.
func apart(mail []*submittal, err error) [][]*submittal {
	switch {
	case isLocked(err):
		if parts := bySubject(mail); len(parts) > 1 || !ofKey(err) {
			return parts
		}
		fallthrough // it is one message's of this user
	case pg.OfTheRow(err):
		if len(mail) > 1 {
			return [][]*submittal{mail[:len(mail)/2], mail[len(mail)/2:]}
		}
	}
	return [][]*submittal{mail}
}

// accept ends the mail of a committed group. Messages over a limit are refused: this
// transaction did not insert them. One before it may still do so (doubted): its server may have
// stood still before it looked at the limits, so they are voided. Recipients that are duplicates are
// no longer in hand; their message is not in the queue if all are.
func (c *committer) accept(mail []*submittal, doubted bool) {
	c.q.epochs.report(nil)
	defer c.tellNear()
	for i, j := range mail {
		r := c.group.Results()[i]
		switch {
		case r.Err == nil:
			c.q.inHand.remove(j.m.ID, len(r.Copies))
			j.rcpts = j.without(r.Copies)
			if len(j.rcpts) > 0 {
				c.q.accepted(j)
			}
		case doubted:
			c.remove(j)
		default:
			c.q.inHand.remove(j.m.ID, len(j.rcpts))
		}
		j.done <- result{Result: r}
	}
}

func (c *committer) tellNear() {
	if c.q.cfg.Near == nil {
		return
	}
	for _, near := range c.group.Near() {
		c.q.cfg.Near(near)
	}
}

func (c *committer) refuse(mail []*submittal, err error) {
	for _, j := range mail {
		c.q.inHand.remove(j.m.ID, len(j.rcpts))
		j.done <- failed(err)
	}
}

func (c *committer) insert(ctx context.Context, conn *pgx.Conn, mail []*submittal, again bool) error {
	c.group.Reset()
	for _, j := range mail {
		c.add(j)
		if err := c.group.AddBody(j.m.ID, j.body); err != nil {
			return err
		}
	}
	return c.q.insert(ctx, conn, &c.group, mail[0].epoch, again)
}

func (c *committer) add(j *submittal) {
	c.group.Add(&j.m, j.rcpts, j.keys, !j.parked && !c.q.cfg.StrictGate)
}

// insert inserts g, unless epoch is dead.
func (q *Queue) insert(ctx context.Context, conn *pgx.Conn, g *insert.Group, epoch int64, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, q.waits.try)
	defer cancel()
	return unlessLost(g, g.Insert(ctx, conn, q.owner(epoch), again))
}

func (q *Queue) owner(epoch int64) insert.Owner {
	return insert.Owner{Epoch: epoch, Node: q.cfg.Node, Lifetime: q.times.Load().Lifetime}
}

// unlessLost returns the error of an insert of g.
func unlessLost(g *insert.Group, err error) error {
	if err == nil && g.EpochLost() {
		return errEpochLost
	}
	return err
}

// bySubject parts a group by whose limits it is charged against: nobody's first, then
// each domain's that has a limit, and each other user's. Mail with a key is its user's at least.
func bySubject(mail []*submittal) [][]*submittal {
	parts := make(map[string][]*submittal)
	for _, j := range mail {
		subject := ""
		if len(j.keys) > 0 {
			subject = quota.ID(j.m.UserID)
		}
		for _, l := range j.m.Charges {
			if l.Scope == quota.Domain {
				subject = "*@" + l.Subject
				break
			}
			subject = quota.ID(j.m.UserID)
		}
		parts[subject] = append(parts[subject], j)
	}
	list := make([][]*submittal, 0, len(parts))
	for _, subject := range slices.Sorted(maps.Keys(parts)) {
		list = append(list, parts[subject])
	}
	return list
}

// insertLarge commits one large message: its body goes by COPY in the transaction of its
// rows, so there are no rows without it. The rows come last and with the commit, for
// they lock the counts of limits, and nobody should wait for this client. The limits are
// checked first, to avoid writing a body only to refuse it, and so are keys.
func (c *committer) insertLarge(ctx context.Context, conn *pgx.Conn, j *submittal, again bool) error {
	g := &c.group
	g.Reset()
	c.add(j)
	if again {
		return c.insertLargeRows(ctx, conn, j, true)
	}
	over, err := quota.Try(ctx, conn, quota.Charge{Limits: j.m.Charges, Recipients: len(j.rcpts), Size: j.m.Size})
	if err != nil {
		_, _ = conn.Exec(ctx, "rollback") // the failed transaction is still open
		return err
	}
	if over != nil {
		g.Refuse(over)
		return nil
	}
	if known, err := isKnown(ctx, conn, j); err != nil {
		return err
	} else if known {
		g.Wary = max(g.Wary, 1)
		return c.insertLargeRows(ctx, conn, j, false)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := content.Copy(ctx, conn, j.m.ID, j.body); err != nil {
		return err
	}
	brief, cancel := context.WithTimeout(ctx, c.q.waits.try)
	defer cancel()
	err = unlessLost(g, g.InsertAndCommit(brief, conn, c.q.owner(j.epoch)))
	c.q.largeStored()
	return err
}

// insertLargeRows is for a message that is probably stored already, by an earlier try or as the first
// of a duplicate: its rows come first, and its body only if there are any.
func (c *committer) insertLargeRows(ctx context.Context, conn *pgx.Conn, j *submittal, again bool) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := unlessLost(&c.group, c.group.Insert(ctx, conn, c.q.owner(j.epoch), again)); err != nil {
		return err
	}
	if c.group.Inserted() > 0 {
		if err := content.Copy(ctx, conn, j.m.ID, j.body); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	c.q.largeStored()
	return nil
}
