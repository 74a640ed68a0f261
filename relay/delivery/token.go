package delivery

import (
	"context"
	"errors"
	"fmt"

	"postern/relay/smtp"
	"postern/relay/upstream/oauth"
)

// Tokens gives the tokens of upstream accounts that have a grant: *oauth.Tokens.
type Tokens interface {
	Token(ctx context.Context, a oauth.Account) (oauth.Token, error)
	// Renew gives another one than that which the upstream refused, or oauth.ErrNew.
	Renew(ctx context.Context, a oauth.Account, refused oauth.Token) (oauth.Token, error)
}

var errNoToken = errors.New("no token")

// token gets the token of an upstream before it is connected to: the authority may take
// longer than a server waits.
func (d *dialer) token(ctx context.Context, to target) (token oauth.Token, t *trouble) {
	up, err := to.upstream, errors.New("nothing here gets one")
	if d.cfg.Tokens != nil {
		token, err = d.cfg.Tokens.Token(ctx, up.OAuth())
	}
	if err == nil {
		to.trace.step(Step{Stage: StageToken})
		return token, nil
	}
	return token, &trouble{
		reply: smtp.Temporary(451, 7, 0, "upstream "+up.Name+": the relay has no token for its account"),
		err:   fmt.Errorf("upstream %s: %w: %w", up.Name, errNoToken, err),
	}
}

// renew gives the target another token than the one for which t was refused. It reports false
// where there is none that would fare better.
func (d *dialer) renew(ctx context.Context, to *target, t *trouble) bool {
	token, err := d.cfg.Tokens.Renew(ctx, to.upstream.OAuth(), to.token)
	if err == nil {
		to.trace.step(Step{Stage: StageToken})
		to.token = token
		return true
	}
	if !errors.Is(err, oauth.ErrNew) {
		t.err = fmt.Errorf("%w; %w: %w", t.err, errNoToken, err)
	}
	return false
}
