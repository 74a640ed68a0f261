package submission

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/policy/quota"
	"postern/relay/queue"
	"postern/relay/smtp"
)

var someLimits = []quota.Limit{
	{Kind: quota.Messages, Window: time.Minute, Max: 100, Scope: quota.User, Subject: "7"},
	{Kind: quota.Messages, Window: time.Minute, Max: 200, Scope: quota.Default, Subject: "7"},
	{Kind: quota.Bytes, Window: 24 * time.Hour, Max: 5000, Scope: quota.Default, Subject: "7"},
	{Kind: quota.Recipients, Window: time.Hour, Max: 50, Scope: quota.Credential, Subject: "9"},
}

func TestCharges(t *testing.T) {
	t.Parallel()
	ts := startAs(t, nil, someLimits)
	c := ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(250)
	want := []quota.Limit{someLimits[0], someLimits[2], someLimits[3]}
	if diff := cmp.Diff(want, ts.queue.all()[0].Charges); diff != "" {
		t.Error(diff)
	}
}

// What the queue refuses for a limit is told in the words of the policy, and not
// asked of the queue again before it may fit.
func TestOverLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		charge       int // of TestCharges
		amount       int64
		rule         string
		again, still string // MAIL and RCPT that are refused early, and that are not
	}{
		{0, 1, "limit messages 100/m user", "MAIL FROM:<alice@example.com>", ""},
		{1, 300, "limit bytes 5KB/d default", "MAIL FROM:<alice@example.com> SIZE=300", "MAIL FROM:<alice@example.com> SIZE=299"},
		{2, 1, "limit recipients 50/h credential", "MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>", ""},
		{2, 2, "limit recipients 50/h credential", "MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nRCPT TO:<b2@example.net>", "MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nRCPT TO:<bob@example.net>"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.rule, tt.amount), func(t *testing.T) {
			t.Parallel()
			ts := startAs(t, nil, someLimits)
			ts.queue.refuse = func(n int, m queue.Message) error {
				over := &quota.Over{Limit: m.Charges[tt.charge], Used: 49, Amount: tt.amount, RetryAt: time.Now().Add(time.Hour)}
				return &smtp.Error{Reply: smtp.Temporary(452, 7, 1, "x"), Err: over}
			}
			c := ts.login(t)
			c.envelope()
			c.send(smallMessage + ".\r\n")
			if text := c.expect(452); !strings.HasPrefix(text, "4.7.1 Limit of ") || !strings.Contains(text, " reached (used 49); try again after 20") {
				t.Errorf("reply %q", text)
			}
			lines := strings.Split(tt.again, "\r\n")
			for i, line := range lines {
				if i < len(lines)-1 {
					c.cmd(250, line)
				} else if text := c.cmd(452, line); !strings.HasPrefix(text, "4.7.1 Limit of ") {
					t.Errorf("reply %q", text)
				}
			}
			if n := ts.log.Count(`"rule":"` + tt.rule + `"`); n != 2 {
				t.Errorf("the log has the rule %d times: %s", n, ts.log.String())
			}
			if ts.log.Count(`"level":"WARN"`) != 0 {
				t.Errorf("a limit is no trouble of ours: %s", ts.log.String())
			}
			if tt.still != "" {
				c.cmd(250, "RSET")
				for line := range strings.SplitSeq(tt.still, "\r\n") {
					c.cmd(250, line)
				}
			}
			if ts.queue.calls != 1 {
				t.Errorf("the queue was asked %d times", ts.queue.calls)
			}
		})
	}
}

// What can never fit is not remembered: the next message may be another.
func TestOverLimitForEver(t *testing.T) {
	t.Parallel()
	ts := startAs(t, nil, someLimits)
	ts.queue.refuse = func(n int, m queue.Message) error {
		if n == 0 {
			return &quota.Over{Limit: m.Charges[1], Amount: 5001}
		}
		return nil
	}
	c := ts.login(t)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(452)
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(250)
}

// A user that may send nothing hears so at MAIL.
func TestLimitOfNothing(t *testing.T) {
	t.Parallel()
	for code, l := range map[int]quota.Limit{
		452: {Kind: quota.Messages, Window: time.Minute, Scope: quota.User},
		552: {Kind: quota.Size, Scope: quota.User},
	} {
		c := startAs(t, nil, []quota.Limit{l}).login(t)
		c.cmd(code, "MAIL FROM:<alice@example.com>")
	}
}

func TestSpent(t *testing.T) {
	t.Parallel()
	now := time.Now()
	charge := quota.Limit{Scope: quota.User, Subject: "1", Kind: quota.Bytes, Window: time.Hour, Max: 100}
	over := func(c quota.Limit, in time.Duration) *quota.Over {
		// Without a monotonic reading, as from the database.
		return &quota.Over{Limit: c, Used: 90, Amount: 20, RetryAt: now.Add(in).Round(0)}
	}
	var sp spent
	if sp.refuses(charge, 20, now) != nil {
		t.Error("refused by nothing")
	}
	sp.note(over(charge, 10*time.Second), now)
	for _, tt := range []struct {
		change func(*quota.Limit)
		amount int64
		in     time.Duration
		want   bool
	}{
		{nil, 20, 0, true},
		{nil, 21, 9 * time.Second, true},
		{nil, 19, 0, false},
		{func(c *quota.Limit) { c.Max = 101 }, 20, 0, false},
		{func(c *quota.Limit) { c.Window = time.Minute }, 20, 0, false},
		{func(c *quota.Limit) { c.Kind = quota.Messages }, 20, 0, false},
		{func(c *quota.Limit) { c.Subject = "2" }, 20, 0, false},
		{func(c *quota.Limit) { c.Scope = quota.Credential }, 20, 0, false},
		{nil, 20, 10 * time.Second, false},
		{nil, 20, 0, false}, // forgotten
	} {
		c := charge
		if tt.change != nil {
			tt.change(&c)
		}
		if got := sp.refuses(c, tt.amount, now.Add(tt.in)); (got != nil) != tt.want {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
	if n := sp.n.Load(); n != 0 {
		t.Errorf("%d entries are counted, there is none", n)
	}
	sp.note(over(charge, 0), now)
	sp.note(over(charge, -time.Second), now)
	if sp.refuses(charge, 20, now) != nil {
		t.Error("refused by what is over")
	}
	sp.note(over(charge, time.Hour), now)
	if sp.refuses(charge, 20, now.Add(spentFor-1)) == nil || sp.refuses(charge, 20, now.Add(spentFor)) != nil {
		t.Error("the database is not asked again after a minute")
	}
}

func TestSpentIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var sp spent
	for i := range 3 * maxSpent {
		if i == maxSpent {
			now = now.Add(time.Second) // the first are over
		}
		c := quota.Limit{Scope: quota.User, Subject: quota.ID(int64(i)), Kind: quota.Messages, Window: time.Hour, Max: 1}
		sp.note(&quota.Over{Limit: c, Used: 1, Amount: 1, RetryAt: now.Add(time.Second)}, now)
		if sp.refuses(c, 1, now) == nil {
			t.Fatalf("the newest, %d, is forgotten", i)
		}
	}
	if len(sp.by) > maxSpent || sp.n.Load() != int64(len(sp.by)) {
		t.Errorf("%d entries, counted as %d", len(sp.by), sp.n.Load())
	}
}

// TestL2AllPutOff: a client that pipelines and has said DATA hears that its recipients were
// refused for now, when one was. When none was, the message is refused for good.
func TestL2AllPutOff(t *testing.T) {
	t.Parallel()
	ts := startAs(t, nil, someLimits)
	ts.queue.refuse = func(n int, m queue.Message) error {
		over := &quota.Over{Limit: m.Charges[2], Used: 49, Amount: 1, RetryAt: time.Now().Add(time.Hour)}
		return &smtp.Error{Reply: smtp.Temporary(452, 7, 1, "x"), Err: over}
	}
	c := ts.login(t)
	const mail, data = "MAIL FROM:<alice@example.com>\r\n", "DATA\r\n"
	c.send(mail + "RCPT TO:<bad address>\r\n" + data)
	for _, code := range []int{250, 501, 554} {
		c.expect(code)
	}
	c.cmd(250, "RSET")
	c.envelope() // from here on recipients are over the limit
	c.send(smallMessage + ".\r\n")
	c.expect(452)
	for _, rcpts := range []string{"RCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\n", "RCPT TO:<b@example.net>\r\nRCPT TO:<bad address>\r\n"} {
		c.send(mail + rcpts + data)
		c.expect(250)
		c.expect(452)
		if code, text, err := c.reply(); code != 452 && code != 501 {
			t.Errorf("the second RCPT: %d %s, %v", code, text, err)
		}
		c.expect(451)
		c.cmd(250, "RSET")
	}
	c.send(mail + "RCPT TO:<bad address>\r\n" + data) // nothing is left of the transaction before
	for _, code := range []int{250, 501, 554} {
		c.expect(code)
	}
}
