package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-sasl"
)

// Bounds on a client's texts, in octets.
const (
	maxName     = 255
	maxPassword = 1024
)

// ErrMechanism is a SASL mechanism that is not offered: 504 5.5.4.
var ErrMechanism = errors.New("authentication mechanism not offered")

// Mechanisms returns the names of the mechanisms that NewExchange knows, in the
// order in which EHLO offers them.
func Mechanisms() []string { return []string{sasl.Plain, sasl.Login} }

// NewExchange begins one SASL exchange with the client at peer. Its Next takes
// decoded responses: nil when there was no initial response, an empty slice for
// "=" (RFC 4954 section 4). Once Next reports done without an error, identity
// returns who the client is; after an error of v, only the name that was given.
//
// Next fails with ErrMalformed, or with an error of v; the exchange is over then.
// An unknown mechanism is ErrMechanism. ctx bounds every call of v.
func NewExchange(ctx context.Context, mech string, peer Peer, v Verifier) (server sasl.Server, identity func() Identity, err error) {
	var id Identity
	verify := func(ctx context.Context, name, password string) error {
		got, err := v.Verify(ctx, name, password, peer)
		if err != nil {
			id = Identity{Name: name}
			return err
		}
		id = got
		return nil
	}
	server, err = NewServer(ctx, mech, verify)
	if err != nil {
		return nil, nil, err
	}
	return server, func() Identity { return id }, nil
}

// NewServer begins one SASL exchange whose outcome verify decides. It is called
// at most once, with a name and password that hold no control characters.
func NewServer(ctx context.Context, mech string, verify func(ctx context.Context, name, password string) error) (sasl.Server, error) {
	check := func(name, password string) error {
		if err := validate(name, password); err != nil {
			return err
		}
		return verify(ctx, name, password)
	}
	switch strings.ToUpper(mech) {
	case sasl.Plain:
		return newPlain(check), nil
	case sasl.Login:
		return &login{check: check}, nil
	}
	return nil, ErrMechanism
}

// validate checks the decoded texts, for the encoding can hide any octet (RFC 4616 section 2
// allows no NUL; no other control character is useful).
func validate(name, password string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: empty user name", ErrMalformed)
	case len(name) > maxName:
		return fmt.Errorf("%w: user name too long", ErrMalformed)
	case len(password) > maxPassword:
		return fmt.Errorf("%w: password too long", ErrMalformed)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%w: user name is not text", ErrMalformed)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return fmt.Errorf("%w: password is not text", ErrMalformed)
	}
	return nil
}

// plain is RFC 4616 on go-sasl's server, which splits the message but neither explains faults
// nor validates its parts.
type plain struct {
	inner sasl.Server
}

func newPlain(check func(name, password string) error) *plain {
	return &plain{inner: sasl.NewPlainServer(func(authzid, name, password string) error {
		// Nobody may act for somebody else. Old clients repeat the name here.
		if authzid != "" && !SameName(authzid, name) {
			return fmt.Errorf("%w: authorization identity is another user", ErrCredentials)
		}
		return check(name, password)
	})}
}

func (p *plain) Next(response []byte) (challenge []byte, done bool, err error) {
	if response != nil && bytes.Count(response, []byte{0}) != 2 {
		return nil, false, fmt.Errorf("%w: PLAIN takes three fields", ErrMalformed)
	}
	challenge, done, err = p.inner.Next(response)
	if errors.Is(err, sasl.ErrUnexpectedClientResponse) {
		err = fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err != nil {
		return nil, false, err
	}
	return challenge, done, nil
}

// login is the obsolete LOGIN mechanism (draft-murchison-sasl-login), which
// printers, cameras and Outlook still prefer: two prompts, two answers. An initial
// response is the user name.
type login struct {
	check func(name, password string) error
	step  int // prompts sent: 1 after "Username:", 2 after "Password:", 3 is over
	name  string
}

func (l *login) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case l.step == 0 && response == nil:
		l.step = 1
		return []byte("Username:"), false, nil
	case l.step <= 1:
		l.name, l.step = string(response), 2
		// Refuse before asking for the password; an empty name is not an error yet.
		if err := validate(l.name, ""); err != nil {
			l.step = 3
			return nil, false, err
		}
		return []byte("Password:"), false, nil
	case l.step == 2:
		l.step = 3
		if err := l.check(l.name, string(response)); err != nil {
			return nil, false, err
		}
		return nil, true, nil
	}
	return nil, false, fmt.Errorf("%w: the exchange is over", ErrMalformed)
}
