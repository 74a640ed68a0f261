package auth

import (
	"slices"
	"testing"

	"postern/internal/pgtest"
)

// 'user list' reads one page by the index of names, and nothing of other users.
func TestStoreListUsesTheIndex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.db.Exec(ctx, `
		with u as (insert into app_user (name, updated_at) select 'u' || n || '@example.com', now() - n * interval '1 minute' from generate_series(1, 20000) n returning id)
		insert into credential (user_id, kind, hash) select id, 'password', '' from u`)
	must(t, err)
	_, err = s.db.Exec(ctx, `insert into limit_rule (user_id, kind, max) select id, 'size', 1 from app_user`)
	must(t, err)
	_, err = s.db.Exec(ctx, `insert into known_network (user_id, network) select id, n from app_user, unnest('{192.0.2.0/24,192.0.2.1/32}'::cidr[]) n`)
	must(t, err)
	_, err = s.db.Exec(ctx, `analyze app_user, credential, sender_pattern, limit_rule, known_network`)
	must(t, err)
	const page = 50
	plan := pgtest.Explain(t, s.db, selectPage, "u15", page)
	if !plan.Uses("app_user_name") || plan.RowsOf("app_user") > page+1 || plan.RowsOf("credential") > page+1 {
		t.Error(plan)
	}
	// AUTH takes the same care.
	plan = pgtest.Explain(t, s.db, accountByPassword, "u77@example.com", 0, "192.0.2.0/24")
	if !plan.Uses("app_user_name") || !plan.Uses("limit_rule_match") || !plan.Uses("credential_live_password") ||
		slices.ContainsFunc(plan, func(n pgtest.PlanNode) bool {
			return n.Type == "Seq Scan" && n.Relation != "sender_pattern"
		}) {
		t.Error(plan)
	}
	for sql, args := range map[string][]any{
		selectStanding: {"u77@example.com", "192.0.2.1/32", "192.0.2.0/24"},
		forgetHomes:    {[]int64{7, 77}, addressesKept},
	} {
		plan = pgtest.Explain(t, s.db, sql, args...)
		if !plan.Uses("known_network_pkey") || slices.ContainsFunc(plan, func(n pgtest.PlanNode) bool { return n.Type == "Seq Scan" }) {
			t.Error(sql, plan)
		}
	}
	// And Watch.
	plan = pgtest.Explain(t, s.db, watchUsers, nil, 15.0, watchMax)
	if !plan.Uses("app_user_changed") {
		t.Error(plan)
	}
}
