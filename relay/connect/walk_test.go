package connect

import "testing"

// TestSiteOfADomain names sites by the hosts of best preference.
func TestSiteOfADomain(t *testing.T) {
	t.Parallel()
	many := make([]exchanger, maxHosts)
	for test, w := range map[string]Walk{
		"a b":      {hosts: []exchanger{{host: "b", preference: 1}, {host: "A", preference: 1}, {host: "c", preference: 2}}},
		"one.test": {domain: "one.test", hosts: many},
	} {
		if got := w.site(); got != test {
			t.Errorf("site %q, want %q", got, test)
		}
	}
}
