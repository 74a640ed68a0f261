package admin

import "github.com/prometheus/client_golang/prometheus"

// UpstreamBudget is what is used of one limit of an upstream's budget, by all nodes.
type UpstreamBudget struct {
	Upstream, Limit string // the limit as it is written
	Used, Most      int64
	Waiting         int64 // recipients that wait for the upstream's budget
}

// upstreamBudgets collects them.
type upstreamBudgets struct {
	list                func() []UpstreamBudget
	used, most, waiting *prometheus.Desc
}

// RegisterUpstreamBudgets adds the metrics of the upstreams' budgets.
func RegisterUpstreamBudgets(to prometheus.Registerer, list func() []UpstreamBudget) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("postern_upstream_budget_"+name, help, append(labels, "upstream"), nil)
	}
	to.MustRegister(&upstreamBudgets{
		list:    list,
		used:    desc("used", "The used part of a limit of an upstream's budget, with what is leased to nodes.", "limit"),
		most:    desc("limit", "The limit itself.", "limit"),
		waiting: desc("waiting", "Recipients that wait for an upstream's budget."),
	})
}

func (u *upstreamBudgets) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{u.used, u.most, u.waiting} {
		ch <- desc
	}
}

func (u *upstreamBudgets) Collect(ch chan<- prometheus.Metric) {
	seen := map[string]bool{}
	for _, b := range u.list() {
		gauge := func(desc *prometheus.Desc, value int64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), append(labels, b.Upstream)...)
		}
		gauge(u.used, b.Used, b.Limit)
		gauge(u.most, b.Most, b.Limit)
		if !seen[b.Upstream] {
			seen[b.Upstream] = true
			gauge(u.waiting, b.Waiting)
		}
	}
}
