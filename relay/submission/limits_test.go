package submission

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"postern/auth"
	"postern/policy/quota"
)

// TestA8EndlessLine sends a line that does not end, as a command, in AUTH, and as
// message data. The server reads no further than its bounds.
func TestA8EndlessLine(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.MessageSize = 1 << 20 })
	stream := func(c *client) int64 {
		n, _ := io.Copy(c.conn, io.LimitReader(repeat("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), 64<<20))
		return n
	}
	for name, begin := range map[string]func(c *client){
		"command": func(c *client) {},
		"auth":    func(c *client) { c.cmd(250, "EHLO client.test"); c.cmd(334, "AUTH PLAIN") },
		"data": func(c *client) {
			c.cmd(250, "EHLO client.test")
			c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
			c.envelope()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := ts.dialTLS(t)
			begin(c)
			if n := stream(c); n >= 64<<20 {
				t.Errorf("all of %d octets were taken", n)
			}
		})
	}
}

// TestA8Commands: commands that lead to no message are bounded, whichever they are.
func TestA8Commands(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Commands = 200 })
	for _, cmd := range []string{"NOOP", "RSET", "EHLO client.test", "VRFY x", "HELP"} {
		t.Run(cmd, func(t *testing.T) {
			t.Parallel()
			c := ts.login(t)
			go func() { _, _ = io.Copy(c.conn, io.LimitReader(repeat(cmd+"\r\n"), 1<<20)) }() // it is cut
			n := 0
			for {
				code, _, err := c.reply()
				if err != nil {
					t.Fatalf("after %d replies: %v", n, err)
				}
				if code == 421 {
					break
				}
				n++
			}
			if n > 200 {
				t.Errorf("%d commands were answered", n)
			}
		})
	}
}

// TestA8CommandsCountAnew: what leads to messages is not bounded.
func TestA8CommandsCountAnew(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Commands = 10 })
	c := ts.login(t)
	for range 20 {
		c.envelope()
		c.send(smallMessage + ".\r\n")
		c.expect(250)
	}
}

// TestA8AcceptedRecipientsAreNoCommands: they have a limit of their own.
func TestA8AcceptedRecipientsAreNoCommands(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Commands, cfg.Limits.Recipients = 10, 50 })
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	for i := range 50 {
		c.cmd(250, fmt.Sprintf("RCPT TO:<b%d@example.net>", i))
	}
	c.cmd(354, "DATA")
	c.send(smallMessage + ".\r\n")
	c.expect(250)
}

// TestA8Recipients: a million of them get no further than the limits: those beyond the
// hundred are only for now, and it is the number of commands that ends them.
func TestA8Recipients(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Commands, cfg.Limits.Recipients = 1000, 100 })
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	// The client stays 500 commands ahead: with more on their way to a server that has
	// hung up, its replies would be lost in a reset.
	ahead := make(chan struct{}, 500)
	go func() {
		for i := range 1_000_000 {
			select {
			case ahead <- struct{}{}:
			case <-t.Context().Done():
				return
			}
			if _, err := fmt.Fprintf(c.conn, "RCPT TO:<b%d@example.net>\r\n", i); err != nil {
				return // it is cut
			}
		}
	}()
	codes := map[int]int{}
	for {
		code, _, err := c.reply()
		if err != nil {
			t.Fatalf("%v, %v", codes, err)
		}
		select {
		case <-ahead:
		default: // a reply to nothing: 421
		}
		codes[code]++
		if code == 421 {
			break
		}
	}
	if codes[250] != 100 || codes[452] != 1000-3 { // behind EHLO, AUTH and MAIL
		t.Errorf("replies: %v", codes)
	}
}

// TestA8MessageSize: one octet under, at and over the limit; for the server's and
// for the user's own.
func TestA8MessageSize(t *testing.T) {
	t.Parallel()
	for _, user := range []int64{0, 50_000} {
		ts := startServer(t, func(cfg *Config) { cfg.Limits.MessageSize = 70_000 })
		limit := 70_000
		if user > 0 {
			ts.verifier.id = auth.Identity{Limits: []quota.Limit{{Kind: quota.Size, Max: user, Scope: quota.User}}}
			limit = int(user)
		}
		c := ts.login(t)
		for d, want := range map[int]int{-1: 250, 0: 250, 1: 552, 20_000: 552} {
			c.cmd(250, "MAIL FROM:<alice@example.com> SIZE=1")
			c.cmd(250, "RCPT TO:<bob@example.net>")
			c.cmd(354, "DATA")
			c.send(sized(limit+d) + ".\r\n")
			c.expect(want)
			c.cmd(250, "NOOP")
		}
	}
}

// sized makes a message of n octets.
func sized(n int) string {
	const head = "From: alice@example.com\r\n\r\n"
	lines := strings.Repeat(strings.Repeat("x", 98)+"\r\n", (n-len(head))/100)
	rest := n - len(head) - len(lines)
	switch {
	case rest == 1:
		lines, rest = lines[:len(lines)-100]+strings.Repeat("x", 99)+"\r\n", 0
	case rest >= 2:
		lines += strings.Repeat("x", rest-2) + "\r\n"
	}
	return head + lines
}

func TestSized(t *testing.T) {
	t.Parallel()
	for n := 200; n < 500; n++ {
		if got := len(sized(n)); got != n {
			t.Errorf("sized(%d) has %d octets", n, got)
		}
	}
}

// TestA8DotStuffingIsNotCounted: the size is that of the message, not of what was
// sent for it.
func TestA8DotStuffingIsNotCounted(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.MessageSize = 3000 })
	c := ts.login(t)
	c.envelope()
	c.send("From: alice@example.com\r\n\r\n" + strings.Repeat("..\r\n", 900) + ".\r\n") // 2,727 octets, sent as 3,627
	c.expect(250)
}

// TestA8FarTooLarge: a client that goes on for ever is cut off.
func TestA8FarTooLarge(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.MessageSize = 10_000 })
	c := ts.login(t)
	c.envelope()
	sent := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(c.conn, io.LimitReader(repeat(strings.Repeat("x", 98)+"\r\n"), 256<<20))
		sent <- n
	}()
	c.expect(552)
	c.expectClosed()
	if n := <-sent; n > maxSkip+(32<<20) {
		t.Errorf("%d octets were taken", n)
	}
}

// TestA8Headers: fields without end, one field without end, odd names.
func TestA8Headers(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	for name, m := range map[string]struct {
		text string
		code int
	}{
		"many fields": {strings.Repeat("X: y\r\n", 100_000), 5},
		"one field":   {"X: y\r\n" + strings.Repeat(" "+strings.Repeat("z", 98)+"\r\n", 10_000), 5},
		"odd names":   {"From: alice@example.com\r\n__proto__: x\r\nconstructor: x\r\n", 2},
		"long name":   {"From: alice@example.com\r\n" + strings.Repeat("n", 60_000) + ": x\r\n", 2},
	} {
		c.envelope()
		c.send(m.text + "\r\ntext\r\n.\r\n")
		if code, text, err := c.reply(); err != nil || code/100 != m.code {
			t.Errorf("%s: %d %s %v", name, code, text, err)
		}
		c.cmd(250, "NOOP")
	}
}

// TestA8MemoryBudget: many concurrent sessions send more than there is room for. Some
// hear 452, none is hurt, and the budgets are never exceeded.
func TestA8MemoryBudget(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) {
		cfg.Limits.Memory, cfg.Limits.TempFiles, cfg.Limits.MemoryBody = 2<<20, 4<<20, 512<<10
		cfg.Handoff = nil
	})
	ts.queue.discard = true
	codes, mu := map[int]int{}, sync.Mutex{}
	count := func(code int) {
		mu.Lock()
		codes[code]++
		mu.Unlock()
	}
	var all sync.WaitGroup
	for i := range 40 {
		size := 300 << 10
		if i%4 == 0 {
			size = 900 << 10
		}
		all.Go(func() {
			c := ts.login(t)
			text := sized(size)
			c.send("MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\n")
			code, _, _ := c.reply()
			c.reply()
			if code == 250 {
				c.send("DATA\r\n")
				c.reply()
				for len(text) > 0 { // so that all hold some
					n := min(len(text), 30_000)
					c.send(text[:n])
					text = text[n:]
					if st := ts.Stats(); st.Memory > 2<<20+40*256<<10 || st.TempFiles > 4<<20+10*256<<10 {
						t.Errorf("over budget: %+v", st)
					}
				}
				c.send(".\r\n")
				code, _, _ = c.reply()
			}
			count(code)
			c.cmd(250, "RSET")
		})
	}
	all.Wait()
	if codes[250] == 0 || codes[250]+codes[452] != 40 {
		t.Errorf("replies: %v", codes)
	}
	t.Logf("replies: %v", codes)
	if st := ts.Stats(); st.Memory != 0 || st.TempFiles != 0 {
		t.Errorf("left: %+v", st)
	}
}

// TestA8RoomAtMail: without room MAIL is refused already, and taken again later.
func TestA8RoomAtMail(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Memory = 200 << 10 })
	ts.handoff.room = 100
	c := ts.login(t)
	c.envelope()
	c.send(sized(60_000) + ".\r\n")
	c.expect(250)
	c.envelope()
	c.send(sized(6_000) + ".\r\n")
	c.expect(250)
	c.cmd(452, "MAIL FROM:<alice@example.com> SIZE=90000")
	c.cmd(250, "MAIL FROM:<alice@example.com> SIZE=9000")
	c.cmd(250, "RSET")
	c.envelope()
	c.send(sized(6_000) + ".\r\n")
	c.expect(250)
	c.envelope()
	c.send(sized(60_000) + ".\r\n")
	c.expect(452)
	if n := ts.handoff.finish(); n != 3 {
		t.Errorf("%d messages were handed over", n)
	}
	c.cmd(250, "MAIL FROM:<alice@example.com> SIZE=90000")
}
