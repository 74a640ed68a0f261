package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
)

// patient are timeouts for tests on a machine with other things to do; one that wants a
// timeout sets it.
func patient() Timeouts {
	const long = 3 * time.Minute
	return Timeouts{Greeting: long, Command: long, DataInit: long, DataBlock: long, DataDone: long, TLS: long, Quit: long}
}

func testConfig() ClientConfig {
	return ClientConfig{Hello: "client.test", Timeouts: patient()}
}

func dialServer(t testing.TB, s *smtptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// connect returns a client that has said EHLO.
func connect(t testing.TB, s *smtptest.Server) *Client {
	t.Helper()
	c := NewClient(dialServer(t, s), testConfig())
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

const testMessage = "Subject: test\r\n\r\n.leading dot\r\n..two\r\nlast\r\n"

// transaction is testMessage from a@a.test to recipients r0, r1, … at b.test.
func transaction(recipients int) Transaction {
	tx := Transaction{
		Mail: MailCommand{From: Address{"a", "a.test"}},
		Body: strings.NewReader(testMessage),
		Size: int64(len(testMessage)),
	}
	for i := range recipients {
		tx.Rcpts = append(tx.Rcpts, RcptCommand{To: Address{fmt.Sprintf("r%d", i), "b.test"}})
	}
	return tx
}

// codes returns the codes of a result's replies, 0 for none.
func codes(r Result) []int {
	var out []int
	for _, reply := range r.Replies {
		out = append(out, reply.Code)
	}
	return out
}

// mustDeliver sends a message and fails unless all its recipients got it.
func mustDeliver(t *testing.T, c *Client, recipients int) {
	t.Helper()
	res := c.Send(t.Context(), transaction(recipients))
	if res.Err != nil || !res.DotSent {
		t.Fatalf("err %v, dot sent %v", res.Err, res.DotSent)
	}
	for i, reply := range res.Replies {
		if !reply.IsPositive() {
			t.Fatalf("recipient %d: %v", i, reply)
		}
	}
}

func TestClientSession(t *testing.T) {
	t.Parallel()
	for _, extensions := range [][]string{nil, {}} {
		s := smtptest.Start(t, smtptest.Config{Extensions: extensions})
		c := connect(t, s)
		for range 3 {
			mustDeliver(t, c, 2)
			if !c.Usable() {
				t.Fatal("not usable after a delivery")
			}
		}
		if err := c.Quit(t.Context()); err != nil {
			t.Error(err)
		}
		if c.Usable() {
			t.Error("usable after QUIT")
		}
		for _, m := range s.WaitMessages(t, 3) {
			if string(m.Data) != testMessage {
				t.Errorf("data %q", m.Data)
			}
			if m.From() != "a@a.test" || !cmp.Equal(m.To(), []string{"r0@b.test", "r1@b.test"}) || m.Conn != 1 || m.Hello != "client.test" {
				t.Errorf("envelope %+v", m)
			}
		}
	}
}

func TestClientHello(t *testing.T) {
	t.Parallel()
	reply := func(lines ...string) smtptest.Hook { return smtptest.Always(smtptest.Reply(lines...)) }
	tests := []struct {
		name   string
		hook   smtptest.Hook
		want   map[string]string
		broken int // code of the refusal
	}{
		{"keywords in any case", reply("250-x", "250-Size 10", "250-pipelining", "250 X-Own a  b"),
			map[string]string{"SIZE": "10", "PIPELINING": "", "X-OWN": "a  b"}, 0},
		{"AUTH in both forms", reply("250-x", "250-AUTH=LOGIN PLAIN", "250 AUTH PLAIN XOAUTH2"),
			map[string]string{"AUTH": "LOGIN PLAIN PLAIN XOAUTH2"}, 0},
		{"only the greeting", reply("250 x"), map[string]string{}, 0},
		{"empty lines", reply("250-x", "250-", "250 DSN"), map[string]string{"DSN": ""}, 0},
		{"HELO after 5yz", smtptest.Once(smtptest.Reply("502 5.5.1 what?")), nil, 0},
		{"both refused", reply("550 5.7.1 go away"), nil, 550},
		{"later", reply("450 4.7.1 not now"), nil, 450},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			s.On(smtptest.PhaseHello, test.hook)
			c := NewClient(dialServer(t, s), testConfig())
			defer c.Close()
			err := c.Greet(t.Context())
			var stage *StageError
			if errors.As(err, &stage) != (test.broken != 0) || test.broken != 0 && stage.Reply.Code != test.broken {
				t.Fatalf("err %v", err)
			}
			if c.Usable() != (err == nil) {
				t.Errorf("usable %v after %v", c.Usable(), err)
			}
			if !cmp.Equal(c.extensions, test.want) {
				t.Error(cmp.Diff(test.want, c.extensions))
			}
		})
	}
}

func TestClientAuthMechanisms(t *testing.T) {
	t.Parallel()
	c := &Client{extensions: map[string]string{"AUTH": "login PLAIN PLAIN  xoauth2"}}
	if want := []string{"LOGIN", "PLAIN", "XOAUTH2"}; !cmp.Equal(c.AuthMechanisms(), want) {
		t.Errorf("got %v", c.AuthMechanisms())
	}
}

func TestClientHelloName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "a b", "a\r\nMAIL FROM:<x@y>", "ü.test", "a\x00"} {
		s := smtptest.Start(t, smtptest.Config{})
		c := NewClient(dialServer(t, s), ClientConfig{Hello: name})
		if err := c.Greet(t.Context()); err == nil {
			t.Errorf("%q was sent as our name", name)
		}
		if n := s.Reached(smtptest.PhaseHello); n != 0 {
			t.Errorf("%q: EHLO was sent", name)
		}
	}
}

// lateName is LOGIN as some servers want it: nothing with AUTH, the name and the
// password when asked.
type lateName struct{ user, password string }

func (l lateName) Start() (string, []byte, error) { return "LOGIN", nil, nil }

func (l lateName) Next(challenge []byte) ([]byte, error) {
	switch string(challenge) {
	case "Username:":
		return []byte(l.user), nil
	case "Password:":
		return []byte(l.password), nil
	}
	return nil, errors.New("unknown challenge")
}

// longToken has an initial response that does not fit into a line.
type longToken struct{ *lateName }

func (longToken) Start() (string, []byte, error) {
	return "PLAIN", append([]byte("\x00u\x00"), bytes.Repeat([]byte("p"), MaxAuthLine)...), nil
}

func TestClientAuth(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("p", MaxAuthLine)
	tests := []struct {
		name string
		mech SASL
		want string // in the error; "" for success
	}{
		{"PLAIN", sasl.NewPlainClient("", "u", "p"), ""},
		{"LOGIN", sasl.NewLoginClient("u", "p"), ""},
		{"LOGIN without initial response", lateName{"u", "p"}, ""},
		{"wrong password", sasl.NewPlainClient("", "u", "x"), "auth: 535 5.7.8 bad credentials"},
		{"unknown mechanism", sasl.NewExternalClient("u"), "auth: 504 5.5.4 unknown mechanism"},
		{"mechanism that breaks the line", sasl.NewAnonymousClient("x"), "auth: 504"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Users: map[string]string{"u": "p"}})
			c := connect(t, s)
			err := c.Auth(t.Context(), test.mech)
			if err == nil != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("err %v, want %q", err, test.want)
			}
			if !c.Usable() {
				t.Fatal("not usable afterwards")
			}
			if err == nil {
				mustDeliver(t, c, 1)
				if got := s.WaitMessages(t, 1)[0].User; got != "u" {
					t.Errorf("authenticated as %q", got)
				}
			}
		})
	}
	t.Run("long initial response", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{Users: map[string]string{"u": long}})
		s.On(smtptest.PhaseAuth, func(got smtptest.Session) smtptest.Action {
			if got.Command != "AUTH PLAIN" {
				t.Errorf("said %.40q", got.Command)
			}
			return smtptest.Action{}
		})
		if err := connect(t, s).Auth(t.Context(), longToken{}); err != nil {
			t.Error(err)
		}
	})
}

// TestClientAuthCancelled: our side gives up with "*", and the connection stays in
// step.
func TestClientAuthCancelled(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		action smtptest.Action
		want   string
	}{
		{"challenge is not base64", smtptest.Reply("334 ***"), `malformed reply: challenge is not base64: "***"`},
		{"unexpected challenge", smtptest.Reply("334 "), "unexpected server challenge"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Users: map[string]string{"u": "p"}})
			s.On(smtptest.PhaseAuth, smtptest.Once(test.action))
			c := connect(t, s)
			err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err %v, want %q", err, test.want)
			}
			if err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p")); err != nil {
				t.Errorf("second try: %v", err)
			}
		})
	}
	t.Run("challenges without end", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{Users: map[string]string{}})
		endless := func(got smtptest.Session) smtptest.Action {
			if got.Command == "*" {
				return smtptest.Reply("501 5.7.0 well")
			}
			return smtptest.Reply("334 VXNlcm5hbWU6")
		}
		s.On(smtptest.PhaseAuth, endless)
		s.On(smtptest.PhaseAuthNext, endless)
		err := connect(t, s).Auth(t.Context(), lateName{"u", "p"})
		if err == nil || !strings.Contains(err.Error(), "too many challenges") {
			t.Errorf("err %v", err)
		}
		if n := s.Reached(smtptest.PhaseAuthNext); n != maxAuthRounds+1 {
			t.Errorf("%d continuation lines", n)
		}
	})
}

func TestClientAuthMechanismName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"PLAIN": true, "SCRAM-SHA-256": true, "": false, "plain": false, "A B": false, "A\r\nB": false} {
		if got := isMechanism(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestClientClosed(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	c := connect(t, s)
	_ = c.Close()
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	res := c.Send(t.Context(), transaction(1))
	if !errors.Is(res.Err, net.ErrClosed) || res.DotSent {
		t.Errorf("Send: %+v", res)
	}
	if err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Auth: %v", err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Errorf("Quit: %v", err)
	}
	if res := NewClient(dialServer(t, s), testConfig()).Send(t.Context(), transaction(1)); res.Err == nil {
		t.Error("a message was sent without EHLO")
	}
}

// TestClientCancelled: a context that ends interrupts every step immediately.
func TestClientCancelled(t *testing.T) {
	t.Parallel()
	phases := map[smtptest.Phase]string{
		smtptest.PhaseBanner: "greeting", smtptest.PhaseHello: "ehlo", smtptest.PhaseMail: "mail",
		smtptest.PhaseRcpt: "rcpt", smtptest.PhaseData: "data", smtptest.PhaseBody: "body", smtptest.PhaseDot: "dot",
	}
	for phase, stage := range phases {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: []string{}}) // no PIPELINING: one phase at a time
			s.On(phase, smtptest.Always(smtptest.Stall()))
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("node stops")
			go func() {
				s.WaitPhase(t, phase, 1)
				cancel(cause)
			}()
			c := NewClient(dialServer(t, s), testConfig())
			err := c.Greet(ctx)
			if err == nil {
				tx := transaction(1)
				if phase == smtptest.PhaseBody { // more than the sockets hold
					body := strings.Repeat("x\r\n", 8<<20)
					tx.Body, tx.Size = strings.NewReader(body), int64(len(body))
				}
				res := c.Send(ctx, tx)
				if err = res.Err; res.DotSent != (phase == smtptest.PhaseDot) {
					t.Errorf("dot sent: %v", res.DotSent)
				}
			}
			var at *StageError
			if !errors.Is(err, cause) || !errors.As(err, &at) {
				t.Fatalf("err %v, want %q", err, cause)
			}
			// The server is in the body as soon as it has said 354.
			if early := stage == "body" && at.Stage == StageData; string(at.Stage) != stage && !early {
				t.Errorf("err %v, want it at %s", err, stage)
			}
			if c.Usable() {
				t.Error("usable afterwards")
			}
		})
	}
}
