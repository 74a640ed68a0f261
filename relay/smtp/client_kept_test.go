package smtp

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"postern/internal/smtptest"
)

// A server may say 64 KiB for each recipient. What is kept of that is bounded; EHLO is read whole.
func TestKeptText(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	s.On(smtptest.PhaseHello, smtptest.Always(smtptest.Reply("250-peer\r\n"+strings.Repeat("250-X"+strings.Repeat("x", 500)+"\r\n", 20)+"250 SIZE 1000000")))
	s.On(smtptest.PhaseRcpt, smtptest.Always(smtptest.Reply(strings.Repeat("550-5.1.1 "+strings.Repeat("ö", 250)+"\r\n", 100)+"550 5.1.1 end")))
	c := connect(t, s)
	if _, ok := c.Extension("SIZE"); !ok {
		t.Error("the end of the reply to EHLO was not read")
	}
	res := c.Send(t.Context(), transaction(3))
	for _, r := range res.Replies {
		if n := len(r.Text); n > keptText+len("…") || n < keptText-10 || !utf8.ValidString(r.Text) || !strings.HasSuffix(r.Text, "…") {
			t.Errorf("%d octets are kept of %d %q", n, r.Code, Excerpt(r.Text))
		}
	}
}

// What is kept of a text ends in a part of the password.
func TestKeptSecret(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{Users: map[string]string{}})
	s.On(smtptest.PhaseAuth, smtptest.Always(smtptest.Reply("535 "+strings.Repeat("x", keptText-5)+password)))
	err := connect(t, s).Auth(t.Context(), sasl.NewPlainClient("", "alice@a.test", password))
	if err == nil || len(err.Error()) < keptText-10 || strings.Contains(err.Error(), password[:1]) {
		t.Errorf("%v", err)
	}
}
