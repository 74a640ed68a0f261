package queue

import (
	"strings"
	"testing"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// Statistics are of earlier: they say that nothing is due when a million rows are, or
// that nothing waits. Claims find their rows by the same indexes all the same; what is
// due is never read for each row.
func TestClaimPlansOfOldStatistics(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"nothing was due":                   `update recipient set next_attempt_at = now() + interval '1 day', notice_at = now() + interval '1 day'`,
		"nothing waited":                    `update recipient set owner = 1, notice_at = null`,
		"one destination, nothing was due":  `update recipient set domain_key = 'one.example', next_attempt_at = now() + interval '1 day', notice_at = now() + interval '1 day'`,
		"all was due, and the sender knows": `update recipient set next_attempt_at = now(), notice_at = null`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			exec(t, db, pgtest.LoadBacklog, 1, 2000, backlogDomains)
			exec(t, db, before)
			exec(t, db, `vacuum analyze`)
			for _, c := range []struct{ sql, first string }{{sqlClaim, "recipient_domain"}, {sqlClaimNotices, "recipient_notice"}} {
				plan := pgtest.GenericPlan(t, db, pg.TuneWork, c.sql)
				if n, of := strings.Count(plan, " using "+c.first+" "), strings.Count(plan, " on recipient"); n != 1 ||
					strings.Count(plan, " using recipient_pkey ") != 2 || of != 4 { // the update itself is the fourth
					t.Errorf("%d by %s, of %d:\n%s", n, c.first, of, plan)
				}
			}
		})
	}
}
