package relay_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// The tests of this file attack a whole node for a minute each and print their figures;
// they run one after the other, and only with POSTERN_LONG=1. What they show is shown in
// every run by the tests of the same ids in relay/submission.

// honest is the user who suffers.
const honest = "honest@" + rig.Domain

// hostile are the users who attack: one of them, or several together.
var hostile = []string{"one@" + rig.Domain, "two@" + rig.Domain, "three@" + rig.Domain}

// assaultTime is how many seconds an attack lasts.
const assaultTime = 60

// fair is a user who logs in and sends a message each second, whatever else goes on.
type fair struct {
	r    *rig.Rig
	node *rig.Node
	to   string
	size int                // octets of a message, about
	from func(i int) string // the address of the i-th turn
}

// turn is what became of one login with a message.
type turn struct {
	id   string
	dot  time.Time     // when its final dot was sent
	took time.Duration // from the connection to the reply to the dot
	err  error
}

// turns are n of them, each over a connection of its own.
func (f *fair) turns(n int) []turn {
	list := make([]turn, n)
	var all sync.WaitGroup
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for i := range list {
		all.Go(func() {
			began := time.Now()
			list[i].id = fmt.Sprintf("fair%dx%d", began.UnixNano(), i)
			list[i].err = f.send(i, &list[i])
			list[i].took = time.Since(began)
		})
		<-second.C
	}
	all.Wait()
	return list
}

func (f *fair) send(i int, to *turn) error {
	c, err := f.r.DialAt(f.node, f.from(i))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(honest, rig.Password); err != nil {
		return err
	}
	if err := openDataTo(c, honest, f.to); err != nil {
		return err
	}
	text := "X-Load-Id: " + to.id + "\r\nFrom: <" + honest + ">\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", f.size/64)
	if err := c.Write(text); err != nil {
		return err
	}
	to.dot = time.Now()
	return c.Say("dot", 250, ".")
}

// judge logs how the turns went, and wants each to have succeeded.
func judge(t *testing.T, who string, turns []turn) {
	t.Helper()
	times, failed := []time.Duration{}, map[string]int{}
	for _, one := range turns {
		times = append(times, one.took)
		if one.err != nil {
			failed[one.err.Error()]++
		}
	}
	bad := 0
	for _, n := range failed {
		bad += n
	}
	slices.Sort(times)
	t.Logf("%s: %d of %d turns were answered 250; median %s, longest %s; %v", who, len(turns)-bad, len(turns),
		times[len(times)/2].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond), failed)
	if bad > 0 {
		t.Errorf("%s: %d of %d turns failed", who, bad, len(turns))
	}
}

// assault is a node under attack.
type assault struct {
	r    *rig.Rig
	node *rig.Node
	sink *rig.Sink
	fair *fair
	most map[string]float64 // of each metric, while the attack lasts
}

// newAssault makes a node that has worked a little, so that it holds what it holds at
// peace.
func newAssault(t *testing.T, extra string, size int) *assault {
	t.Helper()
	s := &assault{r: rig.New(t, false), sink: rig.NewSink(t, "", 0), most: map[string]float64{}}
	s.r.RouteTo(s.sink, 10)
	for _, user := range append([]string{honest}, hostile...) {
		s.r.AddUser(user)
	}
	s.node = s.r.Node(rig.NodeConfig{Name: "solo", Extra: extra})
	s.fair = &fair{r: s.r, node: s.node, to: "bob@dest.test", size: size, from: func(int) string { return "127.0.0.1" }}
	judge(t, "at peace", s.fair.turns(5))
	return s
}

// under runs clients, each again and again after a second, while fight lasts, and logs
// what the node holds meanwhile: the growth of its process, and the metrics named.
func (s *assault) under(t *testing.T, clients int, client func(ctx context.Context, i int), fight func()) (growth int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	before, _ := s.node.Memory()
	for i := range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				client(ctx, i)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	all.Go(func() { s.watch(ctx) })
	fight()
	cancel()
	all.Wait()
	_, peak := s.node.Memory()
	t.Logf("the process held %d MiB before and %d MiB at most", before>>20, peak>>20)
	for _, name := range watched {
		t.Logf("%s: %.0f at most", name, s.most[name])
	}
	return peak - before
}

// watched are the metrics that an assault looks at.
var watched = []string{memoryBudget, filesBudget, "postern_sessions_open",
	"postern_sessions_gave_way_total", "go_goroutines", "go_memstats_heap_inuse_bytes", "go_memstats_stack_inuse_bytes"}

var gauge = regexp.MustCompile(`(?m)^([a-z_]+) ([0-9.e+]+)$`)

// watch reads the metrics twice a second until ctx ends.
func (s *assault) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second / 2)
	defer tick.Stop()
	for {
		if _, page, _, err := get(ctx, s.node.Admin(), "/metrics"); err == nil {
			for _, found := range gauge.FindAllStringSubmatch(page, -1) {
				n, _ := strconv.ParseFloat(found[2], 64)
				s.most[found[1]] = max(s.most[found[1]], n)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// session is a client of a hostile user, from one of two addresses for each, which does
// what do does and then sends three octets each half minute.
func (s *assault) session(users int, do func(c *rig.Client) error) func(ctx context.Context, i int) {
	return func(ctx context.Context, i int) {
		c, err := s.r.DialAt(s.node, fmt.Sprintf("127.1.0.%d", 1+i%(2*users)))
		if err != nil {
			return
		}
		defer c.Close()
		defer context.AfterFunc(ctx, c.Close)()
		if c.Login(hostile[i%users], rig.Password) != nil || do(c) != nil {
			return
		}
		for c.Write("xxx") == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(30 * time.Second):
			}
		}
	}
}

// beginBody begins a message and sends so many octets of its text.
func beginBody(size int) func(c *rig.Client) error {
	return begin("From: <" + hostile[0] + ">\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", size/64))
}

// begin begins a message with text.
func begin(text string) func(c *rig.Client) error {
	return func(c *rig.Client) error {
		if err := openData(c, hostile[0]); err != nil {
			return err
		}
		return c.Write(text)
	}
}

// smallBudgets is the part of a node's configuration for the attacks on its memory.
const smallBudgets = `[submission]
memory = "32MiB"
spool = "64MiB"
connections_per_address = 1000
`

// hoard is an attack on a budget: sessions that hold what they can.
type hoard struct {
	sessions, users int
	do              func(c *rig.Client) error // before it crawls
	fair            int                       // octets of a message of the user who suffers
	budget          string                    // a metric
	least, most     float64                   // that it has to come to
}

// run wants the attack to come near to what the budget allows, and not beyond it, and the
// process to hold little more than it did at peace: the budget of 32 MiB twice, for what
// is collected late, and the rest for 200 sessions and the hashes of their passwords.
func (h hoard) run(t *testing.T) {
	s := newAssault(t, smallBudgets, h.fair)
	var turns []turn
	growth := s.under(t, h.sessions, s.session(h.users, h.do), func() { turns = s.fair.turns(assaultTime) })
	judge(t, fmt.Sprintf("beside %d sessions", h.sessions), turns)
	if n := s.most[h.budget]; n < h.least || n > h.most {
		t.Errorf("%s came to %.0f, want between %.0f and %.0f", h.budget, n, h.least, h.most)
	}
	if growth > 160<<20 {
		t.Errorf("the process grew by %d MiB", growth>>20)
	}
}

const memoryBudget, filesBudget = "postern_spool_memory_bytes", "postern_spool_files_bytes"

// TestH3WholeNode: 165 sessions of one user that send much of a body and then crawl keep
// nobody else from the memory, or the temporary files, for messages.
func TestH3WholeNode(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	for name, test := range map[string]hoard{
		"memory":                {165, 1, beginBody(830_000), 20_000, memoryBudget, 16 << 20, 32 << 20},
		"memory of three users": {165, 3, beginBody(830_000), 20_000, memoryBudget, 24 << 20, 32 << 20},
		"files":                 {165, 1, beginBody(3_000_000), 1_500_000, filesBudget, 32 << 20, 64 << 20},
	} {
		t.Run(name, test.run)
	}
}

// TestM3WholeNode: 200 sessions that stop within a header section of 250 KiB hold no more
// than the budget.
func TestM3WholeNode(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	header := "From: <" + hostile[0] + ">\r\n" + strings.Repeat("X: "+strings.Repeat("x", 900)+"\r\n", 250<<10/905)
	hoard{200, 1, begin(header), 20_000, memoryBudget, 16 << 20, 32 << 20}.run(t)
}

// TestM7WholeNode: 200 sessions with a thousand recipients with long ORCPT each hold no
// more than the budget.
func TestM7WholeNode(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	const group = 50
	orcpt := strings.Repeat("o", 480)
	hoard{200, 1, func(c *rig.Client) error {
		if err := c.Say("MAIL", 250, "MAIL FROM:<"+hostile[0]+">"); err != nil {
			return err
		}
		for i := 0; i < 1000; i += group {
			var lines strings.Builder
			for n := i; n < i+group; n++ {
				fmt.Fprintf(&lines, "RCPT TO:<r%d@dest.test> ORCPT=rfc822;%s\r\n", n, orcpt)
			}
			if err := c.Write(lines.String()); err != nil {
				return err
			}
			for range group {
				if _, _, err := c.Reply(); err != nil { // 452 once there is no room
					return err
				}
			}
		}
		return nil
	}, 20_000, memoryBudget, 16 << 20, 32 << 20}.run(t)
}

// TestM4WholeNode: 2,000 silent connections from 20 addresses, which come again when they
// are turned away, keep nobody out from an address that has logged in before. When they
// stay away, newcomers find a place within the time that a login may take under pressure.
func TestM4WholeNode(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("again %t", again), func(t *testing.T) {
			s := newAssault(t, "", 20_000)
			addr, err := s.node.Addr(false)
			want(t, err)
			stranger := *s.fair
			stranger.from = func(i int) string { return fmt.Sprintf("127.77.0.%d", 1+i) }
			var known, strangers []turn
			s.under(t, 2000, func(ctx context.Context, i int) {
				if c, err := dialAt(addr, fmt.Sprintf("127.1.0.%d", 1+i%20)); err == nil {
					stop := context.AfterFunc(ctx, func() { _ = c.Close() })
					for err == nil { // until it is turned away
						_, err = c.Read(make([]byte, 512))
					}
					stop()
					_ = c.Close()
				}
				if !again {
					<-ctx.Done()
				}
			}, func() {
				var both sync.WaitGroup
				both.Go(func() { strangers = stranger.turns(assaultTime) })
				known = s.fair.turns(assaultTime)
				both.Wait()
			})
			judge(t, "from a known address", known)
			in := slices.DeleteFunc(slices.Clone(strangers), func(one turn) bool { return one.err != nil })
			t.Logf("from new addresses: %d of %d turns succeeded", len(in), len(strangers))
			if !again {
				judge(t, "from new addresses, 20 s after it began", strangers[20:])
			}
		})
	}
}

// dialAt connects from a loopback address.
func dialAt(addr, from string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return dialer.Dial("tcp", addr)
}

// TestM6LogUnderFlood: in a minute in which strangers at eight addresses do nothing but what is worth a
// line, a node logs less than 100 KB.
func TestM6LogUnderFlood(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	s := newAssault(t, "", 1000)
	addr, err := s.node.Addr(false)
	want(t, err)
	for _, flood := range []struct {
		name    string
		clients int
		once    func(ctx context.Context, from string) error
	}{
		{"HTTP", 8, func(ctx context.Context, from string) error {
			return speak(ctx, addr, from, "GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n")
		}},
		{"octets behind STARTTLS", 8, func(ctx context.Context, from string) error {
			return speak(ctx, addr, from, "EHLO client.test\r\n", "STARTTLS\r\nEHLO client.test\r\n")
		}},
		{"malformed AUTH", 8, func(ctx context.Context, from string) error {
			return s.authenticate(ctx, from, func(c *rig.Client) error { return c.Say("AUTH", 501, "AUTH PLAIN eHh4") })
		}},
		{"AUTH that is put off", 100, func(ctx context.Context, from string) error {
			return s.authenticate(ctx, from, func(c *rig.Client) error {
				err := c.Login(honest, "guess")
				if code := rig.Code(err); code == 535 || code == 454 {
					return nil
				}
				return err
			})
		}},
	} {
		t.Run(flood.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), assaultTime*time.Second)
			defer cancel()
			var all sync.WaitGroup
			var times atomic.Int64
			before := s.node.LogSize()
			for i := range flood.clients {
				all.Go(func() {
					for ctx.Err() == nil {
						_ = flood.once(ctx, fmt.Sprintf("127.6.%d.1", i%8))
						times.Add(1)
					}
				})
			}
			all.Wait()
			logged := s.node.LogSize() - before
			t.Logf("%d connections, %d octets of log in a minute", times.Load(), logged)
			if logged > 100_000 {
				t.Error("that is too much")
			}
		})
	}
}

// speak connects, says each line after a reply, and waits for the end.
func speak(ctx context.Context, addr, from string, lines ...string) error {
	c, err := dialAt(addr, from)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	in := bufio.NewReader(c)
	for _, line := range lines {
		for reply := "-"; len(reply) < 4 || reply[3] == '-'; {
			if reply, err = in.ReadString('\n'); err != nil {
				return err
			}
		}
		if _, err := c.Write([]byte(line)); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// authenticate tries in one session as long as try succeeds.
func (s *assault) authenticate(ctx context.Context, from string, try func(c *rig.Client) error) error {
	c, err := s.r.DialAt(s.node, from)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	for err == nil {
		err = try(c)
	}
	return err
}
