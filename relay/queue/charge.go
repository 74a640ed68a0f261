package queue

import (
	"cmp"
	"slices"
	"time"

	"postern/internal/pg"
)

// chargeRow is a row of usage_window. Rows are locked in this order by all nodes.
type chargeRow struct {
	scope   ChargeScope
	subject int64
	kind    ChargeKind
	window  int32 // seconds
}

func (c *Charge) row() chargeRow {
	return chargeRow{c.Scope, c.Subject, c.Kind, int32(c.Window / time.Second)}
}

func compareRows(a, b chargeRow) int {
	return cmp.Or(cmp.Compare(a.scope, b.scope), cmp.Compare(a.subject, b.subject), cmp.Compare(a.kind, b.kind), cmp.Compare(a.window, b.window))
}

// charges is what the messages of a group count against, as the columns that the
// function charge_usage takes (migrations/0001_queue.sql).
type charges struct {
	rows []chargeRow // distinct, in order

	scope, kind []int16 // of each row
	subject     []int64
	window      []int32

	of   []*Charge // of each charge
	msg  []int32   // of each charge: its message, from 1
	row  []int32   // its row, from 1
	sum  []int64   // what it adds
	most []int64
}

// fill collects the charges of a group, in the order of its messages.
func (c *charges) fill(jobs []*submittal) {
	*c = charges{rows: c.rows[:0], scope: c.scope[:0], kind: c.kind[:0], subject: c.subject[:0], window: c.window[:0], of: c.of[:0], msg: c.msg[:0], row: c.row[:0], sum: c.sum[:0], most: c.most[:0]}
	for _, j := range jobs {
		for i := range j.m.Charges {
			c.rows = append(c.rows, j.m.Charges[i].row())
		}
	}
	slices.SortFunc(c.rows, compareRows)
	c.rows = slices.Compact(c.rows)
	for _, r := range c.rows {
		c.scope, c.subject = append(c.scope, int16(r.scope)), append(c.subject, r.subject)
		c.kind, c.window = append(c.kind, int16(r.kind)), append(c.window, r.window)
	}
	for n, j := range jobs {
		for i := range j.m.Charges {
			charge := &j.m.Charges[i]
			row, _ := slices.BinarySearchFunc(c.rows, charge.row(), compareRows)
			c.of, c.msg, c.row = append(c.of, charge), append(c.msg, int32(n+1)), append(c.row, int32(row+1))
			c.sum, c.most = append(c.sum, charge.amount(j)), append(c.most, charge.Max)
		}
	}
}

// amount is what a message adds to the charge's window.
func (c *Charge) amount(j *submittal) int64 {
	switch c.Kind {
	case ChargeRecipients:
		return int64(len(j.rcpts))
	case ChargeBytes:
		return j.m.Size
	}
	return 1
}

// arguments adds what charge_usage takes, from scopes on: null where there are no limits.
func (c *charges) arguments(a *pg.Args) {
	add := func(name string, list any) {
		if len(c.rows) == 0 {
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

// NearLimit says that a user or a credential has come to four fifths of a limit. It is
// said once for each window, by one node.
type NearLimit struct {
	Charge
	Used int64
}

// verdict is what the database decided about the messages of a group.
type verdict struct {
	inserted int
	refused  [][16]byte
	charge   []int32 // that refused, from 1
	used     []int64
	retryAt  []*time.Time
	nearRow  []int32 // of limits that are nearly used up, from 1
	nearUsed []int64
	held     [][16]byte
}

// results appends what was decided about each message.
func (v *verdict) results(jobs []*submittal, c *charges, list []result) []result {
	for _, j := range jobs {
		r := result{held: slices.Contains(v.held, [16]byte(j.m.ID))}
		if i := slices.Index(v.refused, [16]byte(j.m.ID)); i >= 0 {
			n := v.charge[i] - 1
			over := &OverLimit{Charge: *c.of[n], Used: v.used[i], Amount: c.sum[n]}
			if v.retryAt[i] != nil {
				over.RetryAt = *v.retryAt[i]
			}
			r.err = over
		}
		list = append(list, r)
	}
	return list
}

// near lists the limits that are nearly used up.
func (v *verdict) near(c *charges) []NearLimit {
	var list []NearLimit
	for i, row := range v.nearRow {
		n := slices.Index(c.row, row)
		list = append(list, NearLimit{*c.of[n], v.nearUsed[i]})
	}
	return list
}
