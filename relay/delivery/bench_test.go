package delivery

import (
	"bufio"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// BenchmarkDeliver measures the engine and its conversations over loopback: 5 KB
// messages, 20 connections, a sink that does no more than it must.
func BenchmarkDeliver(b *testing.B) {
	addr := sinkServer(b)
	up := &upstream.Account{Name: "sink", Host: addr.IP.String(), Port: addr.Port, TLS: upstream.TLSNone}
	ledger := &counter{done: make(chan struct{}), want: int64(b.N)}
	e := New(Config{Connect: connect.Config{Hello: "relay.test"}, Queue: ledger, Routes: routes{def: up}, NoClaim: true, Messages: 2 * b.N, Memory: 1 << 40})
	e.Start()
	body := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 70)
	list := make([]*queue.Delivery, b.N)
	for i := range list {
		list[i] = message(b, "user@one.test")
		list[i].Body = newBody(body)
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	b.ResetTimer()
	for _, d := range list {
		e.Take(d)
	}
	<-ledger.done
	b.StopTimer()
	if err := e.Shutdown(context.Background()); err != nil {
		b.Error(err)
	}
}

// counter is a ledger that only counts.
type counter struct {
	fakeQueue
	settled atomic.Int64
	want    int64
	done    chan struct{}
}

func (c *counter) Recovered(string) {}

func (c *counter) Settle(outcomes ...queue.Outcome) {
	for _, o := range outcomes {
		if o.Result != queue.Delivered {
			panic(o.Reply.String())
		}
	}
	if c.settled.Add(int64(len(outcomes))) == c.want {
		close(c.done)
	}
}

func (c *counter) Release(*queue.Delivery, []int, time.Duration) { panic("released") }

// sinkServer answers what a well-behaved client says.
func sinkServer(b *testing.B) *net.TCPAddr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go sinkSession(conn)
		}
	}()
	return l.Addr().(*net.TCPAddr)
}

func sinkSession(conn net.Conn) {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, 16<<10), bufio.NewWriter(conn)
	say := func(s string) { w.WriteString(s) }
	say("220 sink\r\n")
	for {
		if r.Buffered() == 0 {
			w.Flush()
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch string(line[:4]) {
		case "EHLO":
			say("250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
		case "DATA":
			say("354 go\r\n")
			w.Flush()
			for string(line) != ".\r\n" {
				if line, err = r.ReadSlice('\n'); err != nil {
					return
				}
			}
			say("250 2.0.0 ok\r\n")
		default:
			say("250 2.0.0 ok\r\n")
		}
	}
}
