package smtp

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// tape is a connection whose other side says what is on it, whatever it hears.
type tape struct {
	net.Conn
	says  io.Reader
	heard bytes.Buffer
}

func (t *tape) Read(p []byte) (int, error)  { return t.says.Read(p) }
func (t *tape) Write(p []byte) (int, error) { return t.heard.Write(p) }
func (t *tape) Close() error                { return nil }
func (t *tape) SetDeadline(time.Time) error { return nil }

// FuzzClient lets a server say anything. The conversation ends, what it said is
// storable, and a message counts as delivered only behind its final dot.
func FuzzClient(f *testing.F) {
	f.Add([]byte("220 x\r\n250-x\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n"), []byte("250 ok\r\n"))
	f.Add([]byte("220 x\r\n250 x\r\n250 ok\r\n"), []byte("421 bye\r\n"))
	f.Add([]byte("220 x\r\n550 x\r\n250 x\r\n354 ok\r\n"), []byte{})
	f.Add([]byte("220-\r\n220 x\r\n250-SIZE 3\r\n250 SMTPUTF8\r\n"), []byte("2"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		// The pause between the two is where a network would let us act first.
		conn := &tape{says: io.MultiReader(bytes.NewReader(before), bytes.NewReader(after))}
		c := NewClient(conn, ClientConfig{Hello: "client.test", MaxReplyLines: 10, MaxReplyBytes: 1000})
		if err := c.Greet(context.Background()); err != nil {
			return
		}
		res := c.Send(context.Background(), transaction(2))
		checkStorable(t, res.Replies)
		for i, reply := range res.Replies {
			if reply.IsZero() && res.Err == nil {
				t.Errorf("recipient %d has neither reply nor error", i)
			}
			if reply.IsPositive() && !res.DotSent {
				t.Errorf("recipient %d delivered without a dot: %v", i, reply)
			}
		}
		dots := strings.Count(conn.heard.String(), "\r\n.\r\n")
		if dots > 1 || res.DotSent && dots != 1 {
			t.Errorf("%d dots, sent %v", dots, res.DotSent)
		}
		if c.Usable() && (res.Err != nil || c.r.Buffered() > 0) {
			t.Errorf("usable after %v with %d octets left", res.Err, c.r.Buffered())
		}
	})
}
