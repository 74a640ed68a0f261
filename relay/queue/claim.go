package queue

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/smtp"
)

const (
	dueDomains     = 50_000 // domains remembered as due
	dueRows        = 1_000  // rows read by one look
	lookRuns       = 5      // looks of one claim, as long as they take less than
	lookTime       = 10 * time.Millisecond
	claimDomains   = 256              // domains that one claim asks for
	leastPerDomain = 10               // rows that each of them may give, where the claim has not enough for all
	claimSibling   = 1000             // recipients that one claim takes as siblings of others
	dueOverlap     = 10 * time.Second // how far a look goes back: rows commit in no order
	dueResync      = time.Minute      // how often a look starts from the beginning
)

// claims takes due rows for this node.
//
// In a queue of a million rows most are not due, or are for destinations that take no
// more now; a claim must not read past all of them each time. So it has two steps. The
// look reads the due index in order of time from where the last look ended, each row
// about once, and remembers the domains it met. The claim takes the oldest rows of the
// wanted domains in turn, each by its own index range. docs/decisions/queue-claim.md has the figures.
type claims struct {
	q *Queue
	s *pg.Dedicated

	mu     sync.Mutex // one claim at a time; guards the fields below and s
	due    []string   // domains in turn
	isDue  map[string]bool
	cursor time.Time // of the last look, by the database's clock
	after  string    // the domain at the cursor
	behind bool      // the last look did not reach the end
	resync time.Time // when a look starts from the beginning again

	next struct {
		sync.Mutex
		at time.Time // when the next row falls due, by our clock; zero: unknown
	}
}

func newClaims(q *Queue) *claims {
	return &claims{q: q, s: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork), isDue: make(map[string]bool)}
}

func (c *claims) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.Close()
}

// nextDue is how long Wait may sleep.
func (c *claims) nextDue(most time.Duration) time.Duration {
	c.next.Lock()
	defer c.next.Unlock()
	if c.next.at.IsZero() {
		return most
	}
	return min(max(time.Until(c.next.at), time.Millisecond), most)
}

// Claim takes due recipients for this node's epoch. When it returns, only the rows' owner
// has changed; no lock or connection is kept. Small bodies come in memory, larger ones are
// read from the database as they are sent. Recipients of one message come together as far
// as they are due and their destinations are wanted.
func (q *Queue) Claim(ctx context.Context, want ClaimRequest) ([]*Delivery, error) {
	epoch := q.epochs.valid()
	if epoch == 0 {
		return nil, fmt.Errorf("claim: %w", errEpochLost)
	}
	if want.Messages <= 0 {
		return nil, nil
	}
	c := q.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	began := time.Now()
	conn, err := c.s.Get(ctx)
	if err != nil {
		q.claimed(nil, began, err)
		return nil, fmt.Errorf("claim: %w", err)
	}
	var deliveries []*Delivery
	err = c.s.Panicked(q.cfg.Guard.Try("queue: claiming", func() (err error) {
		deliveries, err = c.claim(ctx, conn, want, epoch)
		return err
	}))
	err = c.s.End(err)
	q.claimed(deliveries, began, err)
	if err != nil {
		q.giveBack(deliveries)
		q.epochs.suspectIfDown(err)
		return nil, fmt.Errorf("claim: %w", err)
	}
	for _, d := range deliveries {
		q.inHand.add(d.Message.ID, len(d.Recipients))
	}
	return deliveries, nil
}

func (c *claims) claim(ctx context.Context, conn *pgx.Conn, want ClaimRequest, epoch int64) ([]*Delivery, error) {
	for _, ways := range want.Lines {
		if _, err := conn.Exec(ctx, sqlInOrder, ways, want.Messages); err != nil {
			return nil, err
		}
	}
	if err := c.lookOn(ctx, conn); err != nil {
		return nil, err
	}
	domains := c.choose(want)
	if len(domains) == 0 {
		return nil, nil
	}
	// Behind many domains may be one upstream, which should get the oldest messages of all.
	want.PerDestination = min(want.PerDestination, max(want.Messages/len(domains), leastPerDomain))
	var rows []claimedRow
	var again []string
	err := halved(domains, func(some []string) error {
		if len(rows) >= want.Messages {
			return nil
		}
		more, err := c.take(ctx, conn, want, some, epoch)
		rows = append(rows, more...)
		return err
	}, func(domain string, err error) {
		more, moved := c.takeAround(ctx, conn, want, domain, epoch)
		if rows = append(rows, more...); moved {
			again = append(again, domain)
			return
		}
		c.q.log.Error("queue: mail for a domain waits: the database fails at its rows", "domain", domain, "error", err)
	})
	if err != nil && len(rows) == 0 {
		return nil, err
	}
	c.forget(domains, rows, want)
	c.remember(again)
	return c.deliveries(ctx, conn, rows, epoch)
}

var (
	sqlLook     = texts.Bind("look", "cursor", "after", "rows")
	sqlInOrder  = texts.Bind("in_order", "ways", "rows")
	sqlClaim    = texts.Bind("claim", "domains", "per_destination", "messages", "busy", "epoch", "strict", "siblings", "busy_users")
	sqlFirstDue = texts.Bind("first_due", "domain", "busy_users")
)

// lookOn looks as far as one claim has the time for.
func (c *claims) lookOn(ctx context.Context, conn *pgx.Conn) error {
	began := time.Now()
	for range lookRuns {
		if err := c.look(ctx, conn); err != nil {
			return err
		}
		if !c.behind || time.Since(began) > lookTime {
			return nil
		}
	}
	return nil
}

func (c *claims) look(ctx context.Context, conn *pgx.Conn) error {
	if len(c.due) >= dueDomains {
		return nil
	}
	// A walk over very many rows reaches the end first, or the last rows would wait for ever.
	if !c.behind && time.Now().After(c.resync) {
		c.cursor, c.after, c.resync = time.Time{}, "", time.Now().Add(dueResync)
	}
	var domains []string
	var last *time.Time
	var after *string
	var now time.Time
	var count int
	var next *float64
	if err := conn.QueryRow(ctx, sqlLook, c.cursor, c.after, dueRows).Scan(&domains, &last, &after, &count, &now, &next); err != nil {
		return fmt.Errorf("look: %w", err)
	}
	c.remember(domains)
	c.behind = count == dueRows
	if !c.behind {
		c.cursor, c.after = now.Add(-dueOverlap), ""
	} else {
		c.cursor, c.after = *last, *after
	}
	c.next.Lock()
	defer c.next.Unlock()
	c.next.at = time.Time{}
	switch {
	case c.behind:
		c.next.at = time.Now()
	case next != nil:
		c.next.at = time.Now().Add(time.Duration(*next * float64(time.Second)))
	}
	return nil
}

// remember notes that domains have something due.
func (c *claims) remember(domains []string) {
	for _, domain := range domains {
		if !c.isDue[domain] {
			c.isDue[domain] = true
			c.due = append(c.due, domain)
		}
	}
}

// choose takes the next domains in turn and moves them to the end of the line.
func (c *claims) choose(want ClaimRequest) []string {
	busy := make(map[string]bool, len(want.Busy))
	for _, domain := range want.Busy {
		busy[domain] = true
	}
	limit := min(claimDomains, max(want.Messages, 16))
	var chosen, others []string
	i := 0
	for ; i < len(c.due) && len(chosen) < limit; i++ {
		if busy[c.due[i]] {
			others = append(others, c.due[i])
		} else {
			chosen = append(chosen, c.due[i])
		}
	}
	c.due = append(append(slices.Clone(c.due[i:]), others...), chosen...)
	return chosen
}

// forget drops the domains that gave fewer rows than asked for. Where the limit of messages cut
// them short, those that gave none come first in the next claim instead.
func (c *claims) forget(domains []string, rows []claimedRow, want ClaimRequest) {
	count := make(map[string]int)
	for i := range rows {
		count[rows[i].key]++
	}
	if len(rows) >= want.Messages {
		var gave, none []string
		for _, domain := range domains {
			if count[domain] > 0 {
				gave = append(gave, domain)
			} else {
				none = append(none, domain)
			}
		}
		c.due = slices.Concat(none, c.due[:len(c.due)-len(domains)], gave) // choose has put them at the end
		return
	}
	drop := make(map[string]bool)
	for _, domain := range domains {
		if count[domain] < max(want.PerDestination, 1) {
			drop[domain] = true
			delete(c.isDue, domain)
		}
	}
	c.due = slices.DeleteFunc(c.due, func(domain string) bool { return drop[domain] })
}

type claimedRow struct {
	id  ID
	key string
	r   Recipient
	bad string // why it cannot be sent
}

// takeAround claims from a domain in which one row makes the claim fail: the rows before it,
// or none if it is the first, which is then set aside. It reports whether either was done.
func (c *claims) takeAround(ctx context.Context, conn *pgx.Conn, want ClaimRequest, domain string, epoch int64) ([]claimedRow, bool) {
	for want.alone = true; ; want.PerDestination /= 2 {
		rows, err := c.take(ctx, conn, want, []string{domain}, epoch)
		switch {
		case !pg.OfTheRow(err):
			return rows, err == nil
		case want.PerDestination > 1:
			continue
		}
		var id ID
		var n int
		if conn.QueryRow(ctx, sqlFirstDue, domain, append([]int64{}, want.BusyUsers...)).Scan(&id, &n) != nil {
			return nil, false
		}
		c.q.setAside(id, n, 0, ofRows(err))
		return nil, true
	}
}

func (c *claims) take(ctx context.Context, conn *pgx.Conn, want ClaimRequest, domains []string, epoch int64) ([]claimedRow, error) {
	busy, users := append([]string{}, want.Busy...), append([]int64{}, want.BusyUsers...) // not null
	siblings := claimSibling
	if want.alone {
		siblings = 0
	}
	result, err := conn.Query(ctx, sqlClaim, domains, max(want.PerDestination, 1), want.Messages, busy, epoch, c.q.cfg.StrictGate, siblings, users)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(result, func(row pgx.CollectableRow) (claimedRow, error) {
		var c claimedRow
		var notify int16
		var left *float64
		r := &c.r
		err := row.Scan(&c.id, &r.N, &c.key, &r.Address.Local, &r.Address.Domain, &notify, &r.ORcptType, &r.ORcpt, &r.Attempts,
			&r.PossibleDuplicate, &r.DelayNoticed, &left, &r.LastCode, &r.LastMidText, &r.StaysWith, &r.WaitsFor, &r.Suppressed)
		r.Notify = smtp.Notify(notify)
		switch c.bad = faultOf(r.Address, r.ORcptType, r.ORcpt); {
		case left == nil:
			c.bad = "the end of its lifetime is not a time"
		default:
			r.Expires = spanOf(*left)
		}
		return c, err
	})
}

// deliveries joins rows to deliveries in the order of their ids, which is that of
// their acceptance. Expired recipients become failures here. Nobody has the rows in
// hand yet: if this panics, the sweep takes them back.
func (c *claims) deliveries(ctx context.Context, conn *pgx.Conn, rows []claimedRow, epoch int64) ([]*Delivery, error) {
	slices.SortFunc(rows, func(a, b claimedRow) int {
		if d := slices.Compare(a.id[:], b.id[:]); d != 0 {
			return d
		}
		return a.r.N - b.r.N
	})
	var list []*Delivery
	now := time.Now()
	for i := range rows {
		row := &rows[i]
		if row.bad != "" {
			c.q.setAside(row.id, row.r.N, epoch, row.bad)
			continue
		}
		if row.r.Expires <= 0 {
			c.q.end(ending{Outcome: Outcome{Message: row.id, N: row.r.N, Recipient: row.r.Address, Epoch: epoch,
				Result: Failed, Reply: expiredReply(c.q.times.Load().Lifetime), At: now}, expired: true})
			continue
		}
		if len(list) == 0 || list[len(list)-1].Message.ID != row.id {
			list = append(list, &Delivery{Message: Message{ID: row.id}, Epoch: epoch})
		}
		d := list[len(list)-1]
		d.Recipients = append(d.Recipients, row.r)
	}
	found, err := c.q.load(ctx, conn, ids(list))
	if err != nil {
		c.q.giveBack(list)
		return nil, err
	}
	complete := list[:0]
	for _, d := range list {
		m := found[d.Message.ID]
		if why := m.fault(); why != "" {
			for i := range d.Recipients {
				c.q.setAside(d.Message.ID, d.Recipients[i].N, epoch, why)
			}
			continue
		}
		d.Message, d.Body = m.Message, m.body
		complete = append(complete, d)
	}
	return complete, nil
}

// giveBack releases claimed rows that could not be handed over.
func (q *Queue) giveBack(list []*Delivery) {
	for _, d := range list {
		for i := range d.Recipients {
			q.end(d.released(d.Recipients[i].N, time.Second))
		}
	}
}

func ids(list []*Delivery) [][16]byte {
	out := make([][16]byte, len(list))
	for i, d := range list {
		out[i] = d.Message.ID
	}
	return out
}
