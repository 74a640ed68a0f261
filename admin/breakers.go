package admin

import "github.com/prometheus/client_golang/prometheus"

// UpstreamBreaker is the breaker of an upstream, which all nodes share.
type UpstreamBreaker struct {
	Upstream string
	Open     bool
	Openings int64 // so far
}

// upstreamBreakers collects them.
type upstreamBreakers struct {
	list           func() []UpstreamBreaker
	open, openings *prometheus.Desc
}

// RegisterUpstreamBreakers adds the metrics of all upstreams.
func RegisterUpstreamBreakers(to prometheus.Registerer, list func() []UpstreamBreaker) {
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
	for _, b := range u.list() {
		ch <- prometheus.MustNewConstMetric(u.open, prometheus.GaugeValue, truth(b.Open), b.Upstream)
		ch <- prometheus.MustNewConstMetric(u.openings, prometheus.CounterValue, float64(b.Openings), b.Upstream)
	}
}
