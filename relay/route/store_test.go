package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/internal/smtptest"
	"postern/relay/seal"
	"postern/relay/smtp"
)

func newSealer(t *testing.T, fill byte) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sink() Upstream {
	return Upstream{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone}
}

func account() Upstream {
	return Upstream{
		Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: TLSRequire,
		Username: "relay", Password: "secret", MaxConnections: 7,
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
		"addUpstream": addUpstream, "listUpstreams": listUpstreams, "removeUpstream": removeUpstream,
		"addRoute": addRoute, "addRouteUpstreams": addRouteUpstreams, "listRoutes": listRoutes, "oneRoute": oneRoute,
		"removeRoute": removeRoute, "loadUpstreams": loadUpstreams, "knownUpstreams": knownUpstreams, "sameMatch": sameMatch,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpstreams(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, u := range []Upstream{sink(), account()} {
		if err := s.AddUpstream(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddUpstream(ctx, sink()); !errors.Is(err, ErrExists) {
		t.Errorf("added twice: %v, want ErrExists", err)
	}
	list, err := s.ListUpstreams(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Account{
		{Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: TLSRequire, Username: "relay", MaxConnections: 7},
		{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Account{}, "CreatedAt")); diff != "" {
		t.Error(diff)
	}
	var sealed []byte
	if err := db.Pool.QueryRow(ctx, "select password from upstream where name = 'provider'").Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "secret") {
		t.Error("the database holds the password")
	}
	if err := s.RemoveUpstream(ctx, "sink"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveUpstream(ctx, "sink"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
	if err := NewStore(db.Pool, nil).AddUpstream(ctx, account()); !errors.Is(err, ErrInvalid) {
		t.Errorf("a password without a key: %v, want ErrInvalid", err)
	}
}

// An upstream whose password does not open is named, and no other.
func TestUnusable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, u := range []Upstream{sink(), account()} {
		if err := s.AddUpstream(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		sealer *seal.Sealer
		want   int
	}{
		"the key":     {newSealer(t, 1), 0},
		"another key": {newSealer(t, 2), 1},
		"no key":      {nil, 1},
	} {
		bad, err := NewStore(db.Pool, c.sealer).Unusable(ctx)
		if err != nil || len(bad) != c.want {
			t.Errorf("%s: %v, %v", name, bad, err)
		}
		want := seal.ErrSeal
		if c.sealer == nil {
			want = ErrNoKey
		}
		if c.want > 0 && !errors.Is(bad["provider"], want) {
			t.Errorf("%s: %v", name, bad["provider"])
		}
		usable, err := NewStore(db.Pool, c.sealer).Upstreams(ctx)
		if err != nil || len(usable) != 2-c.want {
			t.Errorf("%s: %+v, %v", name, usable, err)
		}
		for _, u := range usable {
			if u.Name == "provider" && u.Password != account().Password {
				t.Errorf("%s: the password is %q", name, u.Password)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	ca := string(smtptest.NewCA(t).PEM())
	ok := map[string]func(*Upstream){
		"as it is":      func(*Upstream) {},
		"IPv6":          func(u *Upstream) { u.Host = "2001:db8::1" },
		"its own CA":    func(u *Upstream) { u.CA = ca },
		"implicit":      func(u *Upstream) { u.TLS = TLSImplicit },
		"no account":    func(u *Upstream) { u.Username, u.Password = "", "" },
		"a final dot":   func(u *Upstream) { u.Host = "smtp.example.com." },
		"one character": func(u *Upstream) { u.Password = "x" },
	}
	for name, change := range ok {
		u := account()
		change(&u)
		if err := u.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(*Upstream){
		"no name":                func(u *Upstream) { u.Name = "" },
		"name mx":                func(u *Upstream) { u.Name = "mx" },
		"name with a space":      func(u *Upstream) { u.Name = "a b" },
		"upper case name":        func(u *Upstream) { u.Name = "Sink" },
		"long name":              func(u *Upstream) { u.Name = strings.Repeat("a", 64) },
		"no host":                func(u *Upstream) { u.Host = "" },
		"host with a port":       func(u *Upstream) { u.Host = "example.com:25" },
		"mistyped address":       func(u *Upstream) { u.Host = "127.0.0.256" },
		"unspecified address":    func(u *Upstream) { u.Host = "0.0.0.0" },
		"host with a newline":    func(u *Upstream) { u.Host = "example.com\n" },
		"port 0":                 func(u *Upstream) { u.Port = 0 },
		"port 65536":             func(u *Upstream) { u.Port = 65536 },
		"no TLS mode":            func(u *Upstream) { u.TLS = "" },
		"another TLS mode":       func(u *Upstream) { u.TLS = "starttls" },
		"account without TLS":    func(u *Upstream) { u.TLS = TLSNone },
		"account, opportunistic": func(u *Upstream) { u.TLS = TLSOpportunistic },
		"no password":            func(u *Upstream) { u.Password = "" },
		"no user":                func(u *Upstream) { u.Username = "" },
		"NUL in the password":    func(u *Upstream) { u.Password = "a\x00b" },
		"CRLF in the user name":  func(u *Upstream) { u.Username = "a\r\nb" },
		"no PEM":                 func(u *Upstream) { u.CA = "no PEM" },
		"CA without use":         func(u *Upstream) { u.TLS, u.CA, u.Username, u.Password = TLSNone, ca, "", "" },
		"too many connections":   func(u *Upstream) { u.MaxConnections = MaxConnections + 1 },
		"negative connections":   func(u *Upstream) { u.MaxConnections = -1 },
	}
	for name, change := range bad {
		u := account()
		change(&u)
		if err := u.Validate(); !errors.Is(err, ErrInvalid) || err.Error() == ErrInvalid.Error() {
			t.Errorf("%s: %v, want ErrInvalid with a sentence", name, err)
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, nil)
	second := sink()
	second.Name = "second"
	for _, u := range []Upstream{sink(), second} {
		if err := s.AddUpstream(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.AddRoute(ctx, Rule{Upstreams: []string{"no-such"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an upstream that is not there: %v, want ErrNotFound", err)
	}
	add := func(r Rule) int64 {
		t.Helper()
		id, err := s.AddRoute(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	def := add(Rule{Upstreams: []string{"second", "sink"}})
	domain := add(Rule{RecipientDomain: "Example.ORG"})
	user := add(Rule{UserID: 3, Position: 5, Upstreams: []string{"sink"}})
	if _, err := s.AddRoute(ctx, Rule{}); !errors.Is(err, ErrExists) {
		t.Errorf("a second default route: %v, want ErrExists", err)
	}
	for name, r := range map[string]Rule{
		"bad domain":        {RecipientDomain: "not a domain"},
		"upstream twice":    {SenderDomain: "a.test", Upstreams: []string{"sink", "sink"}},
		"negative position": {Position: -1},
		"negative user":     {UserID: -1},
	} {
		if _, err := s.AddRoute(ctx, r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	list, err := s.ListRoutes(ctx)
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
	if err := s.RemoveUpstream(ctx, "sink"); !errors.Is(err, ErrInvalid) {
		t.Errorf("removed an upstream in use: %v, want ErrInvalid", err)
	}
	if was, err := s.RemoveRoute(ctx, user); err != nil || was.UserID != 3 {
		t.Errorf("%v, %v", was, err)
	}
	if _, err := s.RemoveRoute(ctx, user); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
}

// A replacement leaves what was there alone if it cannot be made.
func TestReplaceRoute(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, nil)
	if err := s.AddUpstream(ctx, sink()); err != nil {
		t.Fatal(err)
	}
	first, was, err := s.ReplaceRoute(ctx, Rule{})
	if err != nil || was != 0 {
		t.Fatalf("nothing there: %d, %v", was, err)
	}
	other, err := s.AddRoute(ctx, Rule{RecipientDomain: "example.org"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ReplaceRoute(ctx, Rule{Upstreams: []string{"sink", "nowhere"}}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"nowhere"`) || strings.Contains(err.Error(), "sink") {
		t.Fatalf("%v, want ErrNotFound about nowhere", err)
	}
	if _, err := s.AddRoute(ctx, Rule{Upstreams: []string{"nowhere"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown upstream for a match that is taken: %v, want ErrNotFound", err)
	}
	if list, err := s.ListRoutes(ctx); err != nil || len(list) != 2 || list[1].ID != first {
		t.Fatalf("%v, %v", list, err)
	}
	second, was, err := s.ReplaceRoute(ctx, Rule{Upstreams: []string{"sink"}})
	if err != nil || was != first {
		t.Fatalf("%d, %v, want %d", was, err, first)
	}
	if list, err := s.ListRoutes(ctx); err != nil || len(list) != 2 || list[0].ID != other || list[1].ID != second {
		t.Fatalf("%v, %v", list, err)
	}
}

// Every change is in the audit, what was refused is not.
func TestAudit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1)).As("root")
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
	ok(s.AddUpstream(ctx, account()))
	refused(s.AddUpstream(ctx, account()))
	id, err := s.AddRoute(ctx, Rule{Upstreams: []string{"provider"}})
	ok(err)
	refused(s.RemoveUpstream(ctx, "provider"))
	_, err = s.AddRoute(ctx, Rule{})
	refused(err)
	second, _, err := s.ReplaceRoute(ctx, Rule{SenderDomain: "a.test"})
	ok(err)
	_, err = s.RemoveRoute(ctx, second)
	ok(err)
	_, err = s.RemoveRoute(ctx, second)
	refused(err)
	third, _, err := s.ReplaceRoute(ctx, Rule{})
	ok(err)
	refused(s.RemoveUpstream(ctx, "nowhere"))
	ok(s.RemoveUpstream(ctx, "provider"))
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
	s := NewStore(db.Pool, newSealer(t, 1))
	table := NewTable(s, 1)
	from, to := parse(t, "a@sender.test"), parse(t, "b@Example.org")
	if _, err := table.Resolve(ctx, 1, from, to); !errors.Is(err, ErrNoRoute) {
		t.Errorf("no rules: %v, want ErrNoRoute", err)
	}
	for _, u := range []Upstream{sink(), account()} {
		if err := s.AddUpstream(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []Rule{
		{Upstreams: []string{"sink"}},
		{RecipientDomain: "example.org", SenderDomain: "sender.test", Upstreams: []string{"provider", "sink"}},
		{UserID: 9},
	} {
		if _, err := s.AddRoute(ctx, r); err != nil {
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
		got := "mx"
		if d.Upstream != nil {
			got = d.Upstream.Name
		}
		if got != test.want || d.Route == 0 {
			t.Errorf("user %d, %s to %s: %s by route %d, want %s", test.user, test.from, test.to, got, d.Route, test.want)
		}
		if got == "provider" && *d.Upstream != account() {
			t.Errorf("upstream %+v, want %+v", *d.Upstream, account())
		}
	}

	// Another key spoils the account that has a password and nothing else.
	table = NewTable(NewStore(db.Pool, newSealer(t, 2)), 1)
	if _, err := table.Resolve(ctx, 1, from, to); !errors.Is(err, seal.ErrSeal) || !strings.Contains(err.Error(), "provider") {
		t.Errorf("with another key: %v, want ErrSeal that names the upstream", err)
	}
	if d, err := table.Resolve(ctx, 1, from, parse(t, "b@example.net")); err != nil || d.Upstream.Name != "sink" {
		t.Errorf("the other upstream: %v, %v", d, err)
	}
}

func TestRefusesCredentialsInClear(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	_, err := db.Pool.Exec(context.Background(), `insert into upstream (name, host, port, tls, username, password)
		values ('x', 'h', 25, 'opportunistic', 'u', '\x00')`)
	if err == nil {
		t.Error("the table takes credentials without verified TLS")
	}
}
