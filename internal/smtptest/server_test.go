package smtptest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/smtp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// talk says lines and returns everything that the server says until it closes or
// quit is answered.
func talk(t *testing.T, conn net.Conn, lines ...string) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(conn, strings.Join(append(lines, "QUIT"), "\r\n")+"\r\n")
	}()
	said, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(said)
}

var oneMessage = []string{"EHLO c", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", "."}

const normally = "220 fake.test ESMTP smtptest\r\n250 fake.test\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n250 2.0.0 queued\r\n221 2.0.0 bye\r\n"

func TestServerActions(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	close(released)
	done := 0
	tests := []struct {
		name   string
		phase  Phase
		action Action
		said   string
		kept   int
		all    int
	}{
		{"normal", PhaseDot, Normal(), normally, 1, 1},
		{"drip", PhaseDot, DripNormal(0), normally, 1, 1},
		{"reply", PhaseDot, Reply("451-4.3.0 a", "451 4.3.0 b"),
			strings.Replace(normally, "250 2.0.0 queued", "451-4.3.0 a\r\n451 4.3.0 b", 1), 0, 1},
		{"half a reply", PhaseDot, Then(Raw("250 ok"), Close()), normally[:strings.Index(normally, "250 2.0.0")] + "250 ok", 0, 1},
		{"kept in silence", PhaseDot, Then(Keep(), Close()), normally[:strings.Index(normally, "250 2.0.0")], 1, 1},
		{"MAIL refused", PhaseMail, Reply("550 no"),
			"220 fake.test ESMTP smtptest\r\n250 fake.test\r\n550 no\r\n503 5.5.1 MAIL first\r\n503 5.5.1 MAIL first\r\n500 5.5.1 unknown\r\n500 5.5.1 unknown\r\n221 2.0.0 bye\r\n", 0, 0},
		{"354 without recipients", PhaseRcpt, Reply("550 no"),
			"220 fake.test ESMTP smtptest\r\n250 fake.test\r\n250 2.1.0 ok\r\n550 no\r\n554 5.5.1 no valid recipients\r\n500 5.5.1 unknown\r\n500 5.5.1 unknown\r\n221 2.0.0 bye\r\n", 0, 0},
		{"banner", PhaseBanner, Then(Repeat("554 x\r\n", 3), Close()), "554 x\r\n554 x\r\n554 x\r\n", 0, 0},
		{"released", PhaseMail, Then(StallUntil(released), Do(func() { done++ }), Normal()), normally, 1, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, Config{Extensions: []string{}})
			s.On(test.phase, Always(test.action))
			if said := talk(t, dial(t, s), oneMessage...); said != test.said {
				t.Errorf("said %q\nwant %q", said, test.said)
			}
			if kept, all := len(s.Messages()), len(s.Transactions()); kept != test.kept || all != test.all {
				t.Errorf("kept %d of %d, want %d of %d", kept, all, test.kept, test.all)
			}
		})
	}
	t.Cleanup(func() {
		if done != 1 {
			t.Errorf("Do was called %d times", done)
		}
	})
}

func TestServerReset(t *testing.T) {
	t.Parallel()
	s := Start(t, Config{})
	s.On(PhaseHello, Always(Reset()))
	conn := dial(t, s)
	if _, err := io.WriteString(conn, "EHLO c\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("err %v, want a reset", err)
	}
}

func TestServerHooks(t *testing.T) {
	t.Parallel()
	count := func(hook Hook, calls int) (acted []int) {
		for i := range calls {
			if len(hook(Session{}).steps) > 0 {
				acted = append(acted, i+1)
			}
		}
		return acted
	}
	for name, test := range map[string]struct {
		hook Hook
		want []int
	}{
		"always": {Always(Close()), []int{1, 2, 3, 4}},
		"once":   {Once(Close()), []int{1}},
		"times":  {Times(2, Close()), []int{1, 2}},
		"nth":    {Nth(3, Close()), []int{3}},
	} {
		if got := count(test.hook, 4); !slices.Equal(got, test.want) {
			t.Errorf("%s acted at %v", name, got)
		}
	}
}

// TestServerStops: Close ends sessions that stall, and waits for them.
func TestServerStops(t *testing.T) {
	t.Parallel()
	s := Start(t, Config{})
	s.On(PhaseBanner, Always(Stall()))
	conn := dial(t, s)
	s.WaitPhase(t, PhaseBanner, 1)
	s.Close()
	if s.OpenConns() != 0 {
		t.Error("a session is left")
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d octets", n)
	}
}

func TestServerDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		s.On(PhaseBanner, Always(Then(Delay(time.Hour), Drip("220 x\r\n", time.Minute))))
		ours, theirs := net.Pipe()
		go s.ServeConn(theirs)
		began := time.Now()
		if _, err := bufio.NewReader(ours).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Hour+6*time.Minute {
			t.Errorf("took %v", took)
		}
		s.Close()
	})
}

// TestServerForeignClient: the standard library's client understands the server.
func TestServerForeignClient(t *testing.T) {
	t.Parallel()
	ca := NewCA(t)
	s := Start(t, Config{TLS: ca.ServerConfig(t, "127.0.0.1"), Users: map[string]string{"u": "p"}, AuthOnly: true})
	c, err := smtp.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := c.Extension("AUTH"); ok {
		t.Error("AUTH in clear")
	}
	if err := c.StartTLS(ca.ClientConfig("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", "u", "wrong", "127.0.0.1")); err == nil {
		t.Error("wrong password taken")
	}
	_ = c.Close()
	err = smtp.SendMail(s.Addr(), nil, "a@b", []string{"c@d"}, []byte("x\r\n"))
	if err == nil {
		t.Error("mail taken without authentication")
	}
	if n := len(s.Transactions()); n != 0 {
		t.Errorf("%d transactions", n)
	}
}

func TestServerOtherAddress(t *testing.T) {
	t.Parallel()
	s := Start(t, Config{Addr: "127.0.0.77:0", DiscardBodies: true})
	if s.Host() != "127.0.0.77" || s.Port() == 0 {
		t.Errorf("listens on %s", s.Addr())
	}
	talk(t, dial(t, s), oneMessage...)
	if m := s.WaitMessages(t, 1)[0]; m.Data != nil || m.Size != 3 {
		t.Errorf("got %+v", m)
	}
	if s.Conns() != 1 || s.PeakConns() != 1 {
		t.Errorf("%d connections, %d at a time", s.Conns(), s.PeakConns())
	}
}
