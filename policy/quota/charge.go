package quota

import (
	"slices"
	"time"

	"postern/internal/pg"
)

// Charge is what one message counts against limits with windows.
type Charge struct {
	Limits     []Limit
	Recipients int
	Size       int64 // octets
}

// amount is what the message adds to what counts for a limit.
func (c *Charge) amount(of Kind) int64 {
	switch of {
	case Recipients:
		return int64(c.Recipients)
	case Bytes:
		return c.Size
	}
	return 1
}

// Over refuses a message, or a session, that would exceed a limit. It costs nothing.
type Over struct {
	Limit
	Used    int64     // without it, by the database's clock
	Amount  int64     // what it would have added
	RetryAt time.Time // when it fits if nothing else is sent; zero if it never does, and for sessions
}

func (e *Over) Error() string { return "limit exceeded" }

// Near says that four fifths of a limit are used. It is said once for each window, by one
// node.
type Near struct {
	Limit
	Used int64
}

// Charges is what the messages of a group count against: the arguments of the function
// charge_usage (migrations/0003_quota.sql), and its results. It may be used again.
type Charges struct {
	rows []counted // distinct, in order

	scope, subject, kind []string // of each row
	window               []int32

	of   []Limit // of each charge
	msg  []int32 // its message, from 1
	row  []int32 // its row, from 1
	sum  []int64 // what it adds
	most []int64

	refused  []int32 // charges that refused their message, from 1
	used     []int64
	retryAt  []*time.Time
	nearRow  []int32 // of limits that are nearly used up, from 1
	nearUsed []int64
}

// Fill takes the charges of a group, in the order of its messages.
func (c *Charges) Fill(messages []Charge) {
	*c = Charges{rows: c.rows[:0], scope: c.scope[:0], subject: c.subject[:0], kind: c.kind[:0], window: c.window[:0],
		of: c.of[:0], msg: c.msg[:0], row: c.row[:0], sum: c.sum[:0], most: c.most[:0]}
	for i := range messages {
		for _, l := range messages[i].Limits {
			c.rows = append(c.rows, l.counted())
		}
	}
	slices.SortFunc(c.rows, compareCounted)
	c.rows = slices.Compact(c.rows)
	for _, r := range c.rows {
		c.scope, c.subject = append(c.scope, string(r.scope)), append(c.subject, r.subject)
		c.kind, c.window = append(c.kind, string(r.kind)), append(c.window, r.window)
	}
	for n := range messages {
		for _, l := range messages[n].Limits {
			row, _ := slices.BinarySearchFunc(c.rows, l.counted(), compareCounted)
			c.of, c.msg, c.row = append(c.of, l), append(c.msg, int32(n+1)), append(c.row, int32(row+1))
			c.sum, c.most = append(c.sum, messages[n].amount(l.Kind)), append(c.most, l.Max)
		}
	}
}

// None reports that nothing is charged.
func (c *Charges) None() bool { return len(c.rows) == 0 }

// Arguments adds what charge_usage takes, from scopes on: null where there are no limits.
func (c *Charges) Arguments(a *pg.Args) {
	add := func(name string, list any) {
		if c.None() {
			list = nil
		}
		a.Add(name, list)
	}
	add("limit_scope", c.scope)
	add("limit_subject", c.subject)
	add("limit_kind", c.kind)
	add("limit_window", c.window)
	add("charge_message", c.msg)
	add("charge_limit", c.row)
	add("charge_amount", c.sum)
	add("charge_most", c.most)
}

// Results are where the statement's columns about charges go: which charges refused their
// message, the use of their limits and when they would fit; which limits are nearly used
// up, and their use.
func (c *Charges) Results() []any {
	return []any{&c.refused, &c.used, &c.retryAt, &c.nearRow, &c.nearUsed}
}

// Over is what refused a message of the group, by its number from 0; nil if nothing did.
func (c *Charges) Over(message int) *Over {
	for i, n := range c.refused {
		if c.msg[n-1] == int32(message+1) {
			return c.over(n, c.used[i], c.retryAt[i])
		}
	}
	return nil
}

func (c *Charges) over(charge int32, used int64, retryAt *time.Time) *Over {
	over := &Over{Limit: c.of[charge-1], Used: used, Amount: c.sum[charge-1]}
	if retryAt != nil {
		over.RetryAt = *retryAt
	}
	return over
}

// Near lists the limits that are nearly used up.
func (c *Charges) Near() (list []Near) {
	for i, row := range c.nearRow {
		list = append(list, Near{c.of[slices.Index(c.row, row)], c.nearUsed[i]})
	}
	return list
}
