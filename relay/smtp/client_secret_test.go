package smtp

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"

	"postern/internal/smtptest"
)

const (
	password = "Tr0ub4dor&3 x"
	token    = "eyJ0eXAiOiJKV1Qi.LCJhbGciOiJSUzI1NiJ9-_x"
)

// bearer is XOAUTH2 or OAUTHBEARER.
type bearer struct{ mech, initial string }

func (b bearer) Start() (string, []byte, error)   { return b.mech, []byte(b.initial), nil }
func (b bearer) Next(text []byte) ([]byte, error) { return []byte{1}, nil }

// A server that repeats what it refuses, in each of the ways that servers have.
func TestAuthSecretsAreMasked(t *testing.T) {
	t.Parallel()
	mechanisms := map[string]func() SASL{
		"PLAIN":   func() SASL { return sasl.NewPlainClient("", "alice@a.test", password) },
		"LOGIN":   func() SASL { return lateName{"alice@a.test", password} },
		"XOAUTH2": func() SASL { return bearer{"XOAUTH2", "user=alice@a.test\x01auth=Bearer " + token + "\x01\x01"} },
		"OAUTHBEARER": func() SASL {
			return bearer{"OAUTHBEARER", "n,a=alice@a.test,\x01host=a\x01auth=Bearer " + token + "\x01\x01"}
		},
	}
	decoded := func(line string) string {
		text, _ := base64.StdEncoding.DecodeString(line[strings.LastIndexByte(line, ' ')+1:])
		return string(text)
	}
	echoes := map[string]func(line string) smtptest.Action{
		"line": func(line string) smtptest.Action { return smtptest.Reply(`500 5.5.1 unrecognized: "` + line + `"`) },
		"multiline": func(line string) smtptest.Action {
			return smtptest.Reply("535-5.7.8 no:", "535-5.7.8 "+line, "535 5.7.8 bye")
		},
		"two lines": func(line string) smtptest.Action {
			return smtptest.Reply("535-5.7.8 "+line[:len(line)-9], "535 5.7.8 "+line[len(line)-9:])
		},
		"cut":         func(line string) smtptest.Action { return smtptest.Reply("500 " + line[:len(line)-3] + "...") },
		"capitals":    func(line string) smtptest.Action { return smtptest.Reply("500 " + strings.ToUpper(line)) },
		"decoded":     func(line string) smtptest.Action { return smtptest.Reply("535 no " + decoded(line) + " here") },
		"closing":     func(line string) smtptest.Action { return smtptest.Reply("421 4.7.0 " + line) },
		"out of step": func(line string) smtptest.Action { return smtptest.Reply("354 " + line) },
		"challenge":   func(line string) smtptest.Action { return smtptest.Reply("334 ?" + line) },
		"malformed":   func(line string) smtptest.Action { return smtptest.Raw("what is " + line + "\r\n") },
		"malformed, decoded": func(line string) smtptest.Action {
			text := decoded(line) // its secret is where the excerpt ends
			at := max(strings.Index(text, password), strings.Index(text, token))
			return smtptest.Raw(strings.Repeat("x", excerptSize-10-at) + text + "\r\n")
		},
		"line end": func(line string) smtptest.Action { return smtptest.Raw("500 " + line + "\n") },
	}
	for mech, exchange := range mechanisms {
		for name, echo := range echoes {
			t.Run(mech+", "+name, func(t *testing.T) {
				t.Parallel()
				s := smtptest.Start(t, smtptest.Config{Users: map[string]string{}, Tokens: func(string, string) bool { return false }})
				repeats := func(got smtptest.Session) smtptest.Action {
					if got.Command == "*" || mech == "LOGIN" && (got.Command == "AUTH LOGIN" || decoded(got.Command) == "alice@a.test") {
						return smtptest.Action{}
					}
					return echo(got.Command)
				}
				s.On(smtptest.PhaseAuth, repeats)
				s.On(smtptest.PhaseAuthNext, repeats)
				var heard []string
				cfg := testConfig()
				cfg.Heard = func(stage Stage, reply Reply) { heard = append(heard, fmt.Sprint(stage, " ", reply)) }
				c := NewClient(dialServer(t, s), cfg)
				if err := c.Greet(t.Context()); err != nil {
					t.Fatal(err)
				}
				err := c.Auth(t.Context(), exchange())
				if err == nil {
					t.Fatal("it was taken")
				}
				said := err.Error()
				if _, ok := errors.AsType[*StageError](err); !ok || !strings.Contains(said, hiding) {
					t.Errorf("%v", err)
				}
				checkMasked(t, append(heard, said)...)
			})
		}
	}
}

// checkMasked: no piece of a secret, plain or as it is sent, is in texts.
func checkMasked(t *testing.T, texts ...string) {
	t.Helper()
	for _, secret := range []string{password, token,
		base64.StdEncoding.EncodeToString([]byte(password)),
		base64.StdEncoding.EncodeToString([]byte("\x00alice@a.test\x00" + password)),
		base64.StdEncoding.EncodeToString([]byte("user=alice@a.test\x01auth=Bearer " + token + "\x01\x01")),
		base64.StdEncoding.EncodeToString([]byte("n,a=alice@a.test,\x01host=a\x01auth=Bearer " + token + "\x01\x01"))} {
		for i := 0; i+leastEcho <= len(secret); i++ {
			for _, text := range texts {
				if piece := secret[i : i+leastEcho]; strings.Contains(strings.ToLower(text), strings.ToLower(piece)) {
					t.Fatalf("%q has %q", text, piece)
				}
			}
		}
	}
}

// The server took the password, and repeats it afterwards.
func TestSecretsAreMaskedAfterAuth(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{Users: map[string]string{"alice@a.test": password}})
	s.On(smtptest.PhaseMail, smtptest.Always(smtptest.Reply("550 5.7.1 alice@a.test with Tr0ub4dor&3 x may not send as a@a.test")))
	c := connect(t, s)
	if err := c.Auth(t.Context(), sasl.NewPlainClient("", "alice@a.test", password)); err != nil {
		t.Fatal(err)
	}
	res := c.Send(t.Context(), transaction(1))
	if got := res.Replies[0].String(); got != "550 5.7.1 alice@a.test with *** may not send as a@a.test" {
		t.Errorf("%q", got)
	}
}

func TestMasked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ password, text, want string }{
		{"p", "p is no password (p)", "*** is no password (***)"},
		{"pas", "pas password", "*** password"},
		{"pass", "pass password", "*** ***word"},
		{"Pässwörd!", "a Pässwörd! b", "a *** b"},
		{"a\tb\x01c", "it was a b?c.", "it was ***."},
		{"correct horse battery", "no correct\n horse battery", "no ***\n"},
		{"correct horse battery", "no correct ho", "no ***"},
		{"auth=x yz", "auth=x yz", "***"},
		{"secret", "alice@a.test: nothing of it\nhere", "alice@a.test: nothing of it\nhere"},
		{"secret", "", ""},
		{"", "as it was", "as it was"},
	} {
		c := &Client{}
		c.keep("PLAIN", 0, []byte("\x00alice@a.test\x00"+test.password))
		if got := c.Masked(test.text); got != test.want {
			t.Errorf("%q in %q: %q, want %q", test.password, test.text, got, test.want)
		}
	}
	c := &Client{}
	c.keep("X-OTHER", 0, []byte("one\x00two\x01three"))
	if got := c.Masked("one, two, three, four"); got != "***, ***, ***, four" {
		t.Errorf("an unknown mechanism: %q", got)
	}
}
