package capture

import (
	"net"
	"net/smtp"
	"strings"
	"testing"

	wire "postern/relay/smtp"
)

// A client of another make sends two messages over one connection.
func TestCaptureTakesEverything(t *testing.T) {
	t.Parallel()
	arrived := make(chan Message, 2)
	s, err := Listen("127.0.0.1:0", func(m Message) { arrived <- m })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := smtp.Dial(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"Subject: one\r\n\r\n.dot\r\n", "Subject: two\r\n\r\n"} {
		if err := c.Mail("alice@example.com"); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"bob@example.net", "carol@example.org"} {
			if err := c.Rcpt(to); err != nil {
				t.Fatal(err)
			}
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		m := <-arrived
		if string(m.Data) != text || len(m.To) != 2 || m.From != (wire.Address{Local: "alice", Domain: "example.com"}) {
			t.Errorf("captured %+v", m)
		}
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
}

// Replies come in step whatever is said.
func TestCaptureRefuses(t *testing.T) {
	t.Parallel()
	s, err := Listen("127.0.0.1:0", func(Message) { t.Error("a message came out of nothing") })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := wire.NewReader(conn)
	for _, step := range []struct {
		say  string
		code int
	}{
		{"", 220},
		{"DATA\r\n", 503},
		{"RCPT TO:<a@b.test>\r\n", 503},
		{"MAIL FROM:a@b\r\n", 501},
		{"NONSENSE\r\n", 502},
		{"\x00\r\n", 500},
		{strings.Repeat("x", 5000) + "\r\n", 500},
		{"NOOP\r\n", 250},
		{"QUIT\r\n", 221},
	} {
		if _, err := conn.Write([]byte(step.say)); err != nil {
			t.Fatal(err)
		}
		reply, err := wire.ReadReply(r, wire.ReplyLimits{})
		if err != nil || reply.Code != step.code {
			t.Fatalf("%.20q: %v, %v; want %d", step.say, reply, err, step.code)
		}
	}
}
