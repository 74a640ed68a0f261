package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/upstream/breaker"
)

// upstreamBreakers collects the states of the upstreams' breakers.
type upstreamBreakers struct {
	list           func() breaker.States
	open, openings *prometheus.Desc
}

// RegisterUpstreamBreakers adds the metrics of the upstreams' breakers.
func RegisterUpstreamBreakers(to prometheus.Registerer, list func() breaker.States) {
	to.MustRegister(&upstreamBreakers{
		list:     list,
		open:     prometheus.NewDesc("postern_upstream_open", "1 while all nodes leave an upstream alone, else 0.", []string{"upstream"}, nil),
		openings: prometheus.NewDesc("postern_upstream_openings_total", "Times that all nodes began to leave an upstream alone.", []string{"upstream"}, nil),
	})
}

func (u *upstreamBreakers) Describe(ch chan<- *prometheus.Desc) {
	ch <- u.open
	ch <- u.openings
}

func (u *upstreamBreakers) Collect(ch chan<- prometheus.Metric) {
	for _, s := range u.list() {
		ch <- prometheus.MustNewConstMetric(u.open, prometheus.GaugeValue, truth(s.Open), s.Upstream)
		ch <- prometheus.MustNewConstMetric(u.openings, prometheus.CounterValue, float64(s.Opening), s.Upstream)
	}
}
