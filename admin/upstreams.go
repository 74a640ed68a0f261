package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

var ofUpstream = []string{"upstream"}

// RegisterUpstreamBreakers adds the metrics of the upstreams' breakers.
func RegisterUpstreamBreakers(to prometheus.Registerer, list func() breaker.States) {
	RegisterEach(to, ofUpstream, func() []breaker.State { return list() }, func(s breaker.State) []string { return []string{s.Upstream} }, []Reading[breaker.State]{
		{Name: "postern_upstream_open", Help: "1 while an upstream's breaker is open, else 0.", Value: func(s breaker.State) float64 { return Truth(s.Open) }},
		{Name: "postern_upstream_openings_total", Help: "Times that an upstream's breaker opened.", Counter: true,
			Value: func(s breaker.State) float64 { return float64(s.Opening) }},
	})
}

// limitOf is one limit of an upstream's budget.
type limitOf struct {
	upstream string
	budget.Used
}

// RegisterUpstreamBudgets adds the metrics of the upstreams' budgets.
func RegisterUpstreamBudgets(to prometheus.Registerer, list func() []budget.Usage) {
	RegisterEach(to, ofUpstream, list, func(u budget.Usage) []string { return []string{u.Upstream} }, []Reading[budget.Usage]{
		{Name: "postern_upstream_budget_waiting", Help: "Recipients that wait for an upstream's budget.", Value: func(u budget.Usage) float64 { return float64(u.Waiting) }},
	})
	limits := func() (all []limitOf) {
		for _, u := range list() {
			for _, l := range u.Limits {
				all = append(all, limitOf{u.Upstream, l})
			}
		}
		return all
	}
	RegisterEach(to, []string{"limit", "upstream"}, limits, func(l limitOf) []string { return []string{l.Text, l.upstream} }, []Reading[limitOf]{
		{Name: "postern_upstream_budget_used", Help: "The used part of a limit of an upstream's budget, with what is leased to nodes.",
			Value: func(l limitOf) float64 { return float64(l.Used.Used) }},
		{Name: "postern_upstream_budget_limit", Help: "The limit itself.", Value: func(l limitOf) float64 { return float64(l.Max) }},
	})
}

// RegisterUpstreamSecrets adds the metrics of the upstreams' accounts.
func RegisterUpstreamSecrets(to prometheus.Registerer, list func() []upstream.Secret) {
	ofToken := func(value func(upstream.Secret) float64) func(upstream.Secret) float64 {
		return func(s upstream.Secret) float64 {
			if s.Token.ExpiresAt.IsZero() && s.Token.FailingSince.IsZero() {
				return none
			}
			return value(s)
		}
	}
	RegisterEach(to, ofUpstream, list, func(s upstream.Secret) []string { return []string{s.Upstream} }, []Reading[upstream.Secret]{
		{Name: "postern_upstream_secret_expiry_timestamp_seconds", Help: "The last day of the secret of an upstream's account, in seconds since 1970, where it is known.",
			Value: func(s upstream.Secret) float64 {
				if s.Expires.IsZero() {
					return none
				}
				return unixTime(s.Expires)
			}},
		{Name: "postern_upstream_token_expiry_timestamp_seconds", Help: "When the access token of an upstream's account expires, in seconds since 1970; 0 when there is none.",
			Value: ofToken(func(s upstream.Secret) float64 { return unixTime(s.Token.ExpiresAt) })},
		{Name: "postern_upstream_token_failing_since_timestamp_seconds", Help: "When the authority began to refuse new tokens for an upstream's account, in seconds since 1970; 0 while it gives them.",
			Value: ofToken(func(s upstream.Secret) float64 { return unixTime(s.Token.FailingSince) })},
		{Name: "postern_upstream_login_needed", Help: "1 while a person has to log in for an upstream's account, with 'postern upstream login', else 0.",
			Value: ofToken(func(s upstream.Secret) float64 { return Truth(s.Token.Login) })},
	})
}

// unixTime is a time as metrics have it.
func unixTime(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}
