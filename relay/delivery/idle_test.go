package delivery

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// impatient is a server that ends connections which were idle for a time after a
// message. It has patience with all else, so that a slow machine changes nothing.
type impatient struct {
	idle time.Duration
	end  func(*net.TCPConn)
}

func (s impatient) serve(conn *net.TCPConn) {
	defer conn.Close()
	say := func(line string) { _, _ = fmt.Fprintf(conn, "%s\r\n", line) }
	say("220 impatient.test")
	in, data := bufio.NewReader(conn), false
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			s.end(conn)
			return
		}
		switch word := strings.ToUpper(strings.TrimSpace(line)); {
		case data && word == ".":
			data = false
			say("250 2.0.0 taken")
			_ = conn.SetReadDeadline(time.Now().Add(s.idle))
		case data:
		case word == "DATA":
			data = true
			say("354 go on")
		case word == "QUIT":
			say("221 bye")
			return
		default:
			_ = conn.SetReadDeadline(time.Time{})
			say("250 ok")
		}
	}
}

// TestP14IdleEnds sends messages about as often as a server ends idle connections, so
// that goodbyes and messages cross. With POSTERN_LONG=1 the server waits 1, 5 and 10 s
// and each gets 1,000 messages.
func TestP14IdleEnds(t *testing.T) {
	t.Parallel()
	idle, destinations, each := []time.Duration{30 * time.Millisecond}, 10, 10
	if longtest.Run() {
		idle, destinations, each = []time.Duration{time.Second, 5 * time.Second, 10 * time.Second}, 50, 20
	}
	for name, end := range map[string]func(*net.TCPConn){
		"FIN": func(*net.TCPConn) {},
		"RST": func(c *net.TCPConn) { _ = c.SetLinger(0) },
		"421": func(c *net.TCPConn) { _, _ = c.Write([]byte("421 4.4.2 idle too long\r\n")) },
		"451": func(c *net.TCPConn) { _, _ = c.Write([]byte("451 4.4.2 timeout waiting for data\r\n")) },
	} {
		for _, wait := range idle {
			t.Run(fmt.Sprint(name, " after ", wait), func(t *testing.T) {
				t.Parallel()
				crossGoodbyes(t, impatient{wait, end}, destinations, each)
			})
		}
	}
}

func crossGoodbyes(t *testing.T, s impatient, destinations, each int) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer l.Close()
	sessions.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			sessions.Go(func() { s.serve(conn) })
		}
	})
	to := map[string]*upstream.Account{}
	for i := range destinations {
		name := fmt.Sprintf("d%d.test", i)
		to[name] = &upstream.Account{Name: name, Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, TLS: upstream.TLSNone}
	}
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{to: to}, IdleTime: time.Hour})
	e.Start()
	defer stop(t, e)
	var senders sync.WaitGroup
	for name := range to {
		senders.Go(func() {
			for range each {
				e.Take(message(t, "a@"+name))
				time.Sleep(s.idle*9/10 + rand.N(s.idle/5)) // the pace of the load: nothing waits by it
			}
		})
	}
	senders.Wait()
	q.waitEnded(t, destinations*each)
	deferred := 0
	for _, d := range q.results() {
		if d.Result != queue.Delivered {
			deferred++
		}
	}
	t.Logf("%d messages, %d deferred", destinations*each, deferred)
	if deferred > 0 {
		t.Errorf("%d of %d were deferred", deferred, destinations*each)
	}
}
