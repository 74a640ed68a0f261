package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-sasl"

	"postern/relay/smtp"
	"postern/relay/upstream/oauth"
)

var (
	errNoMechanism      = errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN")
	errNoTokenMechanism = errors.New("the server offers neither AUTH XOAUTH2 nor AUTH OAUTHBEARER")
)

// authenticate proves the upstream account. The connection is verified TLS: open
// sees to that. Where the server refuses one mechanism it is given the other that it
// offers, over the same connection.
func authenticate(ctx context.Context, c *smtp.Client, to target) error {
	known, refusal := mechanisms(c.AuthMechanisms(), to)
	for i, mechanism := range known {
		err := c.Auth(ctx, mechanism)
		if token, is := mechanism.(*oauth.Exchange); is && err != nil && token.Refusal() != "" {
			err = fmt.Errorf("%s: %w", token.Refusal(), err)
		}
		if i > 0 && !isReply(err) {
			err = refusal // it is more informative than a connection lost afterwards
		}
		if refusal = err; !refusesMechanism(err) {
			return err
		}
	}
	return refusal
}

// mechanisms are those of the offered ones that can prove the account, and the error where
// there is none.
func mechanisms(offered []string, to target) (list []smtp.SASL, none error) {
	up := to.upstream
	if up.Grant.Kind != "" {
		for _, name := range oauth.Mechanisms(offered) {
			list = append(list, oauth.NewExchange(name, up.Username, to.token, to.host, up.Port))
		}
		return list, errNoTokenMechanism
	}
	if slices.Contains(offered, sasl.Plain) {
		list = append(list, sasl.NewPlainClient("", up.Username, up.Password))
	}
	if slices.Contains(offered, sasl.Login) {
		list = append(list, &login{answers: []string{up.Username, up.Password}})
	}
	return list, errNoMechanism
}

// refusesMechanism reports a refusal of the mechanism (RFC 4954 sections 4 and 6): the
// server does not know it after all, or it is too weak for this account. A refusal of
// the account or its password does not count, for another mechanism would only repeat
// it: 535, and 534 5.7.9 and 5.7.14, by which Gmail asks for an application's password
// or a login by browser. 538 asks for TLS, which is there, and 530 for a command before
// AUTH.
func refusesMechanism(err error) bool {
	var stage *smtp.StageError
	if !errors.As(err, &stage) {
		return false
	}
	switch e := stage.Reply.Enhanced; stage.Reply.Code {
	case 504:
		return true
	case 534:
		return e.Subject != 7 || e.Detail != 9 && e.Detail != 14
	}
	return false
}

// isReply reports an outcome that is the server's own reply.
func isReply(err error) bool {
	var stage *smtp.StageError
	return err == nil || errors.As(err, &stage) && !stage.Reply.IsZero()
}

// login is the client of LOGIN: it answers the first prompt with the user name and the second
// with the password, whatever their text. go-sasl's client accepts one wording only.
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
	if isNoMechanism(err) {
		t.reply = smtp.Temporary(451, 7, 4, to.host+" offers no way to authenticate that is known here")
	}
	var stage *smtp.StageError
	t.badToken = to.upstream.Grant.Kind != "" && errors.As(err, &stage) && stage.Reply.Code == 535
	t.err = fmt.Errorf("authenticate to %s as %s: %w", to.host, to.upstream.Username, err)
	return t
}

func isNoMechanism(err error) bool {
	return errors.Is(err, errNoMechanism) || errors.Is(err, errNoTokenMechanism)
}
