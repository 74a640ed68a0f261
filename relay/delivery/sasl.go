package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-sasl"

	"postern/relay/route"
	"postern/relay/smtp"
)

var errNoMechanism = errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN")

// authenticate proves the upstream account. The connection is verified TLS: open
// sees to that.
func authenticate(ctx context.Context, c *smtp.Client, up *route.Upstream) error {
	offered := c.AuthMechanisms()
	switch {
	case slices.Contains(offered, sasl.Plain):
		return c.Auth(ctx, sasl.NewPlainClient("", up.Username, up.Password))
	case slices.Contains(offered, sasl.Login):
		return c.Auth(ctx, &login{answers: []string{up.Username, up.Password}})
	}
	return errNoMechanism
}

// login is the client of LOGIN, which answers whatever is asked by the user name
// and then the password: servers word the two prompts as they like, and go-sasl's
// client takes one wording only.
type login struct{ answers []string }

func (l *login) Start() (mech string, initial []byte, err error) { return sasl.Login, nil, nil }

func (l *login) Next([]byte) (response []byte, err error) {
	if len(l.answers) == 0 {
		return nil, sasl.ErrUnexpectedServerChallenge
	}
	response = []byte(l.answers[0])
	l.answers = l.answers[1:]
	return response, nil
}

// authTrouble is a refusal of the relay's own account. It concerns no message.
func authTrouble(c *conn, to target, err error) *trouble {
	t := conversationTrouble(c, to, err)
	if errors.Is(err, errNoMechanism) {
		t.reply = smtp.Temporary(451, 7, 4, to.host+" offers no way to authenticate that is known here")
	}
	t.err = fmt.Errorf("authenticate to %s as %s: %w", to.host, to.upstream.Username, err)
	return t
}
