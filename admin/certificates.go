package admin

import "github.com/prometheus/client_golang/prometheus"

// maxCertificates bounds the series, should a file have many names.
const maxCertificates = 100

// certificates collects what is left of each certificate.
type certificates struct {
	list                     func() []Certificate
	expires, failing, failed *prometheus.Desc
}

// RegisterCertificates adds the metrics of the listeners' certificates.
func RegisterCertificates(to prometheus.Registerer, list func() []Certificate) {
	to.MustRegister(&certificates{
		list:    list,
		expires: prometheus.NewDesc("postern_certificate_expiry_timestamp_seconds", "When the certificate for a configured name expires, in seconds since 1970; 0 when there is none.", []string{"name"}, nil),
		failing: prometheus.NewDesc("postern_certificate_renewal_failing", "1 while the renewal of a certificate fails, else 0.", []string{"name"}, nil),
		failed:  prometheus.NewDesc("postern_certificate_renewal_failing_since_timestamp_seconds", "Since when the renewal of a certificate fails, in seconds since 1970; 0 while it does not.", []string{"name"}, nil),
	})
}

func (c *certificates) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.expires
	ch <- c.failing
	ch <- c.failed
}

func (c *certificates) Collect(ch chan<- prometheus.Metric) {
	seen := make(map[string]bool)
	for _, cert := range c.list() {
		if seen[cert.Name] || len(seen) == maxCertificates {
			continue // a registry refuses the whole page for one series that is there twice
		}
		seen[cert.Name] = true
		gauge := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, cert.Name)
		}
		expires, since := 0.0, 0.0
		if !cert.NotAfter.IsZero() {
			expires = float64(cert.NotAfter.Unix())
		}
		if !cert.FailingSince.IsZero() {
			since = float64(cert.FailingSince.Unix())
		}
		gauge(c.expires, expires)
		gauge(c.failing, truth(since > 0))
		gauge(c.failed, since)
	}
}
