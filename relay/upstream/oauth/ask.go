package oauth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/oauth2/jwt"
)

const (
	askTime  = 15 * time.Second // for one request, all in all
	maxBody  = 64 << 10         // octets of an answer
	maxToken = 8 << 10          // octets of a token: what fits an AUTH line (RFC 4954 section 4)

	// Of tokens that come without, or with an absurd, lifetime.
	defaultLife = 10 * time.Minute
	maxLife     = 24 * time.Hour
)

// pair is what an authority gives.
type pair struct {
	Access  string        `json:"access"`
	Refresh string        `json:"refresh,omitempty"`
	Life    time.Duration `json:"-"` // of Access, from now
}

// asker talks to authorities.
type asker struct {
	known     Authorities
	transport *http.Transport
}

// newAsker makes an asker that trusts roots, or the system's if that is nil. A proxy of the
// environment is not used: whoever sets it would be given secrets.
func newAsker(known Authorities, roots *x509.CertPool) *asker {
	return &asker{known, &http.Transport{
		DialContext:            (&net.Dialer{Timeout: askTime / 2}).DialContext,
		TLSHandshakeTimeout:    askTime / 2,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		MaxResponseHeaderBytes: maxBody,
		DisableKeepAlives:      true, // a request an hour
	}}
}

// with returns a context with the client that x/oauth2 is to use. Its requests end with ctx.
func (a *asker) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{
		Transport:     bounded{a.transport, ctx},
		Timeout:       askTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
}

// bounded sends requests only over TLS, rejects answers that are too large, and ends requests with
// ctx, which x/oauth2 does not always pass on.
type bounded struct {
	inner http.RoundTripper
	ctx   context.Context
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("secrets are sent only over TLS")
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(b.ctx, cancel)
	end := func() { stop(); cancel() }
	answer, err := b.inner.RoundTrip(r.WithContext(ctx))
	if err == nil && answer.StatusCode == http.StatusSwitchingProtocols { // its body is the connection, which ctx does not end
		answer.Body.Close()
		err = errors.New("its answer is 101")
	}
	if err != nil {
		end()
		return nil, err
	}
	answer.Body = &boundedBody{answer.Body, maxBody, end}
	return answer, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
	end  func() // of the request
}

func (b *boundedBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("its answer is larger than %d octets", maxBody)
	}
	return n, err
}

// ask gets an access token by the grant; refresh is that of RefreshToken. The error is a Fault.
func (a *asker) ask(ctx context.Context, g *Grant, refresh string) (pair, error) {
	if g.Kind == RefreshToken && refresh == "" {
		return pair{}, &Fault{Text: "nobody has logged in yet", Do: "log in with 'postern upstream login'", Login: true}
	}
	return a.call(ctx, g, func(ctx context.Context, at Authority) (*oauth2.Token, error) {
		switch g.Kind {
		case ClientCredentials:
			return clientCredentials(ctx, g, at)
		case ServiceAccount:
			return serviceAccount(ctx, g, at)
		}
		return person(g, at).TokenSource(ctx, &oauth2.Token{RefreshToken: refresh}).Token()
	}, refresh)
}

// call makes one request by x/oauth2 and checks the token. The error is a Fault.
func (a *asker) call(ctx context.Context, g *Grant, request func(context.Context, Authority) (*oauth2.Token, error), secrets ...string) (pair, error) {
	at, ok := a.known[g.Authority]
	if !ok {
		return pair{}, &Fault{Text: "the authority " + g.Authority + " is not known here"}
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	got, err := request(a.with(ctx), at.in(g.Tenant))
	if err != nil {
		return pair{}, faultOf(g, err, secrets...)
	}
	return accept(g, got)
}

// accept checks a token of an authority. The error is a Fault.
func accept(g *Grant, got *oauth2.Token) (pair, error) {
	p := pair{Access: got.AccessToken, Refresh: got.RefreshToken, Life: time.Until(got.Expiry)}
	if got.Expiry.IsZero() {
		p.Life = defaultLife
	}
	p.Life = min(max(p.Life, CoolDown), maxLife)
	if err := p.check(got.TokenType); err != nil {
		return pair{}, &Fault{Text: "the authority " + g.Authority + " gave a token that cannot be used: " + err.Error()}
	}
	return p, nil
}

func (p *pair) check(kind string) error {
	switch {
	case kind != "" && !strings.EqualFold(kind, "bearer"):
		return errors.New("it is of another type than Bearer")
	case p.Access == "":
		return errors.New("it is empty")
	case !tokenText(p.Access) || !tokenText(p.Refresh):
		// ^A ends the fields of both mechanisms.
		return fmt.Errorf("it is longer than %d octets, or has spaces or control characters in it", maxToken)
	}
	return nil
}

func tokenText(s string) bool { return printable(s, maxToken) && !strings.Contains(s, " ") }

// clientCredentials is RFC 6749 section 4.4 with a secret, or with an assertion (RFC 7523
// section 2.2).
func clientCredentials(ctx context.Context, g *Grant, at Authority) (*oauth2.Token, error) {
	cfg := clientcredentials.Config{
		ClientID: g.ClientID, ClientSecret: g.Secret, TokenURL: at.Token,
		Scopes: []string{at.AppScope}, AuthStyle: oauth2.AuthStyleInParams,
	}
	if g.Certificate != "" {
		assertion, err := g.assertion(at.Token, time.Now())
		if err != nil {
			return nil, err
		}
		cfg.EndpointParams = url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {assertion},
		}
	}
	return cfg.Token(ctx)
}

// assertion signs what proves the client to Microsoft, which finds the certificate by the
// header x5t#S256; x/oauth2 cannot set it.
func (g *Grant) assertion(audience string, now time.Time) (string, error) {
	pair, err := g.keyPair()
	if err != nil {
		return "", err
	}
	print := sha256.Sum256(pair.Certificate[0])
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.PS256, Key: pair.PrivateKey},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("x5t#S256", base64.RawURLEncoding.EncodeToString(print[:])))
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"aud": audience, "iss": g.ClientID, "sub": g.ClientID, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// serviceAccount is RFC 7523 section 2.1, as Google documents it.
func serviceAccount(ctx context.Context, g *Grant, at Authority) (*oauth2.Token, error) {
	f, err := g.keyFile()
	if err != nil {
		return nil, err
	}
	cfg := jwt.Config{
		Email: f.Email, PrivateKey: []byte(f.Key), PrivateKeyID: f.ID, Subject: g.Subject,
		Scopes: []string{at.AppScope}, TokenURL: at.Token,
	}
	return cfg.TokenSource(ctx).Token()
}

// person is the client of somebody who logs in.
func person(g *Grant, at Authority) *oauth2.Config {
	return &oauth2.Config{
		ClientID: g.ClientID, ClientSecret: g.Secret, Scopes: strings.Fields(at.UserScope),
		Endpoint: oauth2.Endpoint{TokenURL: at.Token, AuthURL: at.Authorize, DeviceAuthURL: at.Device, AuthStyle: oauth2.AuthStyleInParams},
	}
}
