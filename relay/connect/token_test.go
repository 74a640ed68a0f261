package connect

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// fakeTokens gives tokens.
type fakeTokens struct {
	mu   sync.Mutex
	last int64
	most int64 // no newer one is given
	err  error
}

func (f *fakeTokens) Token(context.Context, oauth.Account) (oauth.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return oauth.Token{Access: fmt.Sprintf("token-%d", f.last), Serial: f.last}, f.err
}

func (f *fakeTokens) Renew(_ context.Context, a oauth.Account, refused oauth.Token) (oauth.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if refused.Serial == f.last {
		if f.last == f.most {
			return oauth.Token{}, oauth.ErrNew
		}
		f.last++
	}
	return oauth.Token{Access: fmt.Sprintf("token-%d", f.last), Serial: f.last}, nil
}

// A probe says at which stage a token was wanting, and why the server took none.
func TestProbeOfTokens(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Tokens: func(string, string) bool { return false }})
	up := &upstream.Account{Name: "m365", Host: "127.0.0.1", Port: server.Port(), TLS: upstream.TLSRequire, CA: string(ca.PEM()),
		Username: "relay@example.com", Grant: oauth.Grant{Kind: oauth.ClientCredentials}}
	for _, test := range []struct {
		tokens Tokens
		stage  smtp.Stage
		says   string
	}{
		{nil, StageToken, "nothing here gets one"},
		{&fakeTokens{err: &oauth.Fault{Code: "AADSTS7000222", Text: "expired", Do: "make a new one"}}, StageToken, "AADSTS7000222: expired; make a new one"},
		{&fakeTokens{}, smtp.StageAuth, `the server rejected the token: status "401", schemes "bearer", scope "https://mail.example/"`},
	} {
		p := proberFor(&dnstest.Zones{}, func(c *Config) { c.Tokens = test.tokens }).Upstream(t.Context(), up, Trial{})
		if p.Stage != test.stage || p.Err == nil || !strings.Contains(p.Err.Error(), test.says) {
			t.Errorf("stage %s, %v, want %s and %q", p.Stage, p.Err, test.stage, test.says)
		}
	}
}

// A server that repeats the token, and the response that it is in, in its reason.
func TestTokenIsNotRepeated(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Tokens: func(string, string) bool { return false }})
	response := ""
	server.On(smtptest.PhaseAuth, func(got smtptest.Session) smtptest.Action {
		response = got.Command[strings.LastIndexByte(got.Command, ' ')+1:]
		reason, _ := base64.StdEncoding.DecodeString(response)
		return smtptest.Reply("334 " + base64.StdEncoding.EncodeToString([]byte("no "+response+", "+string(reason))))
	})
	server.On(smtptest.PhaseAuthNext, func(smtptest.Session) smtptest.Action { return smtptest.Reply("535-5.7.3 no", "535 5.7.3 "+response) })
	up := &upstream.Account{Name: "m365", Host: "127.0.0.1", Port: server.Port(), TLS: upstream.TLSRequire, CA: string(ca.PEM()),
		Username: "relay@example.com", Grant: oauth.Grant{Kind: oauth.ClientCredentials}}
	var told []string
	p := proberFor(&dnstest.Zones{}, func(c *Config) { c.Tokens = &fakeTokens{last: 1, most: 1} }).Upstream(t.Context(), up,
		Trial{Tell: func(s Step) { told = append(told, fmt.Sprint(s.Reply, s.Err)) }})
	said := fmt.Sprint(told, p.Err)
	if p.Stage != smtp.StageAuth || !strings.Contains(said, "the server rejected the token") || !strings.Contains(said, "relay@example.com") {
		t.Errorf("%s: %s", p.Stage, said)
	}
	if response == "" || strings.Contains(said, response[:12]) || strings.Contains(said, "token-1") {
		t.Errorf("%q is in %s", response, said)
	}
}
