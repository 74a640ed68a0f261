package admin

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestUpstreamBudgetMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	RegisterUpstreamBudgets(r, func() []UpstreamBudget {
		return []UpstreamBudget{{"m365", "messages 30/m", 7, 30, 4}, {"m365", "sessions 3", 2, 3, 4}}
	})
	page := text(t, r)
	for _, want := range []string{
		`postern_upstream_budget_used{limit="messages 30/m",upstream="m365"} 7`, `postern_upstream_budget_limit{limit="sessions 3",upstream="m365"} 3`,
		`postern_upstream_budget_waiting{upstream="m365"} 4`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
	if n := count(t, r); n != 5 {
		t.Errorf("%d series\n%s", n, page)
	}
}
