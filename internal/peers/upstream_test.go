package peers

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// upstreams are the servers that can stand behind us.
var upstreams = map[string]func(testing.TB, UpstreamConfig) *Upstream{
	"postfix": StartPostfix,
	"exim":    StartExim,
}

func arrival(t *testing.T, u *Upstream) Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m, err := u.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sendThrough(t *testing.T, u *Upstream, to ...string) (string, error) {
	t.Helper()
	return Send(t, Swaks, Settings{
		Host: u.Host, Port: u.Port, TLS: StartTLS, CAFile: u.CAFile, User: u.User, Password: u.Password,
		From: testUser, To: to, Message: writeMail(t),
	})
}

func TestUpstream(t *testing.T) {
	t.Parallel()
	for name, start := range upstreams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := start(t, UpstreamConfig{User: "relay@example.com", Password: "s3cret word", Answers: Answers{
				"Late@example.net": {"451 4.2.0 Greylisted, come again"},
				"gone@example.net": {"550 5.1.1 No such mailbox"},
			}})
			t.Run("accepts", func(t *testing.T) { upstreamAccepts(t, u) })
			t.Run("defers once", func(t *testing.T) { upstreamDefers(t, u) })
			t.Run("refuses", func(t *testing.T) { upstreamRefuses(t, u) })
			t.Run("wants AUTH", func(t *testing.T) { upstreamWantsAuth(t, u) })
		})
	}
}

func upstreamAccepts(t *testing.T, u *Upstream) {
	if out, err := sendThrough(t, u, "bob@example.net"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := arrival(t, u)
	if m.From != testUser || len(m.To) != 1 || m.To[0] != "bob@example.net" {
		t.Errorf("arrived as %+v", m)
	}
	sameMail(t, m.Data)
	if !bytes.Contains(m.Data, []byte("ESMTPSA")) && !bytes.Contains(m.Data, []byte("esmtpsa")) {
		t.Errorf("the server did not see TLS and AUTH:\n%s", m.Data)
	}
}

func upstreamDefers(t *testing.T, u *Upstream) {
	out, err := sendThrough(t, u, "late@example.net")
	if err == nil || !strings.Contains(out, "451 4.2.0") || !strings.Contains(out, "come again") {
		t.Fatalf("the first time it should be deferred: %v\n%s", err, out)
	}
	if out, err := sendThrough(t, u, "late@example.net"); err != nil {
		t.Fatalf("the second time it should be accepted: %v\n%s", err, out)
	}
	if m := arrival(t, u); len(m.To) != 1 || m.To[0] != "late@example.net" {
		t.Errorf("arrived as %+v", m)
	}
	if n := u.Asked("late@example.net"); n != 2 {
		t.Errorf("asked %d times, want 2", n)
	}
}

func upstreamRefuses(t *testing.T, u *Upstream) {
	for range 2 {
		out, err := sendThrough(t, u, "gone@example.net")
		if err == nil || !strings.Contains(out, "550 5.1.1") || !strings.Contains(out, "No such mailbox") {
			t.Fatalf("it should be refused: %v\n%s", err, out)
		}
	}
}

func upstreamWantsAuth(t *testing.T, u *Upstream) {
	stranger := *u
	stranger.Password = "wrong"
	out, err := sendThrough(t, &stranger, "bob@example.net")
	if err == nil || !strings.Contains(out, "535") {
		t.Fatalf("a wrong password should be refused with 535: %v\n%s", err, out)
	}
}
