package oauth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/oauth2"

	"postern/relay/seal"
)

// redirect is where the browser goes after a login. Nothing listens there: the person pastes
// the address, with the code in it, into the shell.
const redirect = "http://localhost"

// Login gets the refresh token of an account by a person's login.
type Login struct {
	account Account
	asker   *asker
	config  *oauth2.Config

	state, verifier string
	got             pair
}

// NewLogin prepares the login of an account whose grant is RefreshToken. Of the
// configuration it uses Authorities and Roots.
func NewLogin(cfg Config, a Account) (*Login, error) {
	if cfg.Authorities == nil {
		cfg.Authorities = Known()
	}
	if a.Grant.Kind != RefreshToken {
		return nil, fmt.Errorf("upstream %s has no grant that needs a login: set it with --oauth refresh-token", a.Upstream)
	}
	at, ok := cfg.Authorities[a.Grant.Authority]
	if !ok {
		return nil, fmt.Errorf("authority %q is not known", a.Grant.Authority)
	}
	l := &Login{account: a, asker: newAsker(cfg.Authorities, cfg.Roots), config: person(&a.Grant, at.in(a.Grant.Tenant))}
	l.config.RedirectURL = redirect
	return l, nil
}

// URL is what the person opens in a browser (RFC 6749 section 4.1, with PKCE, RFC 7636).
func (l *Login) URL() string {
	l.state, l.verifier = rand.Text(), oauth2.GenerateVerifier()
	return l.config.AuthCodeURL(l.state, oauth2.S256ChallengeOption(l.verifier),
		oauth2.AccessTypeOffline, oauth2.SetAuthURLParam("prompt", "consent"), oauth2.SetAuthURLParam("login_hint", l.account.Username))
}

// Paste takes the address at which the browser ended.
func (l *Login) Paste(ctx context.Context, address string) error {
	address = strings.TrimSpace(address)
	u, err := url.Parse(address)
	if err != nil || !strings.HasPrefix(address, redirect) {
		return fmt.Errorf("that is not the address at which the browser ended: it begins with %s", redirect)
	}
	l.got = pair{}
	q := u.Query()
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(l.state)) != 1 {
		return errors.New("the address belongs to another login: open the URL above and paste the address to which it leads")
	}
	if code := q.Get("error"); code != "" {
		return faultOf(&l.account.Grant, &oauth2.RetrieveError{ErrorCode: code, ErrorDescription: q.Get("error_description")})
	}
	code := q.Get("code")
	if code == "" {
		return errors.New("the address has no code in it")
	}
	l.got, err = l.asker.call(ctx, &l.account.Grant, func(ctx context.Context, _ Authority) (*oauth2.Token, error) {
		return l.config.Exchange(ctx, code, oauth2.VerifierOption(l.verifier))
	}, code, l.verifier)
	return err
}

// Device logs in on another device (RFC 8628): show gets the address to open, the code to type
// there, and when the code expires.
func (l *Login) Device(ctx context.Context, show func(address, code string, until time.Time)) error {
	if l.config.Endpoint.DeviceAuthURL == "" {
		return fmt.Errorf("authority %s gives no device code for mail: log in with a browser", l.account.Grant.Authority)
	}
	given, err := l.config.DeviceAuth(l.asker.with(ctx))
	if err != nil {
		return faultOf(&l.account.Grant, err)
	}
	if given.DeviceCode == "" || given.Expiry.IsZero() {
		return errors.New("the authority gave no device code")
	}
	show(clean(given.VerificationURI, nil), clean(given.UserCode, nil), given.Expiry)
	waiting, cancel := context.WithDeadline(l.asker.with(ctx), given.Expiry)
	defer cancel()
	token, err := l.config.DeviceAccessToken(waiting, given)
	if waiting.Err() != nil && ctx.Err() == nil {
		return errors.New("nobody typed the code in time")
	}
	if err != nil {
		return faultOf(&l.account.Grant, err, given.DeviceCode)
	}
	l.got, err = accept(&l.account.Grant, token)
	return err
}

// Save stores the tokens of the login, in a transaction of the caller's.
func (l *Login) Save(ctx context.Context, tx pgx.Tx, sealer *seal.Sealer) error {
	if l.got.Refresh == "" {
		return &Fault{Text: "the authority gave no refresh token", Do: "allow the application offline access, and log in again"}
	}
	t := table{db: tx, sealer: sealer}
	credential := l.account.credential()
	sealed, err := t.seal(l.account.Upstream, credential, l.got)
	if err == nil {
		_, err = tx.Exec(ctx, sqlLogin, l.account.Upstream, credential, sealed, l.got.Life)
	}
	if err != nil {
		return fmt.Errorf("store the login of upstream %s: %w", l.account.Upstream, err)
	}
	return nil
}
