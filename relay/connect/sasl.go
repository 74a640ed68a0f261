package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// errNoMechanism is the trouble of a server that offers no mechanism which can prove the account.
var errNoMechanism = errors.New("no mechanism")

// authenticate proves the upstream account. The connection is verified TLS: Walk.unsafe sees to that.
// Where the server refuses one mechanism it is given the other that it offers, over the same
// connection. The one that worked is tried first next time.
func (d *Dialer) authenticate(ctx context.Context, c *smtp.Client, to Target) error {
	var refusal error
	for i, name := range d.mechanisms(c.AuthMechanisms(), to.Upstream) {
		mechanism := exchange(name, to)
		err := c.Auth(ctx, mechanism)
		if token, is := mechanism.(*oauth.Exchange); is && err != nil && token.Refusal() != "" {
			err = fmt.Errorf("%s: %w", c.Masked(token.Refusal()), err)
		}
		if i > 0 && !isReply(err) {
			err = refusal // it is more informative than a connection lost afterwards
		}
		if err == nil {
			d.took.Store(to.Upstream.Name, name)
			to.trace.step(Step{Stage: smtp.StageAuth, Text: name})
		}
		if refusal = err; !refusesMechanism(err) {
			return err
		}
		to.trace.step(Step{Stage: smtp.StageAuth, Text: name, Err: err})
	}
	if refusal == nil {
		offered := cmp.Or(strings.Join(c.AuthMechanisms(), " "), "none")
		return fmt.Errorf("%w: of AUTH the server offers %s, and not %s", errNoMechanism, offered, strings.Join(to.Upstream.Mechanisms(), " or "))
	}
	return refusal
}

// mechanisms are those that can prove the account and are offered; the one that the server took
// last is the first.
func (d *Dialer) mechanisms(offered []string, up *upstream.Account) []string {
	list := slices.DeleteFunc(up.Mechanisms(), func(name string) bool { return !slices.Contains(offered, name) })
	if took, ok := d.took.Load(up.Name); ok && len(list) > 1 && list[1] == took {
		slices.Reverse(list)
	}
	return list
}

// exchange is the client of a mechanism.
func exchange(name string, to Target) smtp.SASL {
	up := to.Upstream
	switch name {
	case sasl.Plain:
		return sasl.NewPlainClient("", up.Username, up.Password)
	case sasl.Login:
		return &login{answers: []string{up.Username, up.Password}}
	}
	return oauth.NewExchange(name, up.Username, to.token, to.Host, up.Port)
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
func authTrouble(c *Conn, to Target, err error) *Trouble {
	t := conversationTrouble(c, to, err)
	if errors.Is(err, errNoMechanism) {
		t.Reply = smtp.Temporary(451, 7, 4, to.Host+" offers no way to authenticate that is known here")
	}
	var stage *smtp.StageError
	t.badToken = to.Upstream.Grant.Kind != "" && errors.As(err, &stage) && stage.Reply.Code == 535
	t.Err = fmt.Errorf("authenticate to %s as %s: %w", to.Host, to.Upstream.Username, err)
	return t
}
