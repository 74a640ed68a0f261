package relay_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// hail sends one message over c and returns the code of the first reply that is none
// of success, or 250 after the dot.
func hail(c *rig.Client, from string) (int, error) {
	for _, step := range []struct {
		line string
		code int
	}{
		{"MAIL FROM:<" + from + ">", 250}, {"RCPT TO:<bob@dest.test>", 250}, {"DATA", 354},
		{"From: <" + from + ">\r\nSubject: x\r\n\r\nx\r\n.", 250},
	} {
		if err := c.Say(step.line[:4], step.code, step.line); err != nil {
			return rig.Code(err), err
		}
	}
	return 250, nil
}

// limited offers mail of one user to the nodes, more than its limit allows, until enough
// was accepted. A client whose node is away goes to the other.
type limited struct {
	r      *rig.Rig
	nodes  []*rig.Node
	pause  time.Duration
	mu     sync.Mutex
	offers []offer
}

// offer is a message that a client has sent, and what it heard; 0 is nothing. If it was
// charged, that was between the two moments.
type offer struct {
	sent, heard time.Time
	code        int
}

func (l *limited) codes() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	codes := map[int]int{}
	for _, o := range l.offers {
		codes[o.code]++
	}
	return codes
}

func (l *limited) client(number, enough int, until time.Time) {
	going := func() bool { return l.codes()[250] < enough && time.Now().Before(until) }
	for going() {
		c, err := l.r.Dial(l.nodes[number%len(l.nodes)], true)
		if err == nil {
			err = c.Login(rig.User, rig.Password)
		}
		for err == nil && going() {
			o := offer{sent: time.Now()}
			o.code, err = hail(c, "alice@"+rig.Domain)
			o.heard = time.Now()
			l.mu.Lock()
			l.offers = append(l.offers, o)
			l.mu.Unlock()
			if o.code == 452 {
				err = c.Say("RSET", 250, "RSET")
			}
			time.Sleep(l.pause)
		}
		if c != nil {
			c.Close()
		}
		if err != nil {
			number++
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// judge wants no more accepted in a window than the limit allows, and nobody refused
// while fewer can have counted.
func (l *limited) judge(t *testing.T, most int, window time.Duration) {
	t.Helper()
	slices.SortFunc(l.offers, func(a, b offer) int { return a.heard.Compare(b.heard) })
	var accepted []offer
	for _, o := range l.offers {
		switch {
		case o.code == 250:
			accepted = append(accepted, o)
		case o.code == 452:
			// A window ends with a part of it, of sixty, and so does what a node remembers
			// of a refusal.
			begin := o.sent.Add(-window - 5*window/60)
			count := 0
			for _, other := range l.offers {
				if (other.code == 250 || other.code == 0) && !other.sent.After(o.heard) && !other.heard.Before(begin) {
					count++
				}
			}
			if count < most {
				t.Errorf("refused when %d messages of %d can have counted", count, most)
			}
		case o.code >= 500:
			t.Errorf("refused with %d", o.code)
		}
	}
	for i := most; i < len(accepted); i++ {
		first := slices.MinFunc(accepted[i-most:i+1], func(a, b offer) int { return a.sent.Compare(b.sent) })
		if d := accepted[i].heard.Sub(first.sent); d < window {
			t.Errorf("%d messages within %v", most+1, d)
		}
	}
}

// TestLimitOverNodes holds a user to a limit over two nodes, one of which is killed
// on the way (P9). With POSTERN_LONG=1 it is 100 messages in a minute, for three.
func TestLimitOverNodes(t *testing.T) {
	t.Parallel()
	most, window, rounds := 20, 10*time.Second, 3
	if longtest.Run() {
		most, window = 100, time.Minute
	}
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	r.Postern("", "limit", "set", rig.User, "--messages", fmt.Sprintf("%d/%ds", most, window/time.Second))
	a, b := r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})
	a.Ready()
	b.Ready()
	const clients = 4
	l := &limited{r: r, nodes: []*rig.Node{a, b}, pause: clients * window / time.Duration(2*most)}
	began := time.Now()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { l.client(i, rounds*most, began.Add(rig.Patience)) })
	}
	await(t, "half of it is accepted", func() bool { return l.codes()[250] >= rounds*most/2 })
	a.Kill()
	a.Start()
	all.Wait()
	t.Logf("in %v: %v", time.Since(began), l.codes())
	if n := l.codes()[250]; n < rounds*most {
		t.Errorf("%d of %d were accepted", n, rounds*most)
	}
	l.judge(t, most, window)
}

// TestRevocationOverNodes revokes a credential while it is in use on another node: its
// sessions are cut, it works no more, and its mail is held until it is released.
func TestRevocationOverNodes(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	node := r.Node(rig.NodeConfig{Name: "a"})
	node.Ready()
	var added struct {
		ID               int64
		Username, Secret string
	}
	if err := json.Unmarshal([]byte(r.Postern("", "credential", "add", rig.User, "--label", "app", "--generate", "--json")), &added); err != nil {
		t.Fatal(err)
	}
	login := func(secret string) (*rig.Client, error) {
		t.Helper()
		c, err := r.Dial(node, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c, c.Login(added.Username, secret)
	}
	idle, err := login(added.Secret)
	if err != nil {
		t.Fatal(err)
	}
	busy, err := login(added.Secret)
	if err != nil {
		t.Fatal(err)
	}
	other, err := login(rig.Password)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := hail(busy, "alice@"+rig.Domain); code != 250 { // there is no route: it waits
		t.Fatal(code, err)
	}
	if err := busy.Say("MAIL", 250, "MAIL FROM:<alice@"+rig.Domain+">"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.Postern("", "credential", "revoke", fmt.Sprint(added.ID))
	done := time.Now()
	if err := idle.Expect("idle", 421); err != nil {
		t.Errorf("the idle session: %v", err)
	}
	t.Logf("421 after %v, %v after the command's end", time.Since(began), time.Since(done))
	await(t, "the busy session is cut", func() bool { // the one after the other
		err := busy.Say("RCPT", 421, "RCPT TO:<bob@dest.test>")
		if code := rig.Code(err); err != nil && code != 250 {
			t.Fatalf("the busy session: %v", err)
		}
		return err == nil
	})
	if _, err := login(added.Secret); rig.Code(err) != 535 {
		t.Errorf("the next AUTH: %v", err)
	}
	if code, err := hail(other, "alice@"+rig.Domain); code != 250 {
		t.Errorf("a session of another credential: %v", err)
	}
	held := func() int { return strings.Count(r.Postern("", "queue", "list", "--state", "held"), "bob@dest.test") }
	for until := time.Now().Add(rig.Patience); held() != 1 && time.Now().Before(until); {
		time.Sleep(200 * time.Millisecond) // it was in a node's hand
	}
	if n := held(); n != 1 {
		t.Errorf("%d recipients are held, want that of the credential's one message", n)
	}
	r.Postern("", "queue", "release", "--user", rig.User)
	if n := held(); n != 0 {
		t.Errorf("%d recipients are held after the release", n)
	}
}
