package admin

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"postern/admin/health"
)

// maxCertificates bounds the series, should a file have many names.
const maxCertificates = 100

// RegisterCertificates adds the metrics of the listeners' certificates.
func RegisterCertificates(to prometheus.Registerer, list func() []health.Certificate) {
	named := func() []health.Certificate { return byName(list()) }
	RegisterEach(to, []string{"name"}, named, func(c health.Certificate) []string { return []string{c.Name} }, []Reading[health.Certificate]{
		{Name: "postern_certificate_expiry_timestamp_seconds", Help: "When the certificate for a configured name expires, in seconds since 1970; 0 when there is none.",
			Value: func(c health.Certificate) float64 { return unixTime(c.NotAfter) }},
		{Name: "postern_certificate_renewal_failing", Help: "1 while the renewal of a certificate fails, else 0.",
			Value: func(c health.Certificate) float64 { return Truth(!c.FailingSince.IsZero()) }},
		{Name: "postern_certificate_renewal_failing_since_timestamp_seconds", Help: "When the renewal of a certificate began to fail, in seconds since 1970; 0 while it succeeds.",
			Value: func(c health.Certificate) float64 { return unixTime(c.FailingSince) }},
	})
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
