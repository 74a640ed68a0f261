package auth

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"postern/internal/pg"
	"postern/internal/pgtest"

	"github.com/jackc/pgx/v5"
)

// Old rows of the audit and networks that were left go in batches, also while others
// delete them and hold some of them; the young ones stay.
func TestRetention(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	for _, sql := range []string{
		`insert into audit (at, actor, action, object) select now() - n * interval '1 hour', 'root', 'x', 'y' from generate_series(1, 5000) n`,
		`insert into app_user (name) select 'u' || n || '@example.com' from generate_series(1, 100) n`,
		`insert into known_network (user_id, network, last_at)
			select id, ('10.' || n || '.0.0/24')::cidr, now() - n * interval '1 day' - interval '1 minute' from app_user, generate_series(1, 40) n`,
		`analyze audit, known_network`,
	} {
		_, err := s.db.Exec(ctx, sql)
		must(t, err)
	}
	holder, err := s.db.Begin(ctx) // an admin's transaction that lasts
	must(t, err)
	defer func() { _ = holder.Rollback(context.WithoutCancel(ctx)) }()
	_, err = holder.Exec(ctx, `select from audit where at < now() - interval '4990 hours' for update`)
	must(t, err)

	var all sync.WaitGroup
	for range 3 {
		r := &retention{store: s, audit: 1000*time.Hour + time.Minute}
		all.Go(func() {
			if err := r.round(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	counts := func() (audit, networks int) {
		must(t, s.db.QueryRow(ctx, `select (select count(*) from audit), (select count(*) from known_network)`).Scan(&audit, &networks))
		return
	}
	if audit, networks := counts(); audit != 1000+11 || networks != 100*29 {
		t.Errorf("%d rows of the audit are left, %d networks", audit, networks)
	}
	must(t, holder.Rollback(ctx))
	must(t, (&retention{store: s, audit: 1000*time.Hour + time.Minute}).round(ctx))
	if audit, _ := counts(); audit != 1000 {
		t.Errorf("%d rows of the audit are left", audit)
	}
}

// Retention finds old rows without reading those that stay.
func TestRetentionUsesIndexes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	for _, sql := range []string{
		`insert into app_user (name) select 'u' || n || '@example.com' from generate_series(1, 1000) n`,
		`insert into known_network (user_id, network, last_at)
			select id, ('10.' || n || '.0.0/24')::cidr, now() - n * interval '1 day' from app_user, generate_series(1, 20) n`,
		`analyze known_network`,
	} {
		_, err := s.db.Exec(ctx, sql)
		must(t, err)
	}
	plan := pgtest.Explain(t, s.db, expireNetworks, 19990*time.Hour, pg.ExpireBatch)
	if !plan.Uses("known_network_last") || plan.RowsOf("known_network") > 100 {
		t.Error(plan)
	}
}

// A node that stops does not wait for its first round.
func TestRetentionEndsAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	(&retention{store: NewStore(pgx.Tx(nil))}).run(ctx)
}

// A node that starts learns the addresses of the last logins, and neither networks nor old ones.
func TestRecentAddresses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice@example.com"})
	must(t, err)
	_, err = s.db.Exec(ctx, `insert into known_network (user_id, network, last_at) select id, n.network::cidr, now() - n.age::interval
		from app_user, (values ('192.0.2.1/32', '1 hour'), ('2001:db8:1:2::/64', '30 hours'), ('192.0.2.0/24', '1 hour'),
			('2001:db8:1::/48', '1 hour'), ('192.0.2.9/32', '50 hours'), ('192.0.2.2/32', '2 hours')) n(network, age)`)
	must(t, err)
	for limit, want := range map[int]string{10: "[192.0.2.1/32 192.0.2.2/32 2001:db8:1:2::/64]", 1: "[192.0.2.1/32]"} {
		list, err := s.RecentAddresses(ctx, limit)
		if must(t, err); fmt.Sprint(list) != want {
			t.Errorf("at most %d: %v, want %s", limit, list, want)
		}
	}
}
