package admin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/admin/health"
)

func TestCertificateMetrics(t *testing.T) {
	t.Parallel()
	at := func(unix int64) time.Time { return time.Unix(unix, 0) }
	list := []health.Certificate{
		{Name: "two.test", NotAfter: at(5000)}, {Name: "two.test", NotAfter: at(4000), FailingSince: at(900)}, {Name: "two.test", NotAfter: at(6000), FailingSince: at(800)},
		{Name: "one.test", NotAfter: at(7000)}, {Name: "none.test", FailingSince: at(700)},
		{Name: "caf\xe9", NotAfter: at(3000)}, {Name: "caf\xe8", NotAfter: at(2000)},
	}
	r := prometheus.NewRegistry()
	RegisterCertificates(r, func() []health.Certificate { return list })
	page := text(t, r)
	for _, want := range []string{
		`postern_certificate_expiry_timestamp_seconds{name="two.test"} 4000`, `postern_certificate_expiry_timestamp_seconds{name="one.test"} 7000`,
		`postern_certificate_expiry_timestamp_seconds{name="none.test"} 0`,
		`postern_certificate_expiry_timestamp_seconds{name="caf�"} 2000`,
		`postern_certificate_renewal_failing{name="two.test"} 1`, `postern_certificate_renewal_failing{name="one.test"} 0`,
		`postern_certificate_renewal_failing_since_timestamp_seconds{name="two.test"} 800`, `postern_certificate_renewal_failing_since_timestamp_seconds{name="one.test"} 0`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
	for i := range 10 * maxCertificates {
		list = append(list, health.Certificate{Name: fmt.Sprint(i), NotAfter: at(1)})
	}
	if n := count(t, r); n != 3*maxCertificates {
		t.Errorf("%d series of %d certificates", n, len(list))
	}
	if t.Failed() {
		t.Log(page)
	}
}
