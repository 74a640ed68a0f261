package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

func sink() upstream.Account {
	return upstream.Account{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: upstream.TLSNone}
}

func account() upstream.Account {
	return upstream.Account{
		Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: upstream.TLSRequire,
		MaxConnections: 7, DKIM: "off",
	}
}

// addAccounts adds accounts, which have no password.
func addAccounts(t *testing.T, db *pgtest.DB, list ...upstream.Account) {
	t.Helper()
	for _, a := range list {
		if err := upstream.NewStore(db.Pool, nil).Add(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStatements(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for name, sql := range map[string]string{
		"lockUser": lockUser, "lockRoutes": lockRoutes, "addRoute": addRoute, "addWays": addWays, "numberRoutes": numberRoutes,
		"listRoutes": listRoutes, "removeRoute": removeRoute,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// newUser makes a user and returns its number.
func newUser(t *testing.T, db *pgtest.DB, name string) (id int64) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), `insert into app_user (name) values ($1) returning id`, name).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	second := sink()
	second.Name = "second"
	addAccounts(t, db, sink(), second)
	carol := newUser(t, db, "carol")
	if _, err := s.Add(ctx, Rule{Via: []string{"no-such"}}, 0); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("an upstream that is not there: %v, want ErrNotFound", err)
	}
	add := func(r Rule, before int64) int64 {
		t.Helper()
		id, err := s.Add(ctx, r, before)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	def := add(Rule{Via: []string{"second", "sink", MX}}, 0)
	domain := add(Rule{RecipientDomain: "*.Example.ORG", Via: []string{MX}}, 0)
	user := add(Rule{UserID: carol, Via: []string{"sink"}}, domain)
	for name, test := range map[string]struct {
		rule   Rule
		before int64
		want   error
	}{
		"second default":       {Rule{Via: []string{MX}}, 0, refusal.ErrExists},
		"default before":       {Rule{Via: []string{MX}}, user, refusal.ErrInvalid},
		"before nothing":       {Rule{SenderDomain: "a.test", Via: []string{MX}}, 4711, refusal.ErrNotFound},
		"bad domain":           {Rule{RecipientDomain: "not a domain", Via: []string{MX}}, 0, refusal.ErrInvalid},
		"domains by a dot":     {Rule{RecipientDomain: ".example.org", Via: []string{MX}}, 0, refusal.ErrInvalid},
		"upstream twice":       {Rule{SenderDomain: "a.test", Via: []string{"sink", "sink"}}, 0, refusal.ErrInvalid},
		"mx before":            {Rule{SenderDomain: "a.test", Via: []string{MX, "sink"}}, 0, refusal.ErrInvalid},
		"mx twice":             {Rule{SenderDomain: "a.test", Via: []string{MX, MX}}, 0, refusal.ErrInvalid},
		"no way":               {Rule{SenderDomain: "a.test"}, 0, refusal.ErrInvalid},
		"negative user":        {Rule{UserID: -1, Via: []string{MX}}, 0, refusal.ErrInvalid},
		"user who is not here": {Rule{UserID: 4711, Via: []string{MX}}, 0, refusal.ErrNotFound},
	} {
		if _, err := s.Add(ctx, test.rule, test.before); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{ // the default last, although it was there first
		{ID: user, Position: 1, UserID: carol, Via: []string{"sink"}},
		{ID: domain, Position: 2, RecipientDomain: "*.example.org", Via: []string{MX}},
		{ID: def, Position: 3, Via: []string{"second", "sink", MX}},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Rule{}, "CreatedAt")); diff != "" {
		t.Error(diff)
	}
	if err := upstream.NewStore(db.Pool, nil).Remove(ctx, "sink"); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("removed an upstream in use: %v, want ErrInvalid", err)
	}
	if was, err := s.Remove(ctx, domain); err != nil || was.RecipientDomain != "*.example.org" {
		t.Errorf("%v, %v", was, err)
	}
	if _, err := s.Remove(ctx, domain); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
	if _, err := db.Pool.Exec(ctx, `delete from app_user`); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, s); !slices.Equal(got, []int64{def}) {
		t.Errorf("without its user: %v, want the default route %d", got, def)
	}
}

// ids are the rules in their order.
func ids(t *testing.T, s *Store) (list []int64) {
	t.Helper()
	rules, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		list = append(list, r.ID)
	}
	return list
}

// Rules are where they were put last, and the default route is behind all of them.
func TestOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	var r []int64
	for _, domain := range []string{"", "a.test", "b.test", "c.test", "d.test"} {
		id, err := s.Add(ctx, Rule{SenderDomain: domain, Via: []string{MX}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, id)
	}
	for _, test := range []struct {
		move, before int64
		want         []int64
	}{
		{r[3], r[1], []int64{r[3], r[1], r[2], r[4], r[0]}},
		{r[3], 0, []int64{r[1], r[2], r[4], r[3], r[0]}},
		{r[1], r[0], []int64{r[2], r[4], r[3], r[1], r[0]}},
		{r[1], r[3], []int64{r[2], r[4], r[1], r[3], r[0]}},
		{r[4], r[1], []int64{r[2], r[4], r[1], r[3], r[0]}}, // it is there
	} {
		if moved, err := s.Move(ctx, test.move, test.before); err != nil || moved.ID != test.move {
			t.Fatalf("%v, %v", moved, err)
		}
		if got := ids(t, s); !slices.Equal(got, test.want) {
			t.Errorf("%d before %d: %v, want %v", test.move, test.before, got, test.want)
		}
	}
	for name, test := range map[string]struct {
		move, before int64
		want         error
	}{
		"the default route": {r[0], r[1], refusal.ErrInvalid}, "before itself": {r[1], r[1], refusal.ErrInvalid},
		"nothing": {4711, r[1], refusal.ErrNotFound}, "before nothing": {r[1], 4711, refusal.ErrNotFound},
	} {
		if _, err := s.Move(ctx, test.move, test.before); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	// In its place, before the one behind it, and before itself, which is the same.
	order := []int64{r[2], r[4], r[1], r[3], r[0]}
	for _, test := range []struct {
		domain     string
		was, to    int // places
		beforeSelf bool
	}{{"d.test", 1, 1, false}, {"d.test", 1, 1, true}, {"c.test", 3, 3, false}, {"", 4, 4, false}} {
		before := int64(0)
		if test.beforeSelf {
			before = order[test.was]
		}
		id, was, err := s.Replace(ctx, Rule{SenderDomain: test.domain, Via: []string{MX}}, before)
		if err != nil || was != order[test.was] {
			t.Fatalf("%s: in the place of %d, want %d, %v", test.domain, was, order[test.was], err)
		}
		order[test.to] = id
		if got := ids(t, s); !slices.Equal(got, order) {
			t.Errorf("%s: %v, want %v", test.domain, got, order)
		}
	}
}

// Admins who move, add and remove at the same time leave an order in which each rule has a place
// of its own.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	const admins, times = 6, 15
	var r []int64
	for i := range admins {
		id, err := s.Add(ctx, Rule{SenderDomain: fmt.Sprintf("%d.test", i), Via: []string{MX}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, id)
	}
	var group sync.WaitGroup
	for i := range admins {
		group.Go(func() {
			for n := range times {
				if _, err := s.Move(ctx, r[i], r[(i+1+n%(admins-1))%admins]); err != nil {
					t.Error(err)
				}
				id, err := s.Add(ctx, Rule{RecipientDomain: fmt.Sprintf("%d.test", i), Via: []string{MX}}, r[(i+n)%admins])
				if err == nil && n+1 < times {
					_, err = s.Remove(ctx, id)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := ids(t, s); len(got) != 2*admins {
		t.Errorf("%v, want %d rules", got, 2*admins)
	}
	var places, rows int
	if err := db.Pool.QueryRow(ctx, `select count(distinct position), count(*) from route where position between 1 and $1`, 2*admins).Scan(&places, &rows); err != nil || places != 2*admins || rows != places {
		t.Errorf("%d places of %d rules, %v", places, rows, err)
	}
}

// A replacement leaves what was there alone if it cannot be made.
func TestReplaceRoute(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	addAccounts(t, db, sink())
	first, was, err := s.Replace(ctx, Rule{Via: []string{MX}}, 0)
	if err != nil || was != 0 {
		t.Fatalf("nothing there: %d, %v", was, err)
	}
	other, err := s.Add(ctx, Rule{RecipientDomain: "example.org", Via: []string{MX}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Replace(ctx, Rule{Via: []string{"sink", "nowhere"}}, 0); !errors.Is(err, refusal.ErrNotFound) || !strings.Contains(err.Error(), `"nowhere"`) || strings.Contains(err.Error(), "sink") {
		t.Fatalf("%v, want ErrNotFound about nowhere", err)
	}
	if _, err := s.Add(ctx, Rule{Via: []string{"nowhere"}}, 0); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("an unknown upstream for a match that is taken: %v, want ErrNotFound", err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 2 || list[1].ID != first {
		t.Fatalf("%v, %v", list, err)
	}
	second, was, err := s.Replace(ctx, Rule{Via: []string{"sink"}}, 0)
	if err != nil || was != first {
		t.Fatalf("%d, %v, want %d", was, err, first)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 2 || list[0].ID != other || list[1].ID != second {
		t.Fatalf("%v, %v", list, err)
	}
}

// Every change is in the audit, what was refused is not.
func TestAudit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s, accounts := NewStore(db.Pool).As("root"), upstream.NewStore(db.Pool, nil).As("root")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("not refused")
		}
	}
	ok(accounts.Add(ctx, account()))
	refused(accounts.Add(ctx, account()))
	id, err := s.Add(ctx, Rule{Via: []string{"provider"}}, 0)
	ok(err)
	refused(accounts.Remove(ctx, "provider"))
	_, err = s.Add(ctx, Rule{Via: []string{MX}}, 0)
	refused(err)
	second, _, err := s.Replace(ctx, Rule{SenderDomain: "a.test", Via: []string{MX}}, 0)
	ok(err)
	_, err = s.Remove(ctx, second)
	ok(err)
	_, err = s.Remove(ctx, second)
	refused(err)
	third, _, err := s.Replace(ctx, Rule{Via: []string{MX}}, 0)
	ok(err)
	refused(accounts.Remove(ctx, "nowhere"))
	ok(accounts.Remove(ctx, "provider"))
	rows, err := db.Pool.Query(ctx, `select actor || ': ' || action || ' ' || object || ' ' || coalesce(detail->>'host', '') || coalesce(detail->>'route', '')
		|| coalesce(' for ' || (detail->>'replaced'), '') from audit order by id`)
	ok(err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	ok(err)
	const all = "all mail (the default route)"
	want := []string{
		"root: upstream add provider smtp.provider.example",
		fmt.Sprintf("root: route add %s via provider %d", all, id),
		fmt.Sprintf("root: route add sender domain a.test via mx %d", second),
		fmt.Sprintf("root: route remove sender domain a.test via mx %d", second),
		fmt.Sprintf("root: route add %s via mx %d for %d", all, third, id),
		"root: upstream remove provider ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func parse(t *testing.T, s string) smtp.Address {
	t.Helper()
	a, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestResolve(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	table := NewTable(s, upstream.NewStore(db.Pool, nil), 1)
	from, to := parse(t, "a@sender.test"), parse(t, "b@Example.org")
	if _, err := table.Resolve(ctx, 0, from, to); !errors.Is(err, ErrNoRoute) {
		t.Errorf("no rules: %v, want ErrNoRoute", err)
	}
	addAccounts(t, db, sink(), account())
	nine := newUser(t, db, "nine")
	for _, r := range []Rule{
		{Via: []string{"sink"}},
		{RecipientDomain: "example.org", SenderDomain: "sender.test", Via: []string{"provider", "sink"}},
		{UserID: nine, Via: []string{MX}},
	} {
		if _, err := s.Add(ctx, r, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		user     int64
		from, to string
		want     string
	}{
		{0, "a@sender.test", "b@Example.ORG", "provider"},
		{0, "a@other.test", "b@example.org", "sink"},
		{0, "a@sender.test", "b@example.net", "sink"},
		{nine, "a@other.test", "b@example.net", "mx"},
		{nine, "a@sender.test", "b@example.org", "provider"},
	} {
		d, err := table.Resolve(ctx, test.user, parse(t, test.from), parse(t, test.to))
		if err != nil {
			t.Fatal(err)
		}
		first, err := d.First()
		if err != nil {
			t.Fatal(err)
		}
		got := first.Name
		if got != test.want || d.Route == 0 {
			t.Errorf("user %d, %s to %s: %s by route %d, want %s", test.user, test.from, test.to, got, d.Route, test.want)
		}
		if got == "provider" && !first.Upstream.Equal(account()) {
			t.Errorf("upstream %+v, want %+v", *first.Upstream, account())
		}
	}

	// Without the key the account that has a password is spoilt and nothing else: the next is the first that can be used.
	if _, err := db.Pool.Exec(ctx, `update upstream set username = 'relay', password = 'sealed' where name = 'provider'`); err != nil {
		t.Fatal(err)
	}
	table = NewTable(s, upstream.NewStore(db.Pool, nil), 1)
	d, err := table.Resolve(ctx, 0, from, to)
	if err != nil || len(d.Ways) != 2 || !errors.Is(d.Ways[0].Err, upstream.ErrNoKey) || !strings.Contains(d.Ways[0].Err.Error(), "provider") {
		t.Errorf("without the key: %+v, %v, want ErrNoKey that names the upstream", d, err)
	}
	if first, err := d.First(); err != nil || first.Name != "sink" {
		t.Errorf("the first that can be used: %v, %v", first, err)
	}
	d.Ways = d.Ways[:1]
	if _, err := d.First(); !errors.Is(err, upstream.ErrNoKey) {
		t.Errorf("no way that can be used: %v", err)
	}
}
