package node

import (
	"context"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"postern/admin"
	"postern/internal/dnstest"
)

// Answers of name servers are counted, with the time that they take; one from memory takes none.
func TestQuestionsToNameServersAreCounted(t *testing.T) {
	t.Parallel()
	for name, validates := range map[string]bool{"validates": true, "blind": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { countQuestions(t, validates) })
		})
	}
}

func countQuestions(t *testing.T, validates bool) {
	const each = 250 * time.Millisecond
	var zones dnstest.Zones
	zones.Add(`a.test. 60 IN TXT "one"`, `b.test. 60 IN TXT "two"`)
	zones.Sign("test")
	if !validates {
		zones.Blind()
	}
	zones.ServFail("broken.test", "TXT")
	resolver := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		time.Sleep(each)
		return zones.Exchange(ctx, server, query)
	})
	r := prometheus.NewRegistry()
	registerDNS(r, resolver)
	for _, name := range []string{"a.test", "a.test", "a.test", "b.test", "none.test", "broken.test", "broken.test", "broken.test"} {
		_, _ = resolver.TXT(t.Context(), name)
	}
	want := map[string]float64{
		"postern_dns_questions_total answer": 2, "postern_dns_questions_total none": 1, "postern_dns_questions_total temporary": 3,
		"postern_dns_cache_hits_total": 2, "postern_dns_cache_entries": 2, "postern_dns_seconds_total": (6 * each).Seconds(),
		"postern_dns_validates": admin.Truth(validates), "postern_dns_servers_blind": admin.Truth(!validates),
	}
	if got := values(t, r); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// values are those of all series, by name and the values of their labels.
func values(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() // it is one of them
		}
	}
	return all
}
