package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/queue/content"
	"postern/relay/queue/insert"
	"postern/relay/smtp"
)

var (
	sqlClaimNotices  = texts.Bind("claim_notices", "messages", "epoch")
	sqlFirstNotice   = texts.Bind("first_notice", "rows")
	sqlToldBefore    = texts.Bind("told_before", "about", "kind", "user_id", "since")
	sqlTold          = texts.Bind("told", "message_id", "n", "epoch", "node", "text", "notice", "kind", "user_id", "again")
	sqlNoticeExists  = texts.Bind("notice_exists", "notice")
	sqlDisown        = texts.Bind("disown", "message_id", "epoch")
	sqlReleaseNotice = texts.Bind("release_notice", "message_id", "n", "epoch", "wait")
)

// noticeHeaders bounds the header section that a notice may quote.
const noticeHeaders = 64 << 10

type noticeRow struct {
	id    ID
	state string
	r     NoticeRecipient
}

// ClaimNotices takes recipients whose sender is to be told something, including those that
// failed because their lifetime ended while they waited.
func (q *Queue) ClaimNotices(ctx context.Context, messages int) ([]*Notice, error) {
	epoch := q.epochs.valid()
	if epoch == 0 {
		return nil, fmt.Errorf("claim notices: %w", errEpochLost)
	}
	c := q.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := c.s.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("claim notices: %w", err)
	}
	var notices []*Notice
	err = c.s.Panicked(q.cfg.Guard.Try("queue: claiming notices", func() (err error) {
		notices, err = q.takeNotices(ctx, conn, messages, epoch)
		return err
	}))
	if err = c.s.End(err); err != nil {
		for _, n := range notices {
			q.giveNoticeBack(n, time.Second)
		}
		q.epochs.suspectIfDown(err)
		return nil, fmt.Errorf("claim notices: %w", err)
	}
	for _, n := range notices {
		q.inHand.add(n.Message.ID, len(n.Recipients))
	}
	return notices, nil
}

func (q *Queue) takeNotices(ctx context.Context, conn *pgx.Conn, messages int, epoch int64) ([]*Notice, error) {
	rows, err := q.takeNoticeRows(ctx, conn, messages, epoch)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(a, b noticeRow) int {
		if d := slices.Compare(a.id[:], b.id[:]); d != 0 {
			return d
		}
		if a.state != b.state {
			return slices.Compare([]byte(a.state), []byte(b.state))
		}
		return a.r.N - b.r.N
	})
	var list []*Notice
	var wanted [][16]byte
	for _, row := range rows {
		kind := noticeKind(row.state)
		if len(list) == 0 || list[len(list)-1].Message.ID != row.id || list[len(list)-1].Kind != kind {
			list = append(list, &Notice{Message: Message{ID: row.id}, Kind: kind, Epoch: epoch})
			wanted = append(wanted, row.id)
		}
		n := list[len(list)-1]
		n.Recipients = append(n.Recipients, row.r)
	}
	return q.fillNotices(ctx, conn, list, wanted)
}

// takeNoticeRows claims rows. A row that makes the claim fail is set aside once it is the
// first.
func (q *Queue) takeNoticeRows(ctx context.Context, conn *pgx.Conn, messages int, epoch int64) ([]noticeRow, error) {
	for ; ; messages /= 2 {
		result, _ := conn.Query(ctx, sqlClaimNotices, messages, epoch) // CollectRows has its error
		rows, err := pgx.CollectRows(result, scanNotice)
		switch {
		case !pg.OfTheRow(err):
			return rows, err
		case messages > 1:
			continue
		}
		var id ID
		var n int
		if lost := conn.QueryRow(ctx, sqlFirstNotice, 1).Scan(&id, &n); lost != nil {
			return nil, err
		}
		q.setAside(id, n, 0, ofRows(err))
		return nil, nil
	}
}

func noticeKind(state string) NoticeKind {
	switch state {
	case "failed":
		return NoticeFailure
	case "doubt":
		return NoticeDoubt
	case "delivered":
		return NoticeSuccess
	}
	return NoticeDelay
}

func scanNotice(row pgx.CollectableRow) (noticeRow, error) {
	var n noticeRow
	var enhanced string
	var last *time.Time
	var accepted time.Time
	r := &n.r
	err := row.Scan(&n.id, &n.state, &r.N, &r.Address.Local, &r.Address.Domain, &r.ORcptType, &r.ORcpt, &r.Reply.Code, &enhanced,
		&r.Reply.Text, &r.RemoteMTA, &last, &r.WillRetryTo, &accepted, &r.Scope, &r.Upstream)
	r.Reply.Enhanced = smtp.ParseEnhancedCode(enhanced)
	r.LastAttempt = accepted
	if last != nil {
		r.LastAttempt = *last
	}
	return n, err
}

// fillNotices adds the messages and the stored part of their bodies. As in deliveries,
// nobody has the notices in hand yet.
func (q *Queue) fillNotices(ctx context.Context, conn *pgx.Conn, list []*Notice, wanted [][16]byte) ([]*Notice, error) {
	found, err := q.load(ctx, conn, slices.Compact(wanted))
	if err != nil {
		for _, n := range list {
			q.giveNoticeBack(n, time.Second)
		}
		return nil, err
	}
	sound := list[:0]
	for _, n := range list {
		m := found[n.Message.ID]
		if why := m.envelopeFault(); why != "" {
			for _, r := range n.Recipients {
				q.setAside(n.Message.ID, r.N, n.Epoch, why)
			}
			continue
		}
		n.Message, n.Body = m.Message, m.body
		sound = append(sound, n)
	}
	waits, err := q.tooSoon(ctx, conn, sound)
	if err != nil {
		for _, n := range sound {
			q.giveNoticeBack(n, time.Second)
		}
		return nil, err
	}
	complete := sound[:0]
	for i, n := range sound {
		if waits[i] > 0 {
			q.giveNoticeBack(n, min(waits[i], againLater)) // its last recipient may be delivered meanwhile
			continue
		}
		if err := n.readHeaders(ctx, conn); pg.OfTheRow(err) || errors.Is(err, content.ErrDamaged) {
			n.Body = nil // a part of the text is of no use
		} else if err != nil {
			q.log.Warn("queue: a notice waits: its message cannot be read", "id", n.Message.ID, "error", err)
			q.giveNoticeBack(n, time.Minute)
			continue
		}
		complete = append(complete, n)
	}
	return complete, nil
}

const (
	againAnHour = 100              // repeated notices for a user
	againLater  = 10 * time.Minute // the wait of notices beyond that, and the longest wait before another look
)

// tooSoon returns how long each notice has to wait; 0 is not at all. The first of its kind
// about a message does not wait, nor does the last, when no recipient is under way. Between
// them each waits twice as long as the one before, so that a lifetime of 5 days has room
// for 14; a user's repeated notices are bounded too.
func (q *Queue) tooSoon(ctx context.Context, conn *pgx.Conn, list []*Notice) ([]time.Duration, error) {
	about, kinds, users := make([][16]byte, len(list)), make([]string, len(list)), make([]int64, len(list))
	for i, n := range list {
		about[i], kinds[i], users[i] = n.Message.ID, string(n.Kind), n.Message.UserID
	}
	now := time.Now()
	rows, err := conn.Query(ctx, sqlToldBefore, about, kinds, users, FirstID(now.Add(-time.Hour)))
	if err != nil {
		return nil, err
	}
	waits := make([]time.Duration, len(list))
	var i, told, again int
	var last ID
	var goesOn bool
	_, err = pgx.ForEachRow(rows, []any{&i, &told, &last, &goesOn, &again}, func() error {
		list[i-1].again = true
		if goesOn {
			waits[i-1] = time.Unix(last.Time().UnixTime()).Add(q.cfg.Gather << min(told-1, 20)).Sub(now)
			if again >= againAnHour {
				waits[i-1] = max(waits[i-1], againLater)
			}
		}
		return nil
	})
	return waits, err
}

func (n *Notice) readHeaders(ctx context.Context, conn *pgx.Conn) error {
	if n.Body == nil {
		return nil
	}
	head, err := content.Head(ctx, conn, n.Body, noticeHeaders)
	if err == nil {
		n.Headers = headersOf(head)
	}
	return err
}

// headersOf returns the header section with its last CRLF, up to the bound.
func headersOf(head []byte) []byte {
	if i := bytes.Index(head, []byte("\r\n\r\n")); i >= 0 {
		return head[:i+2]
	}
	if i := bytes.LastIndex(head, []byte("\r\n")); i >= 0 {
		return head[:i+2]
	}
	return head
}

// EnqueueNotice commits the notice message and marks its recipients as told, in
// one transaction fenced by the epoch. A nil body marks them told without a
// message (null sender, NOTIFY=NEVER). After an error the notice is to be released:
// the release is fenced too, and changes nothing if the commit has succeeded.
func (q *Queue) EnqueueNotice(ctx context.Context, n *Notice, m Message, rcpt Recipient, body []byte) error {
	if !q.enter() {
		return refusal(errClosed)
	}
	defer q.inflight.Done()
	if !q.Valid(n.Epoch) {
		return fmt.Errorf("enqueue notice: %w", errEpochLost)
	}
	// As with mail, neither a session nor a shutdown cancels a commit.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), q.cfg.Budget)
	defer cancel()
	var j *submittal
	var by *ID
	if body != nil {
		j, by = ownMail(m, []Recipient{rcpt}, body, n.Epoch), &m.ID
	}
	_, err := q.notices.commit(ctx, j, func(ctx context.Context, tx pgx.Tx) (bool, error) { return true, q.notices.markTold(ctx, tx, n, by) })
	if err != nil {
		return fmt.Errorf("enqueue notice: %w", err)
	}
	q.inHand.remove(n.Message.ID, len(n.Recipients))
	if body != nil {
		q.announce()
	}
	return nil
}

// EnqueueOwn commits a message of Postern itself, from the null sender, in one transaction with what
// record writes there; if record returns false nothing is committed, and neither if it returns an
// error. It reports whether the message is in the queue: after an error it may be.
func (q *Queue) EnqueueOwn(ctx context.Context, m Message, rcpts []Recipient, body []byte, record func(ctx context.Context, tx pgx.Tx) (bool, error)) (sent bool, err error) {
	if !q.enter() {
		return false, refusal(errClosed)
	}
	defer q.inflight.Done()
	epoch := q.epochs.valid()
	if epoch == 0 {
		return false, fmt.Errorf("enqueue own mail: %w", errEpochLost)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), q.cfg.Budget)
	defer cancel()
	if sent, err = q.notices.commit(ctx, ownMail(m, rcpts, body, epoch), record); err != nil {
		return false, fmt.Errorf("enqueue own mail: %w", err)
	}
	if sent {
		q.announce()
	}
	return sent, nil
}

func ownMail(m Message, rcpts []Recipient, body []byte, epoch int64) *submittal {
	m.Size = int64(len(body))
	return &submittal{m: m, rcpts: rcpts, body: content.New(body), epoch: epoch}
}

// notices commits notices and other mail of ours, one at a time.
type notices struct {
	q  *Queue
	mu sync.Mutex
	s  *pg.Dedicated
}

func (ns *notices) close() {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.s.Close()
}

// commit tries until the notice is committed or certainly is not. A commit in doubt is run
// again; if it had succeeded, the notice is found in the table.
//
// record writes what goes with it, or says that nothing is to be committed. A nil j is no message.
func (ns *notices) commit(ctx context.Context, j *submittal, record recordFunc) (sent bool, err error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for try := 1; ; try++ {
		sent, err = ns.try(ctx, j, record)
		if err == nil {
			return sent, nil
		}
		if try == 3 || ctx.Err() != nil || errors.Is(err, errEpochLost) || pg.CertaintyOf(err) == pg.Rejected && !worthAnother(err) {
			return false, err
		}
		ns.s.Drop()
	}
}

type recordFunc = func(ctx context.Context, tx pgx.Tx) (bool, error)

func (ns *notices) try(ctx context.Context, j *submittal, record recordFunc) (sent bool, err error) {
	began := time.Now()
	err = ns.s.Panicked(ns.q.cfg.Guard.Try("queue: committing a notice", func() (err error) {
		sent, err = ns.transact(ctx, j, record)
		return err
	}))
	ns.q.room.Heard(err)
	ns.q.committed(WorkNotice, 1, began, err)
	return sent, err
}

func (ns *notices) transact(ctx context.Context, j *submittal, record recordFunc) (sent bool, err error) {
	conn, err := ns.s.Get(ctx)
	if err != nil {
		return false, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if j != nil {
			if err := tx.QueryRow(ctx, sqlNoticeExists, j.m.ID).Scan(&sent, nil, nil); err != nil || sent {
				return err
			}
		}
		wanted, err := record(ctx, tx)
		if err != nil || !wanted || j == nil {
			return err
		}
		sent = true
		return ns.insert(ctx, conn, j)
	})
	return sent, ns.s.End(err)
}

// markTold ends the recipients of n, of which by tells, or nothing.
func (ns *notices) markTold(ctx context.Context, tx pgx.Tx, n *Notice, by *ID) error {
	text := "no notice wanted"
	if by != nil {
		text = string(n.Kind) + " notice " + by.String()
	}
	var told int
	if err := tx.QueryRow(ctx, sqlTold, n.Message.ID, rowsOf(n), n.Epoch, ns.q.cfg.Node, text, by, string(n.Kind),
		n.Message.UserID, n.again).Scan(&told, nil); err != nil {
		return fmt.Errorf("mark told: %w", err)
	}
	if told != len(n.Recipients) {
		return fmt.Errorf("mark told: %d of %d recipients are ours: %w", told, len(n.Recipients), errEpochLost)
	}
	return nil
}

// insert inserts the notice message; its recipient is born waiting.
func (ns *notices) insert(ctx context.Context, conn *pgx.Conn, j *submittal) error {
	var g insert.Group
	g.Add(&j.m, j.rcpts, nil, false)
	if err := g.AddBody(j.m.ID, j.body); err != nil {
		return err
	}
	if err := ns.q.insert(ctx, conn, &g, j.epoch, false); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, sqlDisown, j.m.ID, j.epoch)
	return err
}

func rowsOf(n *Notice) []int32 {
	ns := make([]int32, len(n.Recipients))
	for i := range n.Recipients {
		ns[i] = int32(n.Recipients[i].N)
	}
	return ns
}

// ReleaseNotice gives a notice back, due again after the wait. If the database fails, the
// sweep does it.
func (q *Queue) ReleaseNotice(n *Notice, wait time.Duration) {
	q.giveNoticeBack(n, wait)
	q.inHand.remove(n.Message.ID, len(n.Recipients))
}

// giveNoticeBack is ReleaseNotice for a notice that nobody has in hand yet.
func (q *Queue) giveNoticeBack(n *Notice, wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := q.cfg.WorkPool.Exec(ctx, sqlReleaseNotice, n.Message.ID, rowsOf(n), n.Epoch, max(wait, 0)); err != nil {
		q.log.Warn("queue: cannot give a notice back, the sweep will", "id", n.Message.ID, "error", err)
	}
}
