package oauth

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"
)

// XOAuth2 is the mechanism of Google and Microsoft; sasl.OAuthBearer is that of RFC 7628.
const XOAuth2 = "XOAUTH2"

// Exchange is one exchange of one of the two mechanisms; it implements sasl.Client.
type Exchange struct {
	mechanism string
	initial   []byte
	token     string
	refusal   string
}

// NewExchange makes the exchange of an account with a server, by one of the two mechanisms.
func NewExchange(mechanism, username string, token Token, host string, port int) *Exchange {
	e := &Exchange{mechanism: mechanism, token: token.Access}
	if mechanism == XOAuth2 {
		e.initial = []byte("user=" + username + "\x01auth=Bearer " + token.Access + "\x01\x01")
		return e
	}
	// RFC 5801 section 4 escapes the characters that would end the name.
	escaped := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(username)
	_, e.initial, _ = sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{ // it never fails
		Username: escaped, Token: token.Access, Host: host, Port: port}).Start()
	return e
}

// Start implements sasl.Client.
func (e *Exchange) Start() (mechanism string, initial []byte, err error) {
	return e.mechanism, e.initial, nil
}

// Next implements sasl.Client: a challenge is the server's reason for refusing. It is answered,
// so that the server comes to its 535: with nothing, or with ^A (RFC 7628 section 3.2.3).
func (e *Exchange) Next(challenge []byte) ([]byte, error) {
	if e.refusal != "" {
		return nil, sasl.ErrUnexpectedServerChallenge
	}
	e.refusal = e.describe(challenge)
	if e.mechanism == XOAuth2 {
		return []byte{}, nil
	}
	return []byte{1}, nil
}

// describe shows on one line why a server took no token (RFC 7628 section 3.2.2).
func (e *Exchange) describe(challenge []byte) string {
	var said struct {
		Status  string `json:"status"`
		Schemes string `json:"schemes"`
		Scope   string `json:"scope"`
	}
	text := fmt.Sprintf("%q", challenge)
	if json.Unmarshal(challenge, &said) == nil {
		text = fmt.Sprintf("status %q, schemes %q, scope %q", said.Status, said.Schemes, said.Scope)
	}
	return clean("the server rejected the token: "+text, []string{e.token})
}

// Refusal is the reason that a server gave before its 535, on one line; "" if it gave none.
func (e *Exchange) Refusal() string { return e.refusal }
