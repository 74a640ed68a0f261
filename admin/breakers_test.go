package admin

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/upstream/breaker"
)

func TestUpstreamBreakerMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	RegisterUpstreamBreakers(r, func() breaker.States {
		return breaker.States{{Upstream: "out", Open: true, Opening: 3}, {Upstream: "other", Opening: 1}}
	})
	page := text(t, r)
	for _, want := range []string{
		`postern_upstream_open{upstream="out"} 1`, `postern_upstream_open{upstream="other"} 0`,
		`postern_upstream_openings_total{upstream="out"} 3`, `postern_upstream_openings_total{upstream="other"} 1`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}
