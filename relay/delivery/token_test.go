package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"postern/internal/logtest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
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

// TestTokens: an upstream account that has a grant is proved by its token. One that is
// refused gets one successor; the refusal of that is the account's fault, and the mail waits.
func TestTokens(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	tests := map[string]struct {
		good, most int64
		offer      string // "": both mechanisms
		err        error  // of getting a token
		conns      int
		reply      string // of the deferral; "" when it is delivered
	}{
		"good":                 {1, 1, "", nil, 1, ""},
		"good, the other":      {1, 1, "250 AUTH PLAIN OAUTHBEARER", nil, 1, ""},
		"revoked":              {2, 2, "", nil, 2, ""},
		"revoked, the other":   {2, 2, "250 AUTH OAUTHBEARER", nil, 2, ""},
		"refused":              {9, 2, "", nil, 2, "535 5.7.8 bad credentials"},
		"refused, the other":   {9, 2, "250 AUTH OAUTHBEARER", nil, 2, "535 5.7.8 bad credentials"},
		"no successor":         {2, 1, "", nil, 1, "535 5.7.8 bad credentials"},
		"no token":             {1, 1, "", errors.New("the authority is away"), 0, "451 4.7.0 upstream sink: the relay has no token for its account"},
		"no mechanism":         {1, 1, "250 AUTH PLAIN LOGIN", nil, 1, "451 4.7.4 127.0.0.1 offers no way to authenticate that is known here"},
		"an unknown mechanism": {1, 1, "250 AUTH GSSAPI", nil, 1, "451 4.7.4 127.0.0.1 offers no way to authenticate that is known here"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Tokens: func(user, token string) bool {
				var serial int64
				_, err := fmt.Sscanf(token, "token-%d", &serial)
				return user == "relay@example.com" && err == nil && serial >= test.good
			}}
			if test.offer != "" {
				cfg.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseHello: smtptest.Always(smtptest.Reply("250-fake.test", "250-STARTTLS", test.offer))}
			}
			server := smtptest.Start(t, cfg)
			up := upstreamAt(server)
			up.TLS, up.CA, up.Username, up.Grant = upstream.TLSRequire, string(ca.PEM()), "relay@example.com", oauth.Grant{Kind: oauth.ClientCredentials}
			var log logtest.Lines
			o := sendVia(t, up, Config{Connect: connect.Config{Tokens: &fakeTokens{last: 1, most: test.most, err: test.err}}, Log: log.Logger()})
			if test.reply == "" && o.Result != queue.Delivered || test.reply != "" && (o.Result != queue.Deferred || o.Reply.String() != test.reply) {
				t.Errorf("%s %v, want %q", o.Result, o.Reply, test.reply)
			}
			if n := server.Conns(); n != test.conns {
				t.Errorf("%d connections, want %d", n, test.conns)
			}
		})
	}
}
