package admin

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// Reading is one number of a part of the node that keeps its own counts.
type Reading[T any] struct {
	Name, Help string
	Counter    bool            // it only grows; otherwise it is a gauge
	Value      func(T) float64 // none: there is no such series
}

// none is a number that there is not.
var none = math.NaN()

// Register adds metrics that read gives at each scrape. labels, which may be nil, are
// those of all of them: several parts of one kind differ by them.
func Register[T any](to prometheus.Registerer, labels prometheus.Labels, read func() T, list []Reading[T]) {
	register(to, labels, readings[T]{read: func() []T { return []T{read()} }, list: list})
}

// RegisterEach adds metrics of each part that read gives at a scrape. The parts differ by the values
// of labels.
func RegisterEach[T any](to prometheus.Registerer, labels []string, read func() []T, values func(T) []string, list []Reading[T]) {
	register(to, nil, readings[T]{read: read, labels: labels, values: values, list: list})
}

func register[T any](to prometheus.Registerer, labels prometheus.Labels, r readings[T]) {
	for _, one := range r.list {
		r.descs = append(r.descs, prometheus.NewDesc(one.Name, one.Help, r.labels, labels))
	}
	to.MustRegister(&r)
}

// readings is a prometheus.Collector. The registry recovers what panics in one.
type readings[T any] struct {
	read   func() []T
	labels []string
	values func(T) []string // of labels; nil without
	list   []Reading[T]
	descs  []*prometheus.Desc
}

func (r *readings[T]) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range r.descs {
		ch <- d
	}
}

func (r *readings[T]) Collect(ch chan<- prometheus.Metric) {
	for _, now := range r.read() {
		var values []string
		if r.values != nil {
			values = r.values(now)
		}
		for i, one := range r.list {
			kind := prometheus.GaugeValue
			if one.Counter {
				kind = prometheus.CounterValue
			}
			if n := one.Value(now); !math.IsNaN(n) {
				ch <- prometheus.MustNewConstMetric(r.descs[i], kind, n, values...)
			}
		}
	}
}
