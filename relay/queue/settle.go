package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"postern/internal/pg"
	"postern/relay/queue/content"
	"postern/relay/smtp"
	"postern/relay/suppression"
)

const (
	settleGroup = 512  // outcomes in one statement
	settleQueue = 8192 // outcomes that wait before Settle blocks
	settleSoon  = 32   // outcomes that are written without waiting for more

	// Nobody waits for an outcome: a group waits for more, for so many pauses.
	settlePause  = 5 * time.Millisecond
	settlePauses = 4
)

// faultNotice is how long after acceptance a sender hears of a delay that is the relay's fault: the
// next server refuses account or sender.
const faultNotice = time.Hour

// ending is how one row that we own is to end.
type ending struct {
	Outcome
	release bool   // not an attempt: back to waiting
	expired bool   // its lifetime ended while it waited
	bared   bool   // its texts were left out
	aside   string // why the row is set aside; of a release
}

// settles writes endings in groups, in order, until they are written.
type settles struct {
	q    *Queue
	s    *pg.Dedicated
	in   chan ending
	last chan struct{} // closed when nothing more will come
	done sync.WaitGroup
	cols endings

	together sync.Mutex // the endings of one attempt stay side by side

	fenced atomic.Int64 // outcomes
}

func newSettles(q *Queue) *settles {
	return &settles{q: q, s: dedicated(q.cfg.WorkPool, pg.TuneWork, &q.faults.settle), in: make(chan ending, settleQueue), last: make(chan struct{})}
}

// Settle hands over outcomes; they are written in batches, fenced by their epoch,
// and tried again until they are written or fenced off. It blocks only while too
// many outcomes wait.
func (q *Queue) Settle(outcomes ...Outcome) {
	q.settles.together.Lock()
	defer q.settles.together.Unlock()
	for i := range outcomes {
		e := ending{Outcome: outcomes[i], release: outcomes[i].NotAnAttempt}
		if e.At.IsZero() {
			e.At = time.Now()
		}
		q.settles.put(e)
	}
}

// Release gives recipients back without an attempt, due again after the wait. When a reader
// has found the body damaged, they are set aside.
func (q *Queue) Release(d *Delivery, ns []int, wait time.Duration) {
	damaged := content.Damaged(d.Body)
	for _, n := range ns {
		e := d.released(n, wait)
		if damaged {
			e.aside, e.At = textMissing, time.Now()
		}
		q.settles.put(e)
	}
}

// released is the release of a recipient. It stays with what it stayed with when it was claimed.
func (d *Delivery) released(n int, wait time.Duration) ending {
	e := ending{Outcome: Outcome{Message: d.Message.ID, N: n, Epoch: d.Epoch, RetryIn: wait}, release: true}
	for i := range d.Recipients {
		if d.Recipients[i].N == n {
			e.StaysWith = d.Recipients[i].StaysWith
		}
	}
	return e
}

// end ends a claimed row that nobody has in hand yet.
func (q *Queue) end(e ending) {
	q.inHand.add(e.Message, 1)
	q.settles.put(e)
}

// park releases the rows of a message that was committed for any node to deliver. Its
// client waits for the 250, so it does not wait for room.
func (s *settles) park(j *submittal) {
	ends := make([]ending, len(j.rcpts))
	for i := range j.rcpts {
		ends[i] = ending{Outcome: Outcome{Message: j.m.ID, N: j.rcpts[i].N, Epoch: j.epoch}, release: true}
	}
	if cap(s.in)-len(s.in) > len(ends)+settleGroup {
		s.putAll(ends)
		return
	}
	go s.putAll(ends)
}

func (s *settles) putAll(ends []ending) {
	s.together.Lock()
	defer s.together.Unlock()
	for _, e := range ends {
		s.put(e)
	}
}

func (s *settles) put(e ending) {
	select {
	case s.in <- e:
	case <-s.q.stopped:
		s.q.log.Error("queue: an outcome came after shutdown and is lost; the next attempt is flagged", "id", e.Message, "rcpt", e.N, "result", e.Result)
	}
}

// run writes until ctx ends, or until everything from before the close of last is written.
func (s *settles) run(ctx context.Context) {
	defer s.s.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-s.in:
			s.pause()
			s.write(ctx, gather(first, s.in, settleGroup, nil), false)
		case <-s.last:
			for len(s.in) > 0 {
				s.write(ctx, gather(<-s.in, s.in, settleGroup, nil), false)
			}
			return
		}
	}
}

// pause waits for more outcomes.
func (s *settles) pause() {
	for n := 0; n < settlePauses && len(s.in) < settleSoon; n++ {
		time.Sleep(settlePause)
	}
}

// write writes a group, however long that takes. again says that an earlier try may have
// succeeded.
func (s *settles) write(ctx context.Context, group []ending, again bool) {
	told := time.Now() // when the log last heard of it: the heartbeat may not see it, as with a full disk
	for wait := 10 * time.Millisecond; ctx.Err() == nil && len(group) > 0; wait = min(2*wait, 5*time.Second) {
		err := s.try(group, again)
		if err == nil {
			s.finish(group)
			return
		}
		if pg.CertaintyOf(err) == pg.Uncertain {
			again, group = true, s.leaveReleases(group)
		}
		if pg.OfTheRow(err) && len(group) > 0 {
			if len(group) > 1 {
				s.write(ctx, group[:len(group)/2], again)
				s.write(ctx, group[len(group)/2:], again)
				return
			}
			if !s.yield(&group[0], err) {
				return
			}
		}
		down := s.q.epochs.suspectIfDown(err)
		if !down || time.Since(told) > s.q.waits.tell {
			told = time.Now()
			s.q.log.Warn("queue: settle failed, will retry", "outcomes", len(group), "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	if len(group) > 0 {
		s.q.log.Error("queue: outcomes are lost at shutdown; their next attempts are flagged", "outcomes", len(group))
	}
}

// leaveReleases drops the releases of a group that is in doubt, but for rows that are set
// aside, which may be done twice. Nothing records a release,
// so nobody can know whether it was made; the row may have been claimed again, by this very
// epoch, and must not be taken from that claim. If it was not made the sweep makes it, for
// nobody here has the row in hand.
func (s *settles) leaveReleases(group []ending) []ending {
	left := group[:0]
	for _, e := range group {
		if e.release && e.aside == "" {
			s.q.inHand.remove(e.Message, 1)
			continue
		}
		left = append(left, e)
	}
	return left
}

// yield turns an outcome that cannot be written into one that needs less of its row; false
// means that there is none.
func (s *settles) yield(e *ending, err error) bool {
	switch {
	case e.aside == "" && !e.bared:
		s.q.log.Error("queue: cannot write an outcome, leaving its texts out", "id", e.Message, "rcpt", e.N, "error", err)
		e.Outcome, e.bared = bare(e.Outcome), true
	case e.aside == "":
		e.aside = fmt.Sprintf("its outcome (%s, %d) cannot be written: %v", e.Result, e.Reply.Code, err)
		e.Unknown, e.release = e.Unknown || e.Result == Delivered, true
		if e.At.IsZero() {
			e.At = time.Now()
		}
	default:
		s.q.log.Error("queue: cannot set a recipient aside, its row cannot be written", "id", e.Message, "rcpt", e.N, "why", e.aside, "error", err)
		s.q.inHand.remove(e.Message, 1)
		return false
	}
	return true
}

// bare is an outcome without the peer's text, only its codes.
func bare(o Outcome) Outcome {
	o.Reply.Text, o.RemoteMTA, o.TLS, o.Upstream, o.SentAs, o.Left = "", "", "", "", "", nil
	return o
}

func (s *settles) finish(group []ending) {
	s.q.ended(group)
	due, notices := false, false
	for i := range group {
		e := &group[i]
		switch {
		case e.aside != "":
			s.q.log.Error("queue: recipient set aside, its mail waits for an admin", "id", e.Message, "rcpt", e.N, "why", e.aside)
		case e.release:
			due = due || e.RetryIn <= 0
		default:
			notices = notices || e.Result == Failed || e.Result == Suppressed
		}
		s.q.inHand.remove(e.Message, 1)
	}
	if due || notices {
		s.q.announce()
	}
}

// The statements of a group, for its first attempt and for one that may find what an earlier
// one has written. They take what endings.delivered and endings.undelivered add.
var (
	sqlDelivered        = texts.BindWith("delivered", pg.Constants{"again": "false"}, pg.Names(new(endings).delivered)...)
	sqlDeliveredAgain   = texts.BindWith("delivered", pg.Constants{"again": "true"}, pg.Names(new(endings).delivered)...)
	sqlUndelivered      = texts.BindWith("undelivered", pg.Constants{"again": "false"}, pg.Names(new(endings).undelivered)...)
	sqlUndeliveredAgain = texts.BindWith("undelivered", pg.Constants{"again": "true"}, pg.Names(new(endings).undelivered)...)
	sqlAwaitEndings     = texts.Bind("await_outcomes", "message_id", "n")
	sqlFlagFenced       = texts.Bind("flag_fenced", "message_id", "n")
)

// try writes a group once: one round trip, one transaction.
func (s *settles) try(group []ending, again bool) error {
	began := time.Now()
	err := s.q.cfg.Guard.Try("queue: writing outcomes", func() error { return s.transact(group, again) })
	err = s.s.Panicked(err)
	s.q.committed(WorkSettle, len(group), began, err)
	return err
}

func (s *settles) transact(group []ending, again bool) error {
	// Like a commit of mail, it is never cancelled.
	ctx, cancel := context.WithTimeout(context.Background(), s.q.cfg.Budget)
	defer cancel()
	conn, err := s.s.Get(ctx)
	if err != nil {
		return err
	}
	var fenced []fencedKey
	batch, delivered, undelivered := &pgx.Batch{}, sqlDelivered, sqlUndelivered
	if again {
		delivered, undelivered = sqlDeliveredAgain, sqlUndeliveredAgain
		batch.Queue(sqlAwaitEndings, keysOf(group)...)
	}
	collect := func(rows pgx.Rows) error {
		var key fencedKey
		_, err := pgx.ForEachRow(rows, []any{&key.id, &key.n, nil}, func() error {
			if key.id != nil {
				fenced = append(fenced, fencedKey{new(*key.id), new(*key.n)})
			}
			return nil
		})
		return err
	}
	if c := s.cols.fill(s.q, group, true); c.len() > 0 {
		c.delivered(&c.args)
		batch.Queue(delivered, c.args.Values...).Query(collect)
	}
	rest := &endings{}
	if c := rest.fill(s.q, group, false); c.len() > 0 {
		c.undelivered(&c.args)
		batch.Queue(undelivered, c.args.Values...).Query(collect)
	}
	s.suppress(batch, group)
	for i := range group {
		if e := &group[i]; e.aside != "" {
			batch.Queue(sqlSetAside, e.Message, e.N, e.Epoch, e.At, pg.Storable(e.aside), s.q.cfg.Node, e.Unknown, s.q.times.Load().Lifetime)
		}
	}
	err = conn.SendBatch(ctx, batch).Close()
	if err = s.s.End(err); err != nil {
		if !errors.Is(err, pg.ErrNotReplicated) && pg.CertaintyOf(err) == pg.Uncertain {
			s.s.Drop()
		}
		return fmt.Errorf("settle: %w", err)
	}
	s.tellFenced(ctx, conn, fenced)
	return nil
}

// suppress has the list of suppressed addresses learn from a group, behind its history.
func (s *settles) suppress(batch *pgx.Batch, group []ending) {
	list := s.q.cfg.Suppressed
	if list == nil {
		return
	}
	var dead, alive []suppression.End
	for i := range group {
		e := &group[i]
		if e.release || e.aside != "" || e.Upstream != "mx" {
			continue
		}
		switch {
		case e.NoMailbox:
			dead = append(dead, e.end())
		case e.Result == Delivered && list.Maybe(e.Recipient):
			alive = append(alive, e.end())
		}
	}
	if len(dead) > 0 {
		list.Bounced(batch, dead)
	}
	if len(alive) > 0 {
		list.Delivered(batch, alive)
	}
}

func (e *ending) end() suppression.End {
	return suppression.End{Message: e.Message, N: e.N, At: e.At, Epoch: e.Epoch, Address: e.Recipient, Reply: e.Reply}
}

// tellFenced logs outcomes that changed no row and flags the rows that still exist.
func (s *settles) tellFenced(ctx context.Context, conn *pgx.Conn, fenced []fencedKey) {
	if len(fenced) == 0 {
		return
	}
	s.fenced.Add(int64(len(fenced)))
	ids, ns := make([][16]byte, len(fenced)), make([]int32, len(fenced))
	for i, key := range fenced {
		ids[i], ns[i] = *key.id, int32(*key.n)
		s.q.log.Warn("queue: outcome fenced: it came after its epoch had lost the recipient", "id", *key.id, "rcpt", *key.n)
	}
	if _, err := conn.Exec(ctx, sqlFlagFenced, ids, ns); s.s.End(err) != nil {
		s.q.log.Warn("queue: cannot flag recipients that may have been delivered", "recipients", len(fenced), "error", err)
	}
}

func keysOf(group []ending) []any {
	ids, ns := make([][16]byte, len(group)), make([]int32, len(group))
	for i := range group {
		ids[i], ns[i] = group[i].Message, int32(group[i].N)
	}
	return []any{ids, ns}
}

type fencedKey struct {
	id *ID
	n  *int
}

// endings holds the columns of one statement.
type endings struct {
	node          string
	gather, delay time.Duration
	last          *ending // that was added

	// Of each attempt, with the numbers of its first and last recipient here, from 1.
	id                                          [][16]byte
	from, to, code                              []int32
	epoch                                       []int64
	result, enhanced, text, mta, addr, tls, via []string
	sentAs                                      []string
	waits, scope, stays, left                   []string
	at, started                                 []time.Time
	unknown, passed, released, ours, mid        []bool
	retry                                       []time.Duration

	// Of each recipient.
	n             []int32
	local, domain []string

	args pg.Args
}

func (c *endings) len() int { return len(c.n) }

// fill takes the endings of a group that are deliveries, or those that are not.
func (c *endings) fill(q *Queue, group []ending, delivered bool) *endings {
	*c = endings{node: q.cfg.Node, gather: q.cfg.Gather, delay: q.times.Load().DelayNotice, args: pg.Args{Values: c.args.Values[:0]}, id: c.id[:0], from: c.from[:0], to: c.to[:0], code: c.code[:0], epoch: c.epoch[:0], result: c.result[:0], enhanced: c.enhanced[:0],
		text: c.text[:0], mta: c.mta[:0], addr: c.addr[:0], tls: c.tls[:0], via: c.via[:0], sentAs: c.sentAs[:0], waits: c.waits[:0], scope: c.scope[:0], stays: c.stays[:0], mid: c.mid[:0], left: c.left[:0], ours: c.ours[:0],
		at: c.at[:0], started: c.started[:0], unknown: c.unknown[:0], passed: c.passed[:0], released: c.released[:0], retry: c.retry[:0],
		n: c.n[:0], local: c.local[:0], domain: c.domain[:0]}
	for i := range group {
		e := &group[i]
		if e.aside == "" && (e.Result == Delivered && !e.release) == delivered {
			c.add(e)
		}
	}
	c.last = nil
	return c
}

func (c *endings) add(e *ending) {
	if c.last == nil || !c.last.alike(e) {
		c.addAttempt(e)
	}
	c.last = e
	c.n = append(c.n, int32(e.N))
	c.local, c.domain = append(c.local, pg.Storable(e.Recipient.Local)), append(c.domain, pg.Storable(e.Recipient.Domain))
	c.to[len(c.to)-1] = int32(len(c.n))
}

// alike reports that e and f differ in nothing but the recipient.
func (e *ending) alike(f *ending) bool {
	of := *e
	of.N, of.Recipient = f.N, f.Recipient
	return of == *f
}

func (c *endings) addAttempt(e *ending) {
	result := string(e.Result)
	switch {
	case e.expired:
		result = "expired"
	case e.release:
		result = string(Deferred)
	}
	addr := ""
	if e.RemoteIP.IsValid() {
		addr = e.RemoteIP.String()
	}
	started := e.StartedAt
	if started.IsZero() {
		started = e.At
	}
	c.id, c.epoch, c.result = append(c.id, e.Message), append(c.epoch, e.Epoch), append(c.result, result)
	c.from, c.to = append(c.from, int32(len(c.n)+1)), append(c.to, 0)
	c.at, c.started = append(c.at, e.At), append(c.started, started)
	c.code, c.enhanced, c.text = append(c.code, int32(e.Reply.Code)), append(c.enhanced, e.Reply.Enhanced.String()), append(c.text, pg.Storable(e.Reply.Text))
	c.mta, c.addr = append(c.mta, pg.Storable(e.RemoteMTA)), append(c.addr, addr)
	c.tls, c.via = append(c.tls, pg.Storable(e.TLS)), append(c.via, pg.Storable(e.Upstream))
	c.sentAs = append(c.sentAs, pg.Storable(e.SentAs))
	c.unknown, c.passed = append(c.unknown, e.Unknown), append(c.passed, e.DSNPassed)
	c.retry, c.released = append(c.retry, max(e.RetryIn, 0)), append(c.released, e.release)
	c.waits, c.ours = append(c.waits, pg.Storable(e.WaitsFor)), append(c.ours, e.Ours)
	c.scope, c.stays, c.mid = append(c.scope, e.Scope), append(c.stays, e.StaysWith), append(c.mid, e.MidText)
	left := ""
	if e.Left != nil {
		left = leftJSON(*e.Left)
	}
	c.left = append(c.left, left)
}

// leftJSON is the JSON of ways that were left.
func leftJSON(list []LeftWay) string {
	list = slices.Clone(list) // others read it
	for i := range list {
		list[i].Host, list[i].Reply = pg.Storable(list[i].Host), pg.Storable(list[i].Reply)
	}
	text, _ := json.Marshal(list) // strings and times
	return string(text)
}

// delivered adds the columns with their names in settle.sql.
func (c *endings) delivered(a *pg.Args) {
	a.Add("node", c.node)
	a.Add("gather", c.gather)

	a.Add("message_id", c.id)
	a.Add("first", c.from)
	a.Add("last", c.to)
	a.Add("epoch", c.epoch)
	a.Add("at", c.at)
	a.Add("started_at", c.started)
	a.Add("code", c.code)
	a.Add("enhanced", c.enhanced)
	a.Add("text", c.text)
	a.Add("mta", c.mta)
	a.Add("addr", c.addr)
	a.Add("tls", c.tls)
	a.Add("upstream", c.via)
	a.Add("sent_as", c.sentAs)
	a.Add("outcome_unknown", c.unknown)
	a.Add("dsn_passed", c.passed)
	a.Add("left_ways", c.left)

	a.Add("n", c.n)
	a.Add("local", c.local)
	a.Add("domain", c.domain)
}

// undelivered is delivered for the other statement, which needs more.
func (c *endings) undelivered(a *pg.Args) {
	c.delivered(a)
	a.Add("result", c.result)
	a.Add("retry_in", pgtype.FlatArray[time.Duration](c.retry))
	a.Add("released", c.released)
	a.Add("waits_for", c.waits)
	a.Add("ours", c.ours)
	a.Add("scope", c.scope)
	a.Add("stays_with", c.stays)
	a.Add("mid_text", c.mid)
	a.Add("delay_notice", c.delay)
	a.Add("fault_notice", faultNotice)
}

// expiredReply fails a recipient whose lifetime ended while it waited (RFC 3463 X.4.7,
// transient by its class as in RFC 3464 section 4.3).
func expiredReply(lifetime time.Duration) smtp.Reply {
	return smtp.Temporary(451, 4, 7, fmt.Sprintf("Delivery time expired after %s", lifetime))
}
