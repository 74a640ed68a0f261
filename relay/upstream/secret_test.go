package upstream

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/relay/upstream/oauth"
)

func granted() Account {
	return Account{Name: "m365", Host: "smtp.example", Port: 587, TLS: TLSRequire, Username: "relay@example.com",
		Grant: oauth.Grant{Kind: oauth.ClientCredentials, Tenant: "example.com", ClientID: "app-1", Secret: "the client's"}, SecretExpires: "2027-01-31"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A grant is kept sealed, comes back whole, and goes with its user name.
func TestGrants(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	must(t, s.Add(ctx, granted()))
	got, err := s.Open(ctx, "m365")
	must(t, err)
	if g := got.Grant; g.Secret != "the client's" || g.Authority != "microsoft" || g.Salt == "" || got.Password != "" || got.SecretExpires != "2027-01-31" {
		t.Errorf("%+v", got)
	}
	var sealed []byte
	must(t, db.Pool.QueryRow(ctx, `select password from upstream`).Scan(&sealed))
	if bytes.Contains(sealed, []byte("client")) {
		t.Error("the grant is there to be read")
	}
	if list, err := s.List(ctx); err != nil || list[0].OAuth != oauth.ClientCredentials || list[0].SecretExpires != "2027-01-31" {
		t.Errorf("%+v, %v", list, err)
	}
	if l := NewStore(db.Pool, newSealer(t, 2)); true {
		if _, err := l.Open(ctx, "m365"); err == nil {
			t.Error("another key opens it")
		}
	}
	if _, err := s.Open(ctx, "none"); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("%v", err)
	}

	tokens := func() (n int) {
		must(t, db.Pool.QueryRow(ctx, `select count(*) from upstream_token`).Scan(&n))
		return n
	}
	insert := func() {
		_, err := db.Pool.Exec(ctx, `insert into upstream_token (upstream, credential) values ('m365', 'x')`)
		must(t, err)
	}
	insert()
	change := func(edit func(a *Account)) error {
		_, err := s.Change(ctx, "m365", func(a *Account) error { edit(a); return nil })
		return err
	}
	must(t, change(func(a *Account) { a.MaxConnections = 3 }))
	if again, err := s.Open(ctx, "m365"); err != nil || again.Grant != got.Grant || tokens() != 1 {
		t.Errorf("another setting: %+v, %v, %d tokens", again, err, tokens())
	}
	if err := change(func(a *Account) { a.Username = "other@example.com" }); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("another user name alone: %v", err)
	}
	must(t, change(func(a *Account) { a.Grant = granted().Grant }))
	if again, err := s.Open(ctx, "m365"); err != nil || again.Grant.Salt == got.Grant.Salt || tokens() != 0 {
		t.Errorf("the grant given anew: %+v, %v, %d tokens", again, err, tokens())
	}
	must(t, change(func(a *Account) { a.Grant, a.Password = oauth.Grant{}, "a password" }))
	if again, err := s.Open(ctx, "m365"); err != nil || again.Grant != (oauth.Grant{}) || again.Password != "a password" {
		t.Errorf("a password instead: %+v, %v", again, err)
	}
	insert()
	must(t, s.Remove(ctx, "m365"))
	if tokens() != 0 {
		t.Error("the tokens outlive their upstream")
	}
}

func TestBadGrants(t *testing.T) {
	t.Parallel()
	for want, edit := range map[string]func(*Account){
		"needs a user name":         func(a *Account) { a.Username = "" },
		"verified TLS":              func(a *Account) { a.TLS = TLSOpportunistic },
		"no password":               func(a *Account) { a.Password = "x" },
		"either a client secret or": func(a *Account) { a.Grant.Secret = "" },
		"is not a date like":        func(a *Account) { a.SecretExpires = "31.1.2027" },
	} {
		a := granted()
		edit(&a)
		if err := a.Validate(); !errors.Is(err, refusal.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The end of a secret is told at 30, 7, 1 and 0 days, once by all nodes, and anew for another.
func TestTellExpiring(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	must(t, s.Add(ctx, granted()))
	told := map[int]bool{}
	if left := 24*time.Hour - time.Since(time.Now().UTC().Truncate(24*time.Hour)); left < time.Minute {
		time.Sleep(left) // no day begins in the midst of it
	}
	for left := 40; left >= -2; left-- {
		_, err := db.Pool.Exec(ctx, `update upstream set secret_expires = (now() at time zone 'UTC')::date + $1::int`, left)
		must(t, err)
		for range 2 {
			must(t, s.TellExpiring(ctx, func(secret Secret) {
				if secret.Upstream != "m365" || told[left] {
					t.Errorf("%d days: %+v", left, secret)
				}
				told[left] = true
				if days := secret.DaysLeft(time.Now()); days != left && days != left-1 { // at midnight
					t.Errorf("%d days are said to be %d", left, days)
				}
			}))
		}
	}
	if len(told) != 4 || !told[30] || !told[7] || !told[1] || !told[0] {
		t.Errorf("told at %v", told)
	}
	day := time.Now().UTC().Add(5 * 24 * time.Hour).Format(time.DateOnly)
	_, err := s.Change(ctx, "m365", func(a *Account) error { a.SecretExpires = day; return nil })
	must(t, err)
	again := 0
	if err := s.TellExpiring(ctx, func(Secret) { again++ }); err != nil || again != 1 {
		t.Errorf("another secret is told %d times, %v", again, err)
	}
	var events string
	must(t, db.Pool.QueryRow(ctx, `select string_agg(kind || ' ' || object || ' ' || (detail->>'days'), ', ' order by id) from event`).Scan(&events))
	if want := "secret.expiring m365 30, secret.expiring m365 7, secret.expiring m365 1, secret.expiring m365 0, secret.expiring m365 7"; events != want {
		t.Errorf("events: %s", events)
	}
	accounts, _, err := s.Usable(ctx)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Secrets(ctx, accounts)
	if err != nil || len(list) != 1 || list[0].Expires.Format(time.DateOnly) != day || !list[0].Token.ExpiresAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
}

// A person may log in while the upstream is paused.
func TestOpenPaused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := NewStore(db.Pool, newSealer(t, 1))
	must(t, s.Add(t.Context(), granted()))
	if _, err := s.Pause(t.Context(), "m365", true); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Open(t.Context(), "m365"); err != nil || a.Grant.Kind != granted().Grant.Kind {
		t.Errorf("%+v, %v", a, err)
	}
}

// A login for settings that were changed meanwhile is not stored.
func TestLoginOfFormerSettings(t *testing.T) {
	t.Parallel()
	s := NewStore(pgtest.New(t).Pool, newSealer(t, 1))
	a := account()
	a.Password, a.Grant = "", oauth.Grant{Kind: oauth.RefreshToken, Tenant: "example.com", ClientID: "app-1"}
	if err := s.Add(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	was, err := s.Open(t.Context(), a.Name)
	if err != nil {
		t.Fatal(err)
	}
	a.Grant.ClientID = "app-2"
	if _, err := s.Change(t.Context(), a.Name, func(u *Account) error { u.Grant = a.Grant; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveLogin(t.Context(), was.OAuth(), &oauth.Login{}); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}
