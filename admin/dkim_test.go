package admin

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/relay/dkim/keys"
)

func TestDKIMKeysAreCounted(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	RegisterDKIM(r, func() []keys.Key {
		return []keys.Key{
			{Domain: "a.test", State: keys.Retired}, {Domain: "a.test", State: keys.Active}, {Domain: "a.test", State: keys.Active, Gone: true},
			{Domain: "b.test", State: keys.Pending, Since: time.Unix(1000, 0)}, {Domain: "b.test", State: keys.Pending, Since: time.Unix(2000, 0)},
		}
	})
	const want = `
# HELP postern_dkim_keys DKIM keys of a domain in a state; gone are active ones whose record is no longer there, so that they sign nothing.
# TYPE postern_dkim_keys gauge
postern_dkim_keys{domain="a.test",state="active"} 1
postern_dkim_keys{domain="a.test",state="gone"} 1
postern_dkim_keys{domain="a.test",state="pending"} 0
postern_dkim_keys{domain="a.test",state="retired"} 1
postern_dkim_keys{domain="a.test",state="retiring"} 0
postern_dkim_keys{domain="b.test",state="active"} 0
postern_dkim_keys{domain="b.test",state="gone"} 0
postern_dkim_keys{domain="b.test",state="pending"} 2
postern_dkim_keys{domain="b.test",state="retired"} 0
postern_dkim_keys{domain="b.test",state="retiring"} 0
# HELP postern_dkim_pending_since_timestamp_seconds When the oldest DKIM key of a domain was made whose record is not published yet, in seconds since 1970.
# TYPE postern_dkim_pending_since_timestamp_seconds gauge
postern_dkim_pending_since_timestamp_seconds{domain="b.test"} 1000
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
