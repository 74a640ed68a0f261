package smtp

import (
	"maps"
	"strconv"
	"strings"
)

// limits are what a server says that it takes at most (RFC 9422 section 4). 0 is none.
type limits struct {
	mails   int // MAILMAX: MAIL commands in a session
	rcpts   int // RCPTMAX: RCPT commands in a transaction
	domains int // RCPTDOMAINMAX: different domains of recipients in a session
}

// parseLimits reads the parameters of LIMITS. Unknown limits, and values that are none
// of the grammar, are ignored (RFC 9422 section 3.7); of two values the smaller counts.
func parseLimits(params string) (l limits) {
	for _, word := range strings.Fields(params) {
		name, value, _ := strings.Cut(word, "=")
		n := limitValue(value)
		if n == 0 {
			continue
		}
		switch strings.ToUpper(name) {
		case "MAILMAX":
			lower(&l.mails, n)
		case "RCPTMAX":
			lower(&l.rcpts, n)
		case "RCPTDOMAINMAX":
			lower(&l.domains, n)
		}
	}
	return l
}

func lower(limit *int, n int) {
	if *limit == 0 || n < *limit {
		*limit = n
	}
}

// limitValue parses one to six digits without a leading zero, and is 0 for anything else.
func limitValue(s string) int {
	if len(s) == 0 || len(s) > 6 || s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0
	}
	n, _ := strconv.Atoi(s) // these digits are a number
	return n
}

// Exhausted reports that the server takes no more transactions on this connection
// (MAILMAX).
func (c *Client) Exhausted() bool { return c.limits.mails > 0 && c.mails >= c.limits.mails }

// LimitRcpts limits later transactions on this connection to n recipients (n ≥ 1), as if the server
// had announced it (RCPTMAX).
func (c *Client) LimitRcpts(n int) { lower(&c.limits.rcpts, n) }

// Takes is how many of n recipients, at the addresses to, the next transaction names.
func (c *Client) Takes(n int, to func(i int) Address) (named int) {
	met := maps.Clone(c.domains)
	for i := range n {
		if c.admit(to(i), named, met) {
			named++
		}
	}
	return named
}

// admit reports whether the server takes a recipient after those named in the next transaction, and
// adds its domain to those that the server has met on this connection.
func (c *Client) admit(rcpt Address, named int, met map[string]struct{}) bool {
	if c.Exhausted() || c.limits.rcpts > 0 && named >= c.limits.rcpts {
		return false
	}
	if c.limits.domains > 0 {
		domain := rcpt.DomainKey()
		if _, known := met[domain]; !known && len(met) >= c.limits.domains {
			return false
		}
		met[domain] = struct{}{}
	}
	return true
}

// fitLimits withholds the recipients that are beyond the server's limits: they are not
// named to it in this transaction.
func (s *sending) fitLimits() {
	if s.c.limits == (limits{}) {
		return
	}
	named := 0
	for i := range s.replies {
		if !s.isOpen(i) {
			continue
		}
		if !s.c.admit(s.tx.Rcpts[i].To, named, s.c.domains) {
			s.stages[i] = StageHello // without a reply until the end
			continue
		}
		named++
	}
}

// isOpen reports that recipient i has no reply yet and is not withheld.
func (s *sending) isOpen(i int) bool { return s.replies[i].IsZero() && s.stages[i] == "" }

// Withheld reports that recipient i was not named to the server because of a limit that it announces,
// or that LimitRcpts has set. The reply was made up, 452 4.5.3; in another transaction, or over
// another connection, there is room.
func (r *Result) Withheld(i int) bool {
	return i < len(r.Stages) && r.Stages[i] == StageHello && r.Replies[i].Code == 452
}
