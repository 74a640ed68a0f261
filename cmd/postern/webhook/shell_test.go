package webhook

import (
	"strings"
	"testing"
	"time"

	"postern/relay/webhook"
)

// 'webhook show' says that the feed is held back, and names what does.
func TestDescribe(t *testing.T) {
	t.Parallel()
	since := time.Now()
	for _, held := range []*time.Time{nil, &since} {
		var out strings.Builder
		w := shown{Webhook: webhook.Webhook{Name: "shop", State: webhook.Active, FeedHeld: held}}
		if err := (Shell{Out: &out}).describe(&w); err != nil || strings.Contains(out.String(), "postern check --only database") != (held != nil) {
			t.Errorf("%v, held since %v: %s", err, held, out.String())
		}
	}
}
