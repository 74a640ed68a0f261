package admin

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"postern/admin/health"
)

// maxCertificates bounds the series, should a file have many names.
const maxCertificates = 100

// certificates collects what is left of each certificate.
type certificates struct {
	list                     func() []health.Certificate
	expires, failing, failed *prometheus.Desc
}

// RegisterCertificates adds the metrics of the listeners' certificates.
func RegisterCertificates(to prometheus.Registerer, list func() []health.Certificate) {
	to.MustRegister(&certificates{
		list:    list,
		expires: prometheus.NewDesc("postern_certificate_expiry_timestamp_seconds", "When the certificate for a configured name expires, in seconds since 1970; 0 when there is none.", []string{"name"}, nil),
		failing: prometheus.NewDesc("postern_certificate_renewal_failing", "1 while the renewal of a certificate fails, else 0.", []string{"name"}, nil),
		failed:  prometheus.NewDesc("postern_certificate_renewal_failing_since_timestamp_seconds", "When the renewal of a certificate began to fail, in seconds since 1970; 0 while it succeeds.", []string{"name"}, nil),
	})
}

func (c *certificates) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.expires
	ch <- c.failing
	ch <- c.failed
}

func (c *certificates) Collect(ch chan<- prometheus.Metric) {
	for _, cert := range byName(c.list()) {
		gauge := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, cert.Name)
		}
		gauge(c.expires, unixTime(cert.NotAfter))
		gauge(c.failing, truth(!cert.FailingSince.IsZero()))
		gauge(c.failed, unixTime(cert.FailingSince))
	}
}

// byName has one certificate for each name, for a registry refuses the whole page for a
// series that is there twice. Of several for one name, of two kinds of keys for example,
// the first to expire and the longest trouble count.
func byName(list []health.Certificate) []health.Certificate {
	var named []health.Certificate
	at := make(map[string]int)
	for _, c := range list {
		c.Name = strings.ToValidUTF8(c.Name, "\uFFFD") // the subject of an old certificate may be in Latin-1
		i, known := at[c.Name]
		switch {
		case known:
			if c.NotAfter.Before(named[i].NotAfter) {
				named[i].NotAfter = c.NotAfter
			}
			if since := named[i].FailingSince; since.IsZero() || !c.FailingSince.IsZero() && c.FailingSince.Before(since) {
				named[i].FailingSince = c.FailingSince
			}
		case len(named) < maxCertificates:
			at[c.Name] = len(named)
			named = append(named, c)
		}
	}
	return named
}
