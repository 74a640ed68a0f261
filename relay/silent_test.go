package relay_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/longtest"
	"postern/internal/rig"
)

// mailHosts are mail hosts at loopback addresses of their own, at one port.
type mailHosts struct {
	addrs []string
	done  sync.WaitGroup
	open  atomic.Int64
	most  atomic.Int64 // that were open at the same time
}

// newMailHosts makes n hosts that serve each connection as serve does. They end with the
// test, after its nodes.
func newMailHosts(t *testing.T, n, port int, serve func(conn net.Conn)) *mailHosts {
	t.Helper()
	h := &mailHosts{}
	var all []net.Listener
	t.Cleanup(func() {
		for _, l := range all {
			_ = l.Close()
		}
		h.done.Wait()
	})
	for i := range n {
		addr := fmt.Sprintf("127.51.%d.%d", i/250, 1+i%250)
		l, err := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		all, h.addrs = append(all, l), append(h.addrs, addr)
		h.done.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				h.done.Go(func() {
					h.count(1)
					serve(conn)
					_ = conn.Close()
					h.count(-1)
				})
			}
		})
	}
	return h
}

func (h *mailHosts) count(n int64) {
	now := h.open.Add(n)
	for most := h.most.Load(); now > most && !h.most.CompareAndSwap(most, now); most = h.most.Load() {
	}
}

// newDeafHosts makes n hosts to which no connection can be made: their lines of those
// that wait to be accepted are full, so that the kernel drops what comes.
func newDeafHosts(t *testing.T, n, port int) *mailHosts {
	t.Helper()
	h := &mailHosts{}
	for i := range n {
		ip := net.IPv4(127, 52, 0, byte(1+i))
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
		if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte(ip.To4())}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Listen(fd, 0); err != nil {
			t.Fatal(err)
		}
		for full := false; !full; {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), strconv.Itoa(port)), 300*time.Millisecond)
			if full = err != nil; !full {
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
		h.addrs = append(h.addrs, ip.String())
	}
	return h
}

// listen reads until the other side has enough.
func listen(conn net.Conn) {
	_, _ = io.Copy(io.Discard, conn)
}

// drip answers as a server does, an octet in a second, until the other side has enough.
func drip(conn net.Conn) {
	in := bufio.NewReader(conn)
	say := func(line string) bool {
		for _, octet := range []byte(line) {
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := in.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return false
			}
			if _, err := conn.Write([]byte{octet}); err != nil {
				return false
			}
		}
		return conn.SetReadDeadline(time.Time{}) == nil
	}
	text := false
	for reply := "220 drip.test ESMTP\r\n"; say(reply); {
		line, err := in.ReadString('\n')
		for ; err == nil && text && line != ".\r\n"; line, err = in.ReadString('\n') {
		}
		if err != nil {
			return
		}
		text = line == "DATA\r\n"
		reply = "250 2.0.0 taken\r\n"
		if text {
			reply = "354 go on\r\n"
		}
	}
}

// TestH1WholeNode sends one message to very many domains whose hosts take nothing, in
// three ways. Beside it another user's mail to a domain that works comes out within 5 s,
// and as much of it as at least half of what it is without. The tests of the same id in
// relay/delivery show in every run that no slot is held.
func TestH1WholeNode(t *testing.T) {
	if !longtest.Run() {
		return // see above
	}
	for _, test := range []struct {
		name  string
		hosts func(t *testing.T, port int) *mailHosts
	}{
		{"600 that keep silent", func(t *testing.T, port int) *mailHosts { return newMailHosts(t, 600, port, listen) }},
		{"600 that drip", func(t *testing.T, port int) *mailHosts { return newMailHosts(t, 600, port, drip) }},
		{"40 whose packets are dropped", func(t *testing.T, port int) *mailHosts { return newDeafHosts(t, 40, port) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			sink := rig.NewSink(t, "", 0)
			hosts := test.hosts(t, sink.Port())
			besideHosts(t, sink, hosts)
		})
	}
}

// besideHosts is TestH1WholeNode with hosts of one kind.
func besideHosts(t *testing.T, sink *rig.Sink, hosts *mailHosts) {
	dns := &dnstest.Zones{}
	dns.AddHost("works.test", "127.0.0.1")
	messages := make([][]string, 2) // each to domains that the node has not met
	for i, addr := range hosts.addrs {
		for n := range messages {
			domain := fmt.Sprintf("d%d-%d.test", n, i)
			dns.AddHost(domain, addr)
			messages[n] = append(messages[n], "bob@"+domain)
		}
	}
	r := rig.New(t, false)
	r.Postern("", "route", "add", "--via", "mx")
	r.AddUser(hostile[0])
	r.AddUser(honest)
	node := r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf(
		"[delivery]\nmx_port = %d\nallow_private_mx = true\n[dns]\nservers = [%q]\n", sink.Port(), dns.Serve(t))})
	fair := &fair{r: r, node: node, to: "bob@works.test", size: 2000, from: func(int) string { return "127.0.0.1" }}
	judge(t, "at peace", fair.turns(3))

	alone := throughput(t, r, node, sink)
	attack(t, r, node, messages[0])
	turns := fair.turns(assaultTime)
	judge(t, "beside it", turns)
	wantWithin(t, sink, turns, 5*time.Second)
	attack(t, r, node, messages[1])
	beside := throughput(t, r, node, sink)
	t.Logf("messages that came out in %s: %d without it, %d beside it, %.2f; the hosts had %d connections at most",
		throughputTime, alone, beside, float64(beside)/float64(alone), hosts.most.Load())
	if beside < alone/2 {
		t.Error("less than half comes out")
	}
}

// attack sends one message to all of to.
func attack(t *testing.T, r *rig.Rig, node *rig.Node, to []string) {
	t.Helper()
	c, err := r.DialAt(node, "127.1.0.1")
	want(t, err)
	defer c.Close()
	want(t, c.Login(hostile[0], rig.Password))
	want(t, c.Say("MAIL", 250, "MAIL FROM:<"+hostile[0]+">"))
	for _, one := range to {
		want(t, c.Say("RCPT", 250, "RCPT TO:<"+one+">"))
	}
	want(t, c.Say("DATA", 354, "DATA"))
	want(t, c.Say("dot", 250, "From: "+hostile[0]+"\r\n\r\ntext\r\n."))
}

// wantWithin wants each turn's message to have come out so long after its final dot.
func wantWithin(t *testing.T, sink *rig.Sink, turns []turn, most time.Duration) {
	t.Helper()
	var times []time.Duration
	await(t, "all messages come out", func() bool {
		came := map[string]time.Time{}
		for _, m := range sink.Received() {
			came[m.ID] = m.At
		}
		times = nil
		for _, one := range turns {
			if at, ok := came[one.id]; ok {
				times = append(times, at.Sub(one.dot))
			}
		}
		return len(times) == len(turns)
	})
	slices.Sort(times)
	median, longest := times[len(times)/2], times[len(times)-1]
	t.Logf("%d messages to a domain that works came out: median %s, longest %s", len(times),
		median.Round(time.Millisecond), longest.Round(time.Millisecond))
	if longest > most {
		t.Errorf("the longest took %s, want %s at most", longest, most)
	}
}

const throughputTime = 20 * time.Second

// throughput is how many messages of a few clients come out in throughputTime.
func throughput(t *testing.T, r *rig.Rig, node *rig.Node, sink *rig.Sink) int {
	t.Helper()
	load := newLoad(t, r, node)
	load.Name, load.Pace, load.Conns = honest, 0, 4
	load.Shape = func(*rand.Rand) rig.Shape {
		return rig.Shape{From: honest, To: []string{"bob@works.test"}, Size: 2000}
	}
	before := len(sink.Received())
	load.Start()
	<-time.After(throughputTime)
	came := len(sink.Received()) - before
	load.Stop()
	t.Log(load.Ledger)
	return came
}
