package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/upstream/budget"
)

// upstreamBudgets collects what is used of the upstreams' budgets.
type upstreamBudgets struct {
	list                func() []budget.Usage
	used, most, waiting *prometheus.Desc
}

// RegisterUpstreamBudgets adds the metrics of the upstreams' budgets.
func RegisterUpstreamBudgets(to prometheus.Registerer, list func() []budget.Usage) {
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
	gauge := func(desc *prometheus.Desc, value int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	for _, b := range u.list() {
		for _, l := range b.Limits {
			gauge(u.used, l.Used, l.Text, b.Upstream)
			gauge(u.most, l.Max, l.Text, b.Upstream)
		}
		gauge(u.waiting, b.Waiting, b.Upstream)
	}
}
