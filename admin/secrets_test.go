package admin

import (
	"strings"
	"testing"
	"time"

	"postern/relay/upstream"
	"postern/relay/upstream/oauth"

	"github.com/prometheus/client_golang/prometheus"
)

func TestUpstreamSecretMetrics(t *testing.T) {
	t.Parallel()
	at := func(unix int64) time.Time { return time.Unix(unix, 0) }
	list := []upstream.Secret{
		{Upstream: "password", Expires: at(5000)}, {Upstream: "works", Expires: at(6000), Token: oauth.State{ExpiresAt: at(700)}},
		{Upstream: "fails", Token: oauth.State{ExpiresAt: at(800), FailingSince: at(600)}},
		{Upstream: "waits", Token: oauth.State{FailingSince: at(500), Login: true}}, {Upstream: "new"},
	}
	r := prometheus.NewRegistry()
	RegisterUpstreamSecrets(r, func() []upstream.Secret { return list })
	page := text(t, r)
	for _, want := range []string{
		`postern_upstream_secret_expiry_timestamp_seconds{upstream="password"} 5000`, `postern_upstream_secret_expiry_timestamp_seconds{upstream="works"} 6000`,
		`postern_upstream_token_expiry_timestamp_seconds{upstream="works"} 700`, `postern_upstream_token_expiry_timestamp_seconds{upstream="waits"} 0`,
		`postern_upstream_token_failing_since_timestamp_seconds{upstream="works"} 0`, `postern_upstream_token_failing_since_timestamp_seconds{upstream="fails"} 600`,
		`postern_upstream_login_needed{upstream="fails"} 0`, `postern_upstream_login_needed{upstream="waits"} 1`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
	if n := count(t, r); n != 11 {
		t.Errorf("%d series", n)
	}
	if t.Failed() {
		t.Log(page)
	}
}
