package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
)

// verifierFunc is a Verifier made of a function.
type verifierFunc func(ctx context.Context, name, password string, peer Peer) (Identity, error)

func (f verifierFunc) Verify(ctx context.Context, name, password string, peer Peer) (Identity, error) {
	return f(ctx, name, password, peer)
}

// exchange is a script of responses and what came of them.
type exchange struct {
	name      string
	mech      string
	responses []string
	want      error
	user      string // what Verify got, when it was asked
	password  string
}

// absent stands for AUTH without an initial response.
const absent = "\x00absent"

var exchanges = []exchange{
	// PLAIN
	{"plain", "PLAIN", []string{"\x00alice\x00pw"}, nil, "alice", "pw"},
	{"plain in lower case", "plain", []string{"\x00alice\x00pw"}, nil, "alice", "pw"},
	{"plain without initial response", "PLAIN", []string{absent, "\x00alice\x00pw"}, nil, "alice", "pw"},
	{"own authzid", "PLAIN", []string{"alice\x00alice\x00pw"}, nil, "alice", "pw"},
	{"own authzid, other case", "PLAIN", []string{"Alice\x00alice\x00pw"}, nil, "alice", "pw"},
	{"other authzid", "PLAIN", []string{"bob\x00alice\x00pw"}, ErrCredentials, "", ""},
	{"password of one character", "PLAIN", []string{"\x00alice\x00x"}, nil, "alice", "x"},
	{"password of 1,024 octets", "PLAIN", []string{"\x00alice\x00" + strings.Repeat("x", 1024)}, nil, "alice", strings.Repeat("x", 1024)},
	{"password of 1,025 octets", "PLAIN", []string{"\x00alice\x00" + strings.Repeat("x", 1025)}, ErrMalformed, "", ""},
	{"empty response", "PLAIN", []string{""}, ErrMalformed, "", ""},
	{"one NUL alone", "PLAIN", []string{"\x00"}, ErrMalformed, "", ""},
	{"no NUL", "PLAIN", []string{"alice"}, ErrMalformed, "", ""},
	{"one NUL", "PLAIN", []string{"alice\x00pw"}, ErrMalformed, "", ""},
	{"three NULs", "PLAIN", []string{"\x00alice\x00pw\x00"}, ErrMalformed, "", ""},
	{"two NULs alone", "PLAIN", []string{"\x00\x00"}, ErrMalformed, "", ""},
	{"no name", "PLAIN", []string{"\x00\x00pw"}, ErrMalformed, "", ""},
	{"no name but authzid", "PLAIN", []string{"alice\x00\x00pw"}, ErrCredentials, "", ""},
	{"no password", "PLAIN", []string{"\x00alice\x00"}, nil, "alice", ""},
	{"name of 256 octets", "PLAIN", []string{"\x00" + strings.Repeat("a", 256) + "\x00pw"}, ErrMalformed, "", ""},
	{"line feed in the name", "PLAIN", []string{"\x00a\nb\x00pw"}, ErrMalformed, "", ""},
	{"CR in the name", "PLAIN", []string{"\x00a\rb\x00pw"}, ErrMalformed, "", ""},
	{"escape in the name", "PLAIN", []string{"\x00a\x1b[2J\x00pw"}, ErrMalformed, "", ""},
	{"C1 in the name", "PLAIN", []string{"\x00a\u0085b\x00pw"}, ErrMalformed, "", ""},
	{"line feed in the password", "PLAIN", []string{"\x00alice\x00p\nw"}, ErrMalformed, "", ""},
	{"bad UTF-8 in the name", "PLAIN", []string{"\x00a\xff\x00pw"}, ErrMalformed, "", ""},
	{"bad UTF-8 in the password", "PLAIN", []string{"\x00alice\x00p\xff"}, ErrMalformed, "", ""},
	{"again after the end", "PLAIN", []string{"\x00alice\x00pw", "\x00bob\x00pw"}, ErrMalformed, "alice", "pw"},
	// LOGIN
	{"login", "LOGIN", []string{absent, "alice", "pw"}, nil, "alice", "pw"},
	{"login with initial response", "LOGIN", []string{"alice", "pw"}, nil, "alice", "pw"},
	{"login, empty initial response", "LOGIN", []string{""}, ErrMalformed, "", ""},
	{"login, empty name", "LOGIN", []string{absent, ""}, ErrMalformed, "", ""},
	{"login, empty password", "LOGIN", []string{absent, "alice", ""}, nil, "alice", ""},
	{"login, NUL in the name", "LOGIN", []string{absent, "a\x00b"}, ErrMalformed, "", ""},
	{"login, NUL in the password", "LOGIN", []string{absent, "alice", "p\x00w"}, ErrMalformed, "", ""},
	{"login, CRLF in the name", "LOGIN", []string{"a\r\nb"}, ErrMalformed, "", ""},
	{"login, again after the end", "LOGIN", []string{"alice", "pw", "more"}, ErrMalformed, "alice", "pw"},
	{"login, again after a refusal", "LOGIN", []string{"", "alice", "pw"}, ErrMalformed, "", ""},
	// others
	{"unknown", "CRAM-MD5", nil, ErrMechanism, "", ""},
	{"external", "EXTERNAL", nil, ErrMechanism, "", ""},
	{"no mechanism", "", nil, ErrMechanism, "", ""},
}

// run plays the responses and returns the last error.
func (e exchange) run(t testing.TB, v Verifier) (id Identity, done bool, err error) {
	server, identity, err := NewExchange(t.Context(), e.mech, at(home), v)
	if err != nil {
		return Identity{}, false, err
	}
	for _, r := range e.responses {
		response := []byte(r)
		if r == absent {
			response = nil
		}
		if _, done, err = server.Next(response); err != nil && !strings.Contains(e.name, "again") {
			break
		}
	}
	return identity(), done, err
}

// A25 and A12: every way to write an exchange wrongly is an error, and what reaches
// the Verifier is exactly what was sent.
func TestA25Exchanges(t *testing.T) {
	t.Parallel()
	for _, tt := range exchanges {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var user, password string
			calls := 0
			id, done, err := tt.run(t, verifierFunc(func(_ context.Context, n, p string, peer Peer) (Identity, error) {
				calls++
				user, password = n, p
				if peer != at(home) {
					t.Errorf("peer = %s", peer)
				}
				return Identity{UserID: 7, Name: n}, nil
			}))
			if !errors.Is(err, tt.want) || done != (tt.want == nil) {
				t.Errorf("done = %v, err = %v; want %v", done, err, tt.want)
			}
			if user != tt.user || password != tt.password {
				t.Errorf("verified %q %q, want %q %q", user, password, tt.user, tt.password)
			}
			asked := 0
			if tt.user != "" {
				asked = 1
			}
			if calls != asked || (id.UserID == 7) != (asked == 1) {
				t.Errorf("asked %d times, identity %+v", calls, id)
			}
		})
	}
}

func TestExchangeChallenges(t *testing.T) {
	t.Parallel()
	accept := func(context.Context, string, string) error { return nil }
	plain, err := NewServer(t.Context(), "PLAIN", accept)
	must(t, err)
	if c, done, err := plain.Next(nil); c == nil || len(c) != 0 || done || err != nil {
		t.Errorf("PLAIN: %q %v %v", c, done, err)
	}
	login, err := NewServer(t.Context(), "LOGIN", accept)
	must(t, err)
	for _, step := range []struct {
		response  []byte
		challenge string // base64, as printers compare it
	}{{nil, "VXNlcm5hbWU6"}, {[]byte("alice"), "UGFzc3dvcmQ6"}} {
		c, done, err := login.Next(step.response)
		if got := base64.StdEncoding.EncodeToString(c); got != step.challenge || done || err != nil {
			t.Errorf("LOGIN: %q %v %v", c, done, err)
		}
	}
}

func TestExchangePassesErrorsOn(t *testing.T) {
	t.Parallel()
	for _, want := range []error{ErrCredentials, ErrBusy, ErrUnavailable} {
		for _, e := range []exchange{{mech: "PLAIN", responses: []string{"\x00a\x00b"}}, {mech: "LOGIN", responses: []string{"a", "b"}}} {
			id, done, err := e.run(t, verifierFunc(func(context.Context, string, string, Peer) (Identity, error) {
				return Identity{UserID: 9, Name: "somebody"}, want
			}))
			if !errors.Is(err, want) || done || id.UserID != 0 || id.Name != "a" {
				t.Errorf("%s: %+v %v %v, want %v", e.mech, id, done, err, want)
			}
		}
	}
}

func TestExchangeContextReachesVerify(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	server, _, err := NewExchange(ctx, "PLAIN", at(home), verifierFunc(func(ctx context.Context, _, _ string, _ Peer) (Identity, error) {
		return Identity{}, ctx.Err()
	}))
	must(t, err)
	if _, _, err := server.Next([]byte("\x00a\x00b")); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

// The clients of go-sasl complete the exchange.
func TestExchangeWithForeignClients(t *testing.T) {
	t.Parallel()
	for _, client := range []sasl.Client{sasl.NewPlainClient("", "alice", "pw"), sasl.NewLoginClient("alice", "pw")} {
		mech, response, err := client.Start()
		must(t, err)
		server, identity, err := NewExchange(t.Context(), mech, at(home), verifierFunc(func(_ context.Context, n, p string, _ Peer) (Identity, error) {
			if n != "alice" || p != "pw" {
				t.Errorf("%s: verified %q %q", mech, n, p)
			}
			return Identity{Name: n}, nil
		}))
		must(t, err)
		for {
			challenge, done, err := server.Next(response)
			must(t, err)
			if done {
				break
			}
			response, err = client.Next(challenge)
			must(t, err)
		}
		if identity().Name != "alice" {
			t.Errorf("%s: identity %+v", mech, identity())
		}
	}
}

func TestMechanismsAreKnown(t *testing.T) {
	t.Parallel()
	for _, mech := range Mechanisms() {
		if _, err := NewServer(t.Context(), mech, nil); err != nil {
			t.Errorf("%s: %v", mech, err)
		}
	}
}

// Whatever a client sends, an exchange ends in a known error or with a name and a
// password that could be written on one line.
func FuzzExchange(f *testing.F) {
	for _, e := range exchanges {
		var script [3][]byte
		for i, r := range e.responses {
			script[i] = []byte(r)
		}
		f.Add(strings.EqualFold(e.mech, "LOGIN"), script[0], script[1], script[2])
	}
	f.Fuzz(func(t *testing.T, isLogin bool, a, b, c []byte) {
		mech := "PLAIN"
		if isLogin {
			mech = "LOGIN"
		}
		calls := 0
		server, err := NewServer(context.Background(), mech, func(_ context.Context, name, password string) error {
			calls++
			if name == "" || len(name) > maxName || len(password) > maxPassword || strings.ContainsAny(name+password, "\x00\r\n\x1b") {
				t.Errorf("verified %q %q", name, password)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		over := false
		for _, r := range [][]byte{a, b, c} {
			if bytes.Equal(r, []byte(absent)) {
				r = nil
			}
			challenge, done, err := server.Next(r)
			if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCredentials) {
				t.Fatalf("%q: %v", r, err)
			}
			if over && err == nil {
				t.Fatal("the exchange went on after its end")
			}
			if done && (err != nil || len(challenge) > 0 || calls != 1) {
				t.Fatalf("done with %q, %v after %d checks", challenge, err, calls)
			}
			over = over || done
		}
	})
}
