package route

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

func newSealer(t *testing.T, fill byte) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sink() upstream.Account {
	return upstream.Account{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: upstream.TLSNone}
}

func account() upstream.Account {
	return upstream.Account{
		Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: upstream.TLSRequire,
		Username: "relay", Password: "secret", MaxConnections: 7,
	}
}

// addAccounts adds accounts, with the key of newSealer(1).
func addAccounts(t *testing.T, db *pgtest.DB, list ...upstream.Account) {
	t.Helper()
	for _, a := range list {
		if err := upstream.NewStore(db.Pool, newSealer(t, 1)).Add(t.Context(), a); err != nil {
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
		"addRoute": addRoute, "addRouteUpstreams": addRouteUpstreams, "listRoutes": listRoutes, "oneRoute": oneRoute,
		"removeRoute": removeRoute, "sameMatch": sameMatch,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	second := sink()
	second.Name = "second"
	addAccounts(t, db, sink(), second)
	if _, err := s.Add(ctx, Rule{Upstreams: []string{"no-such"}}); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("an upstream that is not there: %v, want ErrNotFound", err)
	}
	add := func(r Rule) int64 {
		t.Helper()
		id, err := s.Add(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	def := add(Rule{Upstreams: []string{"second", "sink"}})
	domain := add(Rule{RecipientDomain: "Example.ORG"})
	user := add(Rule{UserID: 3, Position: 5, Upstreams: []string{"sink"}})
	if _, err := s.Add(ctx, Rule{}); !errors.Is(err, refusal.ErrExists) {
		t.Errorf("a second default route: %v, want ErrExists", err)
	}
	for name, r := range map[string]Rule{
		"bad domain":        {RecipientDomain: "not a domain"},
		"upstream twice":    {SenderDomain: "a.test", Upstreams: []string{"sink", "sink"}},
		"negative position": {Position: -1},
		"negative user":     {UserID: -1},
	} {
		if _, err := s.Add(ctx, r); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{ // the default last, although it was there first
		{ID: user, Position: 5, UserID: 3, Upstreams: []string{"sink"}},
		{ID: domain, Position: 20, RecipientDomain: "example.org", Upstreams: []string{}},
		{ID: def, Position: 10, Upstreams: []string{"second", "sink"}},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Rule{}, "CreatedAt")); diff != "" {
		t.Error(diff)
	}
	if err := upstream.NewStore(db.Pool, nil).Remove(ctx, "sink"); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("removed an upstream in use: %v, want ErrInvalid", err)
	}
	if was, err := s.Remove(ctx, user); err != nil || was.UserID != 3 {
		t.Errorf("%v, %v", was, err)
	}
	if _, err := s.Remove(ctx, user); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
}

// A replacement leaves what was there alone if it cannot be made.
func TestReplaceRoute(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool)
	addAccounts(t, db, sink())
	first, was, err := s.Replace(ctx, Rule{})
	if err != nil || was != 0 {
		t.Fatalf("nothing there: %d, %v", was, err)
	}
	other, err := s.Add(ctx, Rule{RecipientDomain: "example.org"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Replace(ctx, Rule{Upstreams: []string{"sink", "nowhere"}}); !errors.Is(err, refusal.ErrNotFound) || !strings.Contains(err.Error(), `"nowhere"`) || strings.Contains(err.Error(), "sink") {
		t.Fatalf("%v, want ErrNotFound about nowhere", err)
	}
	if _, err := s.Add(ctx, Rule{Upstreams: []string{"nowhere"}}); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("an unknown upstream for a match that is taken: %v, want ErrNotFound", err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 2 || list[1].ID != first {
		t.Fatalf("%v, %v", list, err)
	}
	second, was, err := s.Replace(ctx, Rule{Upstreams: []string{"sink"}})
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
	s, accounts := NewStore(db.Pool).As("root"), upstream.NewStore(db.Pool, newSealer(t, 1)).As("root")
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
	id, err := s.Add(ctx, Rule{Upstreams: []string{"provider"}})
	ok(err)
	refused(accounts.Remove(ctx, "provider"))
	_, err = s.Add(ctx, Rule{})
	refused(err)
	second, _, err := s.Replace(ctx, Rule{SenderDomain: "a.test"})
	ok(err)
	_, err = s.Remove(ctx, second)
	ok(err)
	_, err = s.Remove(ctx, second)
	refused(err)
	third, _, err := s.Replace(ctx, Rule{})
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
	var secrets int
	ok(db.Pool.QueryRow(ctx, `select count(*) from audit where detail::text like '%secret%'`).Scan(&secrets))
	if secrets != 0 {
		t.Error("the audit has the password")
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
	table := NewTable(s, upstream.NewStore(db.Pool, newSealer(t, 1)), 1)
	from, to := parse(t, "a@sender.test"), parse(t, "b@Example.org")
	if _, err := table.Resolve(ctx, 1, from, to); !errors.Is(err, ErrNoRoute) {
		t.Errorf("no rules: %v, want ErrNoRoute", err)
	}
	addAccounts(t, db, sink(), account())
	for _, r := range []Rule{
		{Upstreams: []string{"sink"}},
		{RecipientDomain: "example.org", SenderDomain: "sender.test", Upstreams: []string{"provider", "sink"}},
		{UserID: 9},
	} {
		if _, err := s.Add(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		user     int64
		from, to string
		want     string
	}{
		{1, "a@sender.test", "b@Example.ORG", "provider"},
		{1, "a@other.test", "b@example.org", "sink"},
		{1, "a@sender.test", "b@example.net", "sink"},
		{9, "a@other.test", "b@example.net", "mx"},
		{9, "a@sender.test", "b@example.org", "provider"},
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

	// Another key spoils the account that has a password and nothing else: the next is the first that can be used.
	table = NewTable(s, upstream.NewStore(db.Pool, newSealer(t, 2)), 1)
	d, err := table.Resolve(ctx, 1, from, to)
	if err != nil || len(d.Ways) != 2 || !errors.Is(d.Ways[0].Err, seal.ErrSeal) || !strings.Contains(d.Ways[0].Err.Error(), "provider") {
		t.Errorf("with another key: %+v, %v, want ErrSeal that names the upstream", d, err)
	}
	if first, err := d.First(); err != nil || first.Name != "sink" {
		t.Errorf("the first that can be used: %v, %v", first, err)
	}
	d.Ways = d.Ways[:1]
	if _, err := d.First(); !errors.Is(err, seal.ErrSeal) {
		t.Errorf("no way that can be used: %v", err)
	}
}
