package admin

import "github.com/prometheus/client_golang/prometheus"

// Reading is one number of a part of the node that keeps its own counts.
type Reading[T any] struct {
	Name, Help string
	Counter    bool // it only grows; otherwise it is a gauge
	Value      func(T) float64
}

// Register adds metrics that read gives at each scrape. labels, which may be nil, are
// those of all of them: several parts of one kind differ by them.
func Register[T any](to prometheus.Registerer, labels prometheus.Labels, read func() T, list []Reading[T]) {
	r := &readings[T]{read: read, list: list}
	for _, one := range list {
		r.descs = append(r.descs, prometheus.NewDesc(one.Name, one.Help, nil, labels))
	}
	to.MustRegister(r)
}

// readings is a prometheus.Collector. The registry recovers what panics in one.
type readings[T any] struct {
	read  func() T
	list  []Reading[T]
	descs []*prometheus.Desc
}

func (r *readings[T]) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range r.descs {
		ch <- d
	}
}

func (r *readings[T]) Collect(ch chan<- prometheus.Metric) {
	now := r.read()
	for i, one := range r.list {
		kind := prometheus.GaugeValue
		if one.Counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(r.descs[i], kind, one.Value(now))
	}
}
