package auth

import (
	"encoding/json"
	"slices"
	"testing"
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
	plan := explain(t, s, selectPage, "u15", page)
	if !plan.uses("app_user_name") || plan.rows("app_user") > page+1 || plan.rows("credential") > page+1 {
		t.Error(plan)
	}
	// AUTH takes the same care.
	plan = explain(t, s, accountByPassword, "u77@example.com", 0, "192.0.2.0/24")
	if !plan.uses("app_user_name") || !plan.uses("limit_rule_match") || !plan.uses("credential_live_password") ||
		slices.ContainsFunc(plan, func(n planNode) bool {
			return n.Type == "Seq Scan" && n.Relation != "sender_pattern"
		}) {
		t.Error(plan)
	}
	for sql, args := range map[string][]any{
		selectStanding: {"u77@example.com", "192.0.2.1/32", "192.0.2.0/24"},
		forgetHomes:    {[]int64{7, 77}, addressesKept},
	} {
		plan = explain(t, s, sql, args...)
		if !plan.uses("known_network_pkey") || slices.ContainsFunc(plan, func(n planNode) bool { return n.Type == "Seq Scan" }) {
			t.Error(sql, plan)
		}
	}
	// And Watch.
	plan = explain(t, s, watchUsers, nil, 15.0, watchMax)
	if !plan.uses("app_user_changed") {
		t.Error(plan)
	}
}

// plan is an EXPLAIN ANALYZE, flattened.
type plan []planNode

type planNode struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Plans    plan    `json:"Plans"`
}

func explain(t *testing.T, s *Store, sql string, args ...any) plan {
	t.Helper()
	var text []byte
	must(t, s.db.QueryRow(t.Context(), `explain (analyze, format json) `+sql, args...).Scan(&text))
	var top []struct{ Plan planNode }
	must(t, json.Unmarshal(text, &top))
	return plan{top[0].Plan}.flat()
}

func (p plan) flat() (all plan) {
	for _, n := range p {
		below := n.Plans
		n.Plans = nil
		all = append(append(all, n), below.flat()...)
	}
	return all
}

func (p plan) uses(index string) bool {
	return slices.ContainsFunc(p, func(n planNode) bool { return n.Index == index && n.Type != "Bitmap Heap Scan" })
}

func (p plan) rows(relation string) (sum float64) {
	for _, n := range p {
		if n.Relation == relation {
			sum += n.Rows * n.Loops
		}
	}
	return sum
}
