package trust

import (
	"testing"
	"time"

	"postern/relay/dkim/keys"
)

// The note says what is to be done, and nothing that is done.
func TestNotes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)
	active := keys.Key{Domain: "shop.test", Algorithm: "rsa", State: keys.Active, Since: now, EveryDays: 180}
	pending := keys.Key{Domain: "shop.test", Algorithm: "rsa", State: keys.Pending}
	published := pending
	published.LookedAt = now
	lacking := published
	lacking.Found = "ns1.shop.test: no record"
	retiring := keys.Key{Domain: "shop.test", Algorithm: "rsa", State: keys.Retiring}
	for want, list := range map[string][]keys.Key{
		"next key on 2027-05-15":               {active},
		"":                                     {active, pending},
		"no node has looked at its record yet": {pending},
		"published; signs after the next look": {published},
		"ns1.shop.test: no record":             {lacking},
		"its record has to stay":               {retiring},
	} {
		if got := KeysOf(list)[0].Note(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
