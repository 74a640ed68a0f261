package admin

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/upstream/budget"
)

func TestUpstreamBudgetMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	RegisterUpstreamBudgets(r, func() []budget.Usage {
		limits, err := budget.Parse("messages 30/m, sessions 3")
		if err != nil {
			t.Error(err)
		}
		return []budget.Usage{{Upstream: "m365", Waiting: 4, Limits: []budget.Used{
			{Limit: limits[0], Text: limits[0].String(), Used: 7}, {Limit: limits[1], Text: limits[1].String(), Used: 2},
		}}}
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
