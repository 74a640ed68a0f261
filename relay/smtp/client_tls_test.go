package smtp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
)

func TestA3ClientInjection(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	s := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "fake.test")})
	s.On(smtptest.PhaseStartTLS, smtptest.Always(smtptest.Raw("220 go\r\n250-AUTH LOGIN\r\n250 X\r\n")))
	c := connect(t, s)
	err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test"))
	if !errors.Is(err, ErrInjection) {
		t.Errorf("err %v", err)
	}
	if _, offered := c.Extension("AUTH"); offered || c.Usable() {
		t.Error("the connection goes on")
	}
	s.WaitIdle(t)
}

func TestA3ClientForgetsClearExtensions(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	s := smtptest.Start(t, smtptest.Config{
		TLS:           ca.ServerConfig(t, "fake.test"),
		Extensions:    []string{"AUTH PLAIN", "SIZE 1000"},
		ExtensionsTLS: []string{"8BITMIME", "SIZE 2000"},
	})
	c := connect(t, s)
	if want := []string{"PLAIN"}; !cmp.Equal(c.AuthMechanisms(), want) {
		t.Fatalf("in clear: %v", c.AuthMechanisms())
	}
	if err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test")); err != nil {
		t.Fatal(err)
	}
	if got := c.AuthMechanisms(); got != nil {
		t.Errorf("AUTH offered in clear counts under TLS: %v", got)
	}
	if size, _ := c.Extension("size"); size != "2000" {
		t.Errorf("SIZE %q", size)
	}
	if _, again := c.Extension("STARTTLS"); again {
		t.Error("STARTTLS is still offered")
	}
	if state := c.TLS(); state == nil || state.ServerName != "fake.test" {
		t.Errorf("TLS state %+v", state)
	}
	for range 3 { // tickets come between these
		mustDeliver(t, c, 2)
		if !c.Usable() {
			t.Fatal("not usable after a delivery")
		}
	}
	for _, m := range s.WaitMessages(t, 3) {
		if !m.TLS || m.Conn != 1 || string(m.Data) != testMessage {
			t.Errorf("got %+v", m)
		}
	}
	if err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test")); err == nil {
		t.Error("STARTTLS twice")
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestA3ClientTLSFails: whatever goes wrong with TLS is an error, and nothing of a
// message is said in clear.
func TestA3ClientTLSFails(t *testing.T) {
	t.Parallel()
	ca, other := smtptest.NewCA(t), smtptest.NewCA(t)
	good := ca.ServerConfig(t, "fake.test")
	long := time.Now().Add(-time.Hour)
	tests := []struct {
		name   string
		server *tls.Config
		phase  smtptest.Phase
		action smtptest.Action
		check  func(error) bool
		usable bool
	}{
		{"not offered", nil, "", smtptest.Action{}, hasCode(502), true},
		{"454", good, smtptest.PhaseStartTLS, smtptest.Reply("454 4.7.0 later"), hasCode(454), true},
		{"421", good, smtptest.PhaseStartTLS, smtptest.Reply("421 4.3.2 bye"), hasCode(421), false},
		{"250 is not 220", good, smtptest.PhaseStartTLS, smtptest.Reply("250 ok"), isErr(ErrOutOfStep), false},
		{"334", good, smtptest.PhaseStartTLS, smtptest.Reply("334 ok"), isErr(ErrOutOfStep), false},
		{"unknown authority", other.ServerConfig(t, "fake.test"), "", smtptest.Action{}, asErr[*tls.CertificateVerificationError], false},
		{"other name", ca.ServerConfig(t, "other.test"), "", smtptest.Action{}, asErr[x509.HostnameError], false},
		{"expired", ca.LeafBetween(t, long.Add(-time.Hour), long, "fake.test").ServerConfig(), "", smtptest.Action{}, asErr[x509.CertificateInvalidError], false},
		{"clear text instead", good, smtptest.PhaseHandshake, smtptest.Reply("250-AUTH LOGIN", "250 X"), isNoTLS, false},
		{"close", good, smtptest.PhaseHandshake, smtptest.Close(), asErr[*StageError], false},
		{"reset", good, smtptest.PhaseHandshake, smtptest.Reset(), asErr[*StageError], false},
		{"stall", good, smtptest.PhaseHandshake, smtptest.Stall(), isErr(os.ErrDeadlineExceeded), false},
		{"EHLO refused under TLS", good, smtptest.PhaseHello, smtptest.Reply("450 4.0.0 no"), hasCode(450), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{TLS: test.server})
			cfg := testConfig()
			if test.name == "stall" {
				cfg.Timeouts.TLS = 50 * time.Millisecond
			}
			c := NewClient(dialServer(t, s), cfg)
			defer c.Close()
			if err := c.Greet(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.On(test.phase, smtptest.Always(test.action))
			err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test"))
			var stage *StageError
			if !errors.As(err, &stage) || !test.check(err) {
				t.Errorf("err %v", err)
			}
			if c.Usable() != test.usable {
				t.Errorf("usable %v", c.Usable())
			}
			if n := s.Reached(smtptest.PhaseMail); n != 0 {
				t.Errorf("MAIL was said")
			}
		})
	}
}

func hasCode(code int) func(error) bool {
	return func(err error) bool {
		var stage *StageError
		return errors.As(err, &stage) && stage.Reply.Code == code
	}
}

// isNoTLS is what clear text in place of a handshake comes to: it may arrive with
// the reply to STARTTLS or after it.
func isNoTLS(err error) bool {
	return errors.Is(err, ErrInjection) || asErr[tls.RecordHeaderError](err)
}

func isErr(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func asErr[E error](err error) bool {
	var target E
	return errors.As(err, &target)
}

func TestClientImplicitTLS(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	s := smtptest.Start(t, smtptest.Config{
		TLS: ca.ServerConfig(t, "127.0.0.1"), Implicit: true, AuthOnly: true, Users: map[string]string{"u": "p"},
	})
	conn := tls.Client(dialServer(t, s), ca.ClientConfig("127.0.0.1"))
	c := NewClient(conn, testConfig())
	if c.TLS() != nil {
		t.Error("TLS before the handshake")
	}
	if err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.TLS() == nil {
		t.Error("no TLS state")
	}
	if err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p")); err != nil {
		t.Fatal(err)
	}
	mustDeliver(t, c, 1)
	if m := s.WaitMessages(t, 1)[0]; !m.TLS || m.User != "u" {
		t.Errorf("got %+v", m)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestClientSeesClosedTLS: a server that says goodbye in TLS while the connection
// is idle is found out before the next message.
func TestClientSeesClosedTLS(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	s := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "fake.test")})
	s.On(smtptest.PhaseDot, smtptest.Always(smtptest.Then(smtptest.Normal(), smtptest.Close())))
	c := connect(t, s)
	if err := c.StartTLS(t.Context(), ca.ClientConfig("fake.test")); err != nil {
		t.Fatal(err)
	}
	mustDeliver(t, c, 1)
	s.WaitIdle(t)
	if c.Usable() {
		t.Error("usable although closed")
	}
}
