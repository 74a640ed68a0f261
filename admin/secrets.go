package admin

import (
	"time"

	"postern/relay/upstream"

	"github.com/prometheus/client_golang/prometheus"
)

// upstreamSecrets collects what is left of them.
type upstreamSecrets struct {
	list                           func() []upstream.Secret
	expires, token, failing, login *prometheus.Desc
}

// RegisterUpstreamSecrets adds the metrics of the upstreams' accounts.
func RegisterUpstreamSecrets(to prometheus.Registerer, list func() []upstream.Secret) {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("postern_upstream_"+name, help, []string{"upstream"}, nil)
	}
	to.MustRegister(&upstreamSecrets{
		list:    list,
		expires: desc("secret_expiry_timestamp_seconds", "The last day of the secret of an upstream's account, in seconds since 1970, where it is known."),
		token:   desc("token_expiry_timestamp_seconds", "When the access token of an upstream's account expires, in seconds since 1970; 0 when there is none."),
		failing: desc("token_failing_since_timestamp_seconds", "When the authority began to refuse new tokens for an upstream's account, in seconds since 1970; 0 while it gives them."),
		login:   desc("login_needed", "1 while a person has to log in for an upstream's account, with 'postern upstream login', else 0."),
	})
}

func (u *upstreamSecrets) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{u.expires, u.token, u.failing, u.login} {
		ch <- desc
	}
}

func (u *upstreamSecrets) Collect(ch chan<- prometheus.Metric) {
	for _, s := range u.list() {
		gauge := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, s.Upstream)
		}
		if !s.Expires.IsZero() {
			gauge(u.expires, unixTime(s.Expires))
		}
		if token := s.Token; !token.ExpiresAt.IsZero() || !token.FailingSince.IsZero() {
			gauge(u.token, unixTime(token.ExpiresAt))
			gauge(u.failing, unixTime(token.FailingSince))
			gauge(u.login, truth(token.Login))
		}
	}
}

// unixTime is a time as metrics have it.
func unixTime(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}
