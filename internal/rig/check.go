package rig

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Evidence is what all sides say when the queue is empty again.
type Evidence struct {
	Sent      []Sent
	Permanent []string // 5yz replies to clients that did nothing wrong
	Received  []Received
	History   []Event
	Rows      int // left in the table recipient
	Bodies    int // left in the table body
}

// Tally is how much of it there was, for the log of a test: evidence of nothing
// proves nothing.
type Tally struct {
	Accepted, Refused, NotSent, Unknown int // messages, by what their clients know
	Copies                              int // receptions of (message, recipient)
	Second                              int // of them, copies after the first
	Late                                int // delivered although the client never learned that it was accepted
	Bounces                             int
	Fenced                              int // outcomes that came after their epoch had lost the row
}

// pair is one recipient of one message.
type pair struct{ id, rcpt string }

// checker joins the evidence by message and recipient.
type checker struct {
	Evidence
	sent     map[string]*Sent // by ID
	copies   map[pair]int
	bounces  map[pair]map[string]bool // by the Message-ID of the notice
	unknown  map[pair]int             // attempts whose outcome is recorded as unknown
	flagged  map[pair]bool            // recorded as possible duplicate
	voided   map[pair]bool
	notices  map[string]int // receptions of a notice, by its Message-ID
	problems []string
	tally    Tally
}

// Check compares the evidence by the relay's promises and returns every breach,
// each beginning with the name of the invariant.
func Check(e Evidence) ([]string, Tally) {
	c := &checker{Evidence: e, sent: map[string]*Sent{}, copies: map[pair]int{}, bounces: map[pair]map[string]bool{},
		unknown: map[pair]int{}, flagged: map[pair]bool{}, voided: map[pair]bool{}, notices: map[string]int{}}
	c.join()
	for i := range e.Received {
		c.reception(&e.Received[i])
	}
	for i := range e.Sent {
		c.message(&e.Sent[i])
	}
	c.noticeCopies()
	if e.Rows > 0 || e.Bodies > 0 {
		c.breach("I10", "the queue is not empty: %d recipients, %d chunks of bodies", e.Rows, e.Bodies)
	}
	for _, reply := range e.Permanent {
		c.breach("I13", "a client that did nothing wrong was told %q", reply)
	}
	return c.problems, c.tally
}

// Verify fails the test for every breach and logs the tally.
func (e Evidence) Verify(t testing.TB) Tally {
	t.Helper()
	problems, tally := Check(e)
	t.Logf("%+v", tally)
	for i, problem := range problems {
		if i == 20 {
			t.Errorf("and %d more", len(problems)-i)
			break
		}
		t.Error(problem)
	}
	return tally
}

func (c *checker) breach(invariant, format string, args ...any) {
	c.problems = append(c.problems, invariant+": "+fmt.Sprintf(format, args...))
}

// join indexes what clients and the relay say.
func (c *checker) join() {
	for i := range c.Sent {
		s := &c.Sent[i]
		if c.sent[s.ID] != nil {
			c.breach("rig", "two messages have the name %s", s.ID)
		}
		c.sent[s.ID] = s
	}
	for i := range c.History {
		a := &c.History[i]
		p := pair{loadID(a.MessageID), a.Recipient}
		if a.OutcomeUnknown {
			c.unknown[p]++
		}
		c.flagged[p] = c.flagged[p] || a.PossibleDuplicate
		c.voided[p] = c.voided[p] || a.Result == "void"
		if a.Fenced {
			c.tally.Fenced++
		}
	}
}

// loadID is the name of a message by its Message-ID field; a notice has its
// Message-ID for a name.
func loadID(messageID string) string {
	id, ok := strings.CutSuffix(strings.TrimPrefix(messageID, "<"), "@"+Domain+">")
	if !ok {
		return messageID
	}
	return id
}

// reception judges one message that came out.
func (c *checker) reception(m *Received) {
	if m.Bounce != nil {
		c.notice(m)
		return
	}
	s := c.sent[m.ID]
	if s == nil {
		c.breach("I6", "the sink got a message that nobody sent: %q from %s", m.ID, m.From)
		return
	}
	c.integrity(m, s)
	if m.From != s.From {
		c.breach("I7", "%s: came from <%s>, was sent from <%s>", m.ID, m.From, s.From)
	}
	for i, to := range m.To {
		if !slices.Contains(s.To, to) || slices.Contains(m.To[:i], to) {
			c.breach("I7", "%s: came for %v, was sent to %v", m.ID, m.To, s.To)
		}
		c.copies[pair{m.ID, to}]++
		c.tally.Copies++
	}
}

// head is all that the relay may put in front of a message: its trace field, and
// Date where there was none.
var head = regexp.MustCompile(`\AReceived: from [^\r\n]+\r\n\tby [a-z.-]+ with ESMTPSA id ([0-9a-f-]{36})\r\n\t\(TLS[^\r\n]+\)` +
	`(?:\r\n\tfor <([^<>\r\n]+)>)?;\r\n\t[^\r\n]+\r\n(Date: [^\r\n]+\r\n)?\z`)

// integrity: what came out is what went in behind the fields that are ours.
func (c *checker) integrity(m *Received, s *Sent) {
	if m.Sum != s.Sum {
		c.breach("I6", "%s: its text was altered", m.ID)
	}
	found := head.FindStringSubmatch(m.Head)
	switch {
	case found == nil:
		c.breach("I6", "%s: foreign text in front: %q", m.ID, m.Head)
		return
	case (found[3] == "") != s.Date:
		c.breach("I6", "%s: Date is wrong, the client's own: %t, in front: %q", m.ID, s.Date, found[3])
	case s.Fate == Accepted && !strings.Contains(s.Reply, found[1]):
		c.breach("I6", "%s: came as %s, was accepted with %q", m.ID, found[1], s.Reply)
	}
	if found[2] != "" && (len(s.To) != 1 || s.To[0] != found[2]) {
		c.breach("I7", "%s: the trace field tells of %s, it was sent to %v", m.ID, found[2], s.To)
	}
}

// notice judges one bounce that came out.
func (c *checker) notice(m *Received) {
	b := m.Bounce
	c.notices[b.MessageID]++
	s := c.sent[b.About]
	if s == nil || !b.Valid || len(b.Failed) == 0 {
		c.breach("I11", "a notice %s about %q that says nothing right: failed %v, valid %t", b.MessageID, b.About, b.Failed, b.Valid)
		return
	}
	if len(m.To) != 1 || m.To[0] != s.From {
		c.breach("I11", "%s: its notice went to %v, not to the sender <%s>", s.ID, m.To, s.From)
	}
	for _, rcpt := range b.Failed {
		p := pair{s.ID, rcpt}
		if !slices.Contains(s.To, rcpt) {
			c.breach("I11", "%s: a notice about %s, who was no recipient", s.ID, rcpt)
		}
		if c.bounces[p] == nil {
			c.bounces[p] = map[string]bool{}
		}
		c.bounces[p][b.MessageID] = true
	}
	c.tally.Bounces++
}

// noticeCopies: a notice is a message, whose second copies are flagged too.
func (c *checker) noticeCopies() {
	for i := range c.Received {
		m := &c.Received[i]
		if m.Bounce == nil || len(m.To) != 1 || c.notices[m.Bounce.MessageID] < 2 {
			continue
		}
		p := pair{m.Bounce.MessageID, m.To[0]}
		c.duplicates(p, c.notices[p.id])
		delete(c.notices, p.id)
	}
}

// message judges one message that was submitted.
func (c *checker) message(s *Sent) {
	switch s.Fate {
	case Accepted:
		c.tally.Accepted++
	case Refused:
		c.tally.Refused++
	case NotSent:
		c.tally.NotSent++
	case Unknown:
		c.tally.Unknown++
	}
	came := false
	for _, to := range s.To {
		p := pair{s.ID, to}
		copies, bounces := c.copies[p], len(c.bounces[p])
		came = came || copies+bounces > 0
		switch {
		case s.Fate == Accepted && copies+bounces == 0:
			c.breach("I1", "%s: lost for %s; accepted at %s by %s with %q", s.ID, to, s.DotAt.Format("15:04:05.000"), s.Node, s.Reply)
		case (s.Fate == Refused || s.Fate == NotSent) && copies+bounces > 0 && !c.voided[p]:
			c.breach("I2", "%s: delivered to %s, but the client was refused: %s, %q", s.ID, to, s.Fate, s.Reply)
		}
		if bounces > 1 {
			c.breach("I11", "%s: %d notices about %s", s.ID, bounces, to)
		}
		if copies > 0 && bounces > 0 && c.unknown[p] == 0 {
			c.breach("I5", "%s: both delivered to %s and bounced", s.ID, to)
		}
		c.duplicates(p, copies)
	}
	if came && s.Fate == Unknown {
		c.tally.Late++
	}
}

// duplicates: each copy after the first follows an attempt whose outcome the relay
// has recorded as unknown.
func (c *checker) duplicates(p pair, copies int) {
	if copies < 2 {
		return
	}
	c.tally.Second += copies - 1
	if copies-1 > c.unknown[p] || !c.flagged[p] {
		c.breach("I3", "%s: %d copies for %s, but %d attempts of unknown outcome, flagged: %t", p.id, copies, p.rcpt, c.unknown[p], c.flagged[p])
	}
}
