package peers

import (
	"bufio"
	"io"
	"net"
	"testing"
)

func TestAnswersAreUsedUp(t *testing.T) {
	t.Parallel()
	v, err := startAnswers(Answers{
		"Slow@Example.com": {"451 4.2.0 one", "450 4.2.1 two"},
		"gone@example.com": {"451 4.2.0 wait", "550 5.1.1 gone"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer v.server.Close()
	for _, ask := range []struct{ recipient, want string }{
		{"slow@example.com", "451 4.2.0 one"}, {"SLOW@example.com", "450 4.2.1 two"}, {"slow@example.com", ""},
		{"gone@example.com", "451 4.2.0 wait"}, {"gone@example.com", "550 5.1.1 gone"}, {"gone@example.com", "550 5.1.1 gone"},
		{"other@example.com", ""},
	} {
		if got := v.next(ask.recipient); got != ask.want {
			t.Errorf("%s: %q, want %q", ask.recipient, got, ask.want)
		}
	}
	if n := v.count("slow@EXAMPLE.com"); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

func TestAnswersSpeakBothProtocols(t *testing.T) {
	t.Parallel()
	v, err := startAnswers(Answers{"a=b@example.com": {"451 4.2.0 one", "451 4.2.0 two"}, "l=ate@example.com": {"451 4.2.0 three"}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.server.Close()
	dial := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", loopback(v.server.Addr().Port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn, bufio.NewReader(conn)
	}

	policy, answers := dial()
	for _, want := range []string{"action=451 4.2.0 one\n", "action=451 4.2.0 two\n", "action=DUNNO\n"} {
		if _, err := io.WriteString(policy, "request=smtpd_access_policy\nrecipient=a=b@example.com\nsender=\n\n"); err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{want, "\n"} {
			if got, err := answers.ReadString('\n'); got != line || err != nil {
				t.Fatalf("Postfix hears %q, want %q (%v)", got, line, err)
			}
		}
	}
	for _, want := range []string{"451 4.2.0 three", ""} {
		socket, answer := dial()
		if _, err := io.WriteString(socket, "exim=l=ate@example.com\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(answer); string(got) != want || err != nil {
			t.Fatalf("Exim hears %q, want %q (%v)", got, want, err)
		}
	}
}
