package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/queue/reserve"
)

// waryStatements is how many statements with keys call admit, which expects copies, after one that does
// not has failed because of a copy. Copies come in loops, and PostgreSQL logs each failure.
const waryStatements = 64

// Committers of each kind: while one waits for its commit, the next gathers.
const (
	smallCommitters = 2
	largeCommitters = 4
)

// How a committer of small messages lets others run before it gathers.
const (
	yields      = 8                    // at most
	yieldEnough = 8                    // messages that wait: it gathers
	busyTime    = 2 * time.Millisecond // if yielding takes longer, all processors are busy
	busyWait    = 4 * time.Millisecond
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
			return result{err: context.DeadlineExceeded}
		}
		var r result
		select {
		case r = <-j.done:
		case <-patience.C:
			if j.taken.CompareAndSwap(false, true) {
				c.q.inHand.remove(j.m.ID, len(j.rcpts))
				return result{err: context.DeadlineExceeded}
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
	group group
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
		case hasCopy(err) && c.group.wary == 0:
			c.group.wary = waryStatements
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
	j.done <- result{err: fmt.Errorf("commit is unknown: %w", cause)}
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
		r := c.group.results[i]
		switch {
		case r.err == nil:
			c.q.inHand.remove(j.m.ID, len(r.copies))
			j.rcpts = j.without(r.copies)
			if len(j.rcpts) > 0 {
				c.q.accepted(j)
			}
		case doubted:
			c.remove(j)
		default:
			c.q.inHand.remove(j.m.ID, len(j.rcpts))
		}
		j.done <- r
	}
}

func (c *committer) tellNear() {
	if c.q.cfg.Near == nil {
		return
	}
	for _, near := range c.group.charges.Near() {
		c.q.cfg.Near(near)
	}
}

func (c *committer) refuse(mail []*submittal, err error) {
	for _, j := range mail {
		c.q.inHand.remove(j.m.ID, len(j.rcpts))
		j.done <- result{err: err}
	}
}

// The statement of a group commit, for mail without limits and keys, for mail with keys and without
// limits, for other mail, and for a commit in doubt. Mail without limits and keys does not pay for them.
var (
	sqlEnqueue       = bindEnqueue("enqueue", pg.Constants{"judged": "false", "again": "false"})
	sqlEnqueueKeyed  = bindEnqueue("enqueue_keyed", pg.Constants{"judged": "false", "again": "false"})
	sqlEnqueueJudged = bindEnqueue("enqueue", pg.Constants{"judged": "true", "again": "false"})
	sqlEnqueueAgain  = bindEnqueue("enqueue", pg.Constants{"judged": "true", "again": "true"})
)

func bindEnqueue(name string, constants pg.Constants) string {
	return texts.BindWith(name, constants, pg.Names(new(group).arguments)...)
}

func (c *committer) insert(ctx context.Context, conn *pgx.Conn, mail []*submittal, again bool) error {
	g := &c.group
	g.reset()
	for _, j := range mail {
		g.add(j, c.q.cfg.StrictGate)
		if err := g.addBody(j); err != nil {
			return err
		}
	}
	return g.exec(ctx, conn, c.q, mail, again)
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
	g.reset()
	g.add(j, c.q.cfg.StrictGate)
	if again {
		return c.insertLargeRows(ctx, conn, j, true)
	}
	over, err := quota.Try(ctx, conn, g.charged[0])
	if err != nil {
		_, _ = conn.Exec(ctx, "rollback") // the failed transaction is still open
		return err
	}
	if over != nil {
		g.results = append(g.results, result{err: over})
		return nil
	}
	if known, err := isKnown(ctx, conn, j); err != nil {
		return err
	} else if known {
		c.group.wary = max(c.group.wary, 1)
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
	inserted, err := g.queryAndCommit(ctx, conn, c.q, []*submittal{j})
	c.q.largeStored()
	if err == nil && inserted == 0 && !g.refusedAny() {
		return errEpochLost
	}
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
	inserted, err := c.group.query(ctx, conn, c.q, []*submittal{j}, again)
	if err != nil {
		return err
	}
	if inserted == 0 && !again && !c.group.refusedAny() {
		return errEpochLost
	}
	if inserted > 0 {
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

// group holds the columns of one statement; its slices are reused.
type group struct {
	epoch                        int64
	node                         string
	lifetime                     time.Duration
	id                           [][16]byte
	user, credential, size       []int64
	local, domain, bodyType, ret []string
	utf8, eightBit               []bool
	envid, headerID, addr, hello []string
	listener, tls, tlsNeed       []string
	acceptedAt                   []time.Time
	recipients                   []int32
	rule                         []string
	bodyHash                     [][]byte
	tags, metadata               []string
	charged                      []quota.Charge
	charges                      quota.Charges
	results                      []result // of its mail
	bodyID                       [][16]byte
	bodyN                        []int32
	chunk                        [][]byte
	buf                          []byte
	dot                          []bool // of its messages, as is all above but the bodies
	rMessage, rN                 []int32
	tell, notify                 []int16
	key, rLocal, rDomain, rType  []string
	orcpt                        []string
	dupKey, dupContent           [][16]byte // of keys
	dupMessage, dupN, dupSpan    []int32
	keyed, hasORcpt, hashed      bool // some key is not the domain; some recipient has an ORCPT, some message a hash
	needsTLS, tagged             bool // some message has a TLSNeed; tags or metadata
	wary                         int  // so many statements look for copies first
	args                         pg.Args
}

// arguments adds the columns with their names in enqueue.sql.
func (g *group) arguments(a *pg.Args) {
	a.Add("epoch", g.epoch)
	a.Add("node", g.node)
	a.Add("lifetime", g.lifetime)

	a.Add("id", g.id)
	a.Add("user_id", g.user)
	a.Add("credential_id", g.credential)
	a.Add("sender_local", g.local)
	a.Add("sender_domain", g.domain)
	a.Add("size", g.size)
	a.Add("body_type", g.bodyType)
	a.Add("utf8", g.utf8)
	a.Add("eight_bit", g.eightBit)
	a.Add("ret", g.ret)
	a.Add("envid", g.envid)
	a.Add("header_id", g.headerID)
	a.Add("accepted_at", g.acceptedAt)
	a.Add("client_addr", g.addr)
	a.Add("client_hello", g.hello)
	a.Add("listener", g.listener)
	a.Add("tls", g.tls)
	a.Add("tls_need", unless(g.needsTLS, g.tlsNeed))
	a.Add("recipients", g.recipients)
	a.Add("rule", g.rule)
	a.Add("body_hash", unless(g.hashed, g.bodyHash))
	a.Add("tags", unless(g.tagged, g.tags))
	a.Add("metadata", unless(g.tagged, g.metadata))
	a.Add("dot_possible", g.dot)

	a.Add("body_id", g.bodyID)
	a.Add("body_n", g.bodyN)
	a.Add("chunk", g.chunk)

	a.Add("rcpt_message", g.rMessage)
	a.Add("rcpt_n", g.rN)
	a.Add("tell", g.tell)
	a.Add("notify", g.notify)
	a.Add("local", g.rLocal)
	a.Add("domain", g.rDomain)
	a.Add("domain_key", unless(g.keyed, g.key))
	a.Add("orcpt_type", unless(g.hasORcpt, g.rType))
	a.Add("orcpt", unless(g.hasORcpt, g.orcpt))

	a.Add("key", g.dupKey)
	a.Add("key_message", g.dupMessage)
	a.Add("key_n", g.dupN)
	a.Add("key_span", g.dupSpan)
	a.Add("key_content", g.dupContent)

	g.charges.Arguments(a)
}

// unless returns null in place of a list that says nothing.
func unless[T any](says bool, list []T) any {
	if !says {
		return nil
	}
	return list
}

func (g *group) reset() {
	clear(g.chunk)
	clear(g.bodyHash)
	g.charges.Fill(nil)
	*g = group{
		id: g.id[:0], user: g.user[:0], credential: g.credential[:0], size: g.size[:0],
		local: g.local[:0], domain: g.domain[:0], bodyType: g.bodyType[:0], ret: g.ret[:0], utf8: g.utf8[:0], eightBit: g.eightBit[:0],
		envid: g.envid[:0], headerID: g.headerID[:0], addr: g.addr[:0], hello: g.hello[:0],
		listener: g.listener[:0], tls: g.tls[:0], tlsNeed: g.tlsNeed[:0], acceptedAt: g.acceptedAt[:0], recipients: g.recipients[:0], rule: g.rule[:0], bodyHash: g.bodyHash[:0], tags: g.tags[:0], metadata: g.metadata[:0], charged: g.charged[:0], charges: g.charges, results: g.results[:0],
		bodyID: g.bodyID[:0], bodyN: g.bodyN[:0], chunk: g.chunk[:0], buf: g.buf[:0],
		dot: g.dot[:0], rMessage: g.rMessage[:0], rN: g.rN[:0], tell: g.tell[:0], notify: g.notify[:0],
		key: g.key[:0], rLocal: g.rLocal[:0], rDomain: g.rDomain[:0], rType: g.rType[:0], orcpt: g.orcpt[:0],
		dupKey: g.dupKey[:0], dupContent: g.dupContent[:0], dupMessage: g.dupMessage[:0], dupN: g.dupN[:0], dupSpan: g.dupSpan[:0], wary: g.wary, args: g.args,
	}
	if cap(g.buf) > groupBytes/4 {
		g.buf = nil
	}
}

func (g *group) add(j *submittal, strict bool) {
	m := &j.m
	addr := ""
	if m.ClientAddr.IsValid() {
		addr = m.ClientAddr.String()
	}
	g.id, g.user, g.credential = append(g.id, m.ID), append(g.user, m.UserID), append(g.credential, m.CredentialID)
	g.local, g.domain = append(g.local, m.Sender.Local), append(g.domain, m.Sender.Domain)
	g.size, g.bodyType = append(g.size, m.Size), append(g.bodyType, string(m.BodyType))
	g.utf8, g.eightBit = append(g.utf8, m.UTF8), append(g.eightBit, m.EightBit)
	g.ret, g.envid = append(g.ret, string(m.Ret)), append(g.envid, pg.Storable(m.EnvID))
	g.headerID, g.acceptedAt = append(g.headerID, pg.Storable(m.MessageID)), append(g.acceptedAt, m.AcceptedAt)
	g.addr, g.hello = append(g.addr, addr), append(g.hello, pg.Storable(m.ClientHello))
	g.listener, g.tls = append(g.listener, pg.Storable(m.Listener)), append(g.tls, pg.Storable(m.TLS))
	g.tlsNeed, g.needsTLS = append(g.tlsNeed, string(m.TLSNeed)), g.needsTLS || m.TLSNeed != ""
	g.recipients, g.rule = append(g.recipients, int32(len(j.rcpts))), append(g.rule, pg.Storable(m.Rule))
	g.bodyHash, g.hashed = append(g.bodyHash, m.BodyHash), g.hashed || m.BodyHash != nil
	g.tags, g.metadata = append(g.tags, arrayText(m.Tags)), append(g.metadata, m.Metadata)
	g.tagged = g.tagged || m.Tags != nil || m.Metadata != ""
	for _, k := range j.keys {
		g.dupKey, g.dupContent = append(g.dupKey, k.key), append(g.dupContent, m.Key.Content)
		g.dupMessage, g.dupN = append(g.dupMessage, int32(len(g.id))), append(g.dupN, int32(k.n))
		g.dupSpan = append(g.dupSpan, int32(m.Key.Window/time.Second))
	}
	g.charged = append(g.charged, quota.Charge{Limits: m.Charges, Recipients: len(j.rcpts), Size: m.Size})
	g.dot = append(g.dot, !j.parked && !strict)
	for i := range j.rcpts {
		r := &j.rcpts[i]
		key := r.Address.DomainKey()
		g.keyed, g.hasORcpt = g.keyed || key != r.Address.Domain, g.hasORcpt || r.ORcptType != "" || r.ORcpt != ""
		g.rMessage, g.rN = append(g.rMessage, int32(len(g.id))), append(g.rN, int32(r.N))
		tell := tells(m.Sender, r.Notify)
		if r.Suppressed {
			tell |= isSuppressed
		}
		g.tell, g.notify = append(g.tell, tell), append(g.notify, int16(r.Notify))
		g.key, g.rLocal, g.rDomain = append(g.key, key), append(g.rLocal, r.Address.Local), append(g.rDomain, r.Address.Domain)
		g.rType, g.orcpt = append(g.rType, pg.Storable(r.ORcptType)), append(g.orcpt, pg.Storable(r.ORcpt))
	}
}

// arrayText writes a text[] as PostgreSQL reads it, and "" for none.
func arrayText(list []string) string {
	if len(list) == 0 {
		return ""
	}
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = `"` + quote.Replace(s) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// addBody adds the octets of a small body.
func (g *group) addBody(j *submittal) error {
	size := int(j.body.Size())
	if g.buf == nil || cap(g.buf)-len(g.buf) < size {
		// The earlier chunks still point into the former buffer.
		g.buf = make([]byte, 0, max(size, 64<<10))
	}
	at := len(g.buf)
	g.buf = g.buf[:at+size]
	data := g.buf[at:]
	if size > 0 {
		if err := content.Read(j.body, data, 0); err != nil {
			return &pg.RowError{Err: err}
		}
	}
	for n := int32(0); n == 0 || len(data) > 0; n++ {
		k := min(len(data), content.ChunkSize)
		g.bodyID, g.bodyN, g.chunk = append(g.bodyID, j.m.ID), append(g.bodyN, n), append(g.chunk, data[:k:k])
		data = data[k:]
	}
	return nil
}

func (g *group) exec(ctx context.Context, conn *pgx.Conn, q *Queue, mail []*submittal, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, q.waits.try)
	defer cancel()
	inserted, err := g.query(ctx, conn, q, mail, again)
	if err == nil && inserted == 0 && !again && !g.refusedAny() {
		return errEpochLost
	}
	return err
}

// refusedAny reports that a message of the group was not stored as it is over a limit or a duplicate.
func (g *group) refusedAny() bool {
	return slices.ContainsFunc(g.results, func(r result) bool { return r.err != nil || r.copies != nil })
}

// query runs the statement for mail that was added, notes the decisions about it
// and says how many messages it inserted.
func (g *group) query(ctx context.Context, conn *pgx.Conn, q *Queue, mail []*submittal, again bool) (int, error) {
	var d decision
	sql, args, results := g.statement(q, mail, again, &d)
	if err := conn.QueryRow(ctx, sql, args...).Scan(results...); err != nil {
		return 0, fmt.Errorf("insert: %w", err)
	}
	g.decided(mail, &d)
	return d.inserted, nil
}

// queryAndCommit is query and the end of the transaction in one round trip.
func (g *group) queryAndCommit(ctx context.Context, conn *pgx.Conn, q *Queue, mail []*submittal) (int, error) {
	var d decision
	sql, args, results := g.statement(q, mail, false, &d)
	batch := &pgx.Batch{}
	batch.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(results...) })
	batch.Queue("commit")
	ctx, cancel := context.WithTimeout(ctx, q.waits.try)
	defer cancel()
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("insert and commit: %w", err)
	}
	g.decided(mail, &d)
	return d.inserted, nil
}

// decision is what the database decided about the messages of a group, but for their
// charges, which have their own results.
type decision struct {
	inserted int
	held     [][16]byte

	// Of each recipient that is a duplicate: its message, its number and the message that was first.
	copied, first [][16]byte
	copiedN       []int32
}

// statement returns what inserts mail; its one row goes into d and the charges.
func (g *group) statement(q *Queue, mail []*submittal, again bool, d *decision) (sql string, args, results []any) {
	g.charges.Fill(g.charged)
	g.epoch, g.node, g.lifetime = mail[0].epoch, q.cfg.Node, q.times.Load().Lifetime
	g.args.Values = g.args.Values[:0]
	g.arguments(&g.args)
	results = append([]any{&d.inserted, nil, &d.held}, g.charges.Results()...)
	results = append(results, &d.copied, &d.copiedN, &d.first, nil)
	switch {
	case again:
		sql = sqlEnqueueAgain
	case g.charges.None() && len(g.dupKey) == 0:
		sql = sqlEnqueue
	case g.charges.None() && g.wary == 0:
		sql = sqlEnqueueKeyed
	default:
		g.wary = max(g.wary-1, 0)
		sql = sqlEnqueueJudged
	}
	return sql, g.args.Values, results
}

// decided notes the decision about each message.
func (g *group) decided(mail []*submittal, d *decision) {
	g.results = g.results[:0]
	for i, j := range mail {
		r := result{held: slices.Contains(d.held, [16]byte(j.m.ID))}
		for at, id := range d.copied {
			if id == [16]byte(j.m.ID) {
				r.copy(int(d.copiedN[at]), d.first[at])
			}
		}
		if over := g.charges.Over(i); over != nil {
			r.err = over
		}
		g.results = append(g.results, r)
	}
}
