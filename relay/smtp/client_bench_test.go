package smtp

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"testing"
)

// sink is the cheapest server that pipelines: it answers a group by one write.
func sink(conn net.Conn) {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn)
	_, _ = w.WriteString("220 sink\r\n")
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch line[0] {
		case 'E':
			_, _ = w.WriteString("250-sink\r\n250-PIPELINING\r\n250 SIZE 0\r\n")
		case 'D':
			_, _ = w.WriteString("354 go\r\n")
			_ = w.Flush()
			for !bytes.Equal(line, []byte(".\r\n")) {
				if line, err = r.ReadSlice('\n'); err != nil {
					return
				}
			}
			_, _ = w.WriteString("250 2.0.0 queued\r\n")
		default:
			_, _ = w.WriteString("250 2.1.0 ok\r\n")
		}
	}
}

// BenchmarkClientSend sends 5 KB to one recipient over loopback.
func BenchmarkClientSend(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			sink(conn)
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	c := NewClient(conn, testConfig())
	defer c.Close()
	if err := c.Greet(b.Context()); err != nil {
		b.Fatal(err)
	}
	message := strings.Repeat(strings.Repeat("x", 68)+"\r\n", 73)
	tx := transaction(1)
	tx.BeforeDot = func() error { return nil }
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		tx.Body, tx.Size = strings.NewReader(message), int64(len(message))
		if res := c.Send(b.Context(), tx); res.Err != nil || !c.Usable() {
			b.Fatal(res.Err)
		}
	}
}
