package check

import (
	"testing"
	"time"

	"postern/relay/webhook"
)

// The finding says what keeps a webhook waiting, the feed among it.
func TestWaits(t *testing.T) {
	t.Parallel()
	since := time.Now()
	for want, w := range map[string]webhook.Webhook{
		"":                   {},
		", 2 events waiting": {Waiting: 2},
		", 1 event waiting, and a transaction holds back the feed: see feed.held": {Waiting: 1, FeedHeld: &since},
	} {
		if got := waits(&w); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
