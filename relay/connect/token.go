package connect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

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

// fetchToken gets the token of an upstream, once for all its addresses, before it is connected
// to: the authority may take longer than a server waits.
func (w *Walk) fetchToken(ctx context.Context) *Trouble {
	up := w.Upstream
	if up == nil || up.Grant.Kind == "" || w.token != (oauth.Token{}) {
		return nil
	}
	token, err := oauth.Token{}, errors.New("nothing here gets one")
	if tokens := w.d.cfg.Tokens; tokens != nil {
		token, err = tokens.Token(ctx, up.OAuth())
	}
	if err == nil {
		w.token = token
		w.trace.step(Step{Stage: StageToken})
		return nil
	}
	t := &Trouble{
		Reply: smtp.Temporary(451, 7, 0, "upstream "+up.Name+": the relay has no token for its account"),
		Err:   fmt.Errorf("upstream %s: %w: %w", up.Name, errNoToken, err),
	}
	w.trace.trouble(netip.AddrPort{}, t)
	return t
}

// renew gives the target another token than the one for which t was refused. It reports false
// where there is none that would fare better.
func (d *Dialer) renew(ctx context.Context, to *Target, t *Trouble) bool {
	token, err := d.cfg.Tokens.Renew(ctx, to.Upstream.OAuth(), to.token)
	if err == nil {
		to.trace.step(Step{Stage: StageToken})
		to.token = token
		return true
	}
	if !errors.Is(err, oauth.ErrNew) {
		t.Err = fmt.Errorf("%w; %w: %w", t.Err, errNoToken, err)
	}
	return false
}
