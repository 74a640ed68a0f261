package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/relay/dkim/keys"
)

// dkimState counts a domain's keys in a state.
type dkimState struct {
	domain string
	state  keys.State
	n      int
}

// gone is the state in the metric of an active key whose record is gone, so that it signs nothing.
const gone keys.State = "gone"

// RegisterDKIM adds the metrics of the DKIM keys: each domain with keys has all states.
func RegisterDKIM(to prometheus.Registerer, list func() []keys.Key) {
	count := func() (all []dkimState) {
		states := append(keys.States(), gone)
		for _, k := range list() {
			if n := len(all); n == 0 || all[n-1].domain != k.Domain {
				for _, s := range states {
					all = append(all, dkimState{domain: k.Domain, state: s})
				}
			}
			if k.State == keys.Active && k.Gone {
				k.State = gone
			}
			for i := len(all) - len(states); i < len(all); i++ {
				if all[i].state == k.State {
					all[i].n++
				}
			}
		}
		return all
	}
	RegisterEach(to, []string{"domain", "state"}, count, func(s dkimState) []string { return []string{s.domain, string(s.state)} }, []Reading[dkimState]{
		{Name: "postern_dkim_keys", Help: "DKIM keys of a domain in a state; gone are active ones whose record is no longer there, so that they sign nothing.",
			Value: func(s dkimState) float64 { return float64(s.n) }},
	})
	pending := func() (oldest []keys.Key) {
		for _, k := range list() { // the oldest of a domain comes first
			if n := len(oldest); k.State == keys.Pending && (n == 0 || oldest[n-1].Domain != k.Domain) {
				oldest = append(oldest, k)
			}
		}
		return oldest
	}
	RegisterEach(to, []string{"domain"}, pending, func(k keys.Key) []string { return []string{k.Domain} }, []Reading[keys.Key]{
		{Name: "postern_dkim_pending_since_timestamp_seconds", Help: "When the oldest DKIM key of a domain was made whose record is not published yet, in seconds since 1970.",
			Value: func(k keys.Key) float64 { return unixTime(k.Since) }},
	})
}
