package upstream

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/internal/smtptest"
	"postern/relay/seal"
)

func newSealer(t *testing.T, fill byte) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sink() Account {
	return Account{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone}
}

func account() Account {
	return Account{
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
		"addAccount": addAccount, "listAccounts": listAccounts, "removeAccount": removeAccount,
		"loadAccounts": loadAccounts, "knownUpstreams": knownUpstreams,
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
	for _, u := range []Account{sink(), account()} {
		if err := s.Add(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(ctx, sink()); !errors.Is(err, refusal.ErrExists) {
		t.Errorf("added twice: %v, want ErrExists", err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Listed{
		{Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: TLSRequire, Username: "relay", MaxConnections: 7},
		{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Listed{}, "CreatedAt")); diff != "" {
		t.Error(diff)
	}
	var sealed []byte
	if err := db.Pool.QueryRow(ctx, "select password from upstream where name = 'provider'").Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "secret") {
		t.Error("the database holds the password")
	}
	if err := s.Remove(ctx, "sink"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "sink"); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
	if err := NewStore(db.Pool, nil).Add(ctx, account()); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a password without a key: %v, want ErrInvalid", err)
	}
}

// An upstream whose password does not open is named, and no other.
func TestUnusable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, u := range []Account{sink(), account()} {
		if err := s.Add(ctx, u); err != nil {
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
		usable, err := NewStore(db.Pool, c.sealer).Usable(ctx)
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
	ok := map[string]func(*Account){
		"as it is":      func(*Account) {},
		"IPv6":          func(u *Account) { u.Host = "2001:db8::1" },
		"its own CA":    func(u *Account) { u.CA = ca },
		"implicit":      func(u *Account) { u.TLS = TLSImplicit },
		"no account":    func(u *Account) { u.Username, u.Password = "", "" },
		"a final dot":   func(u *Account) { u.Host = "smtp.example.com." },
		"one character": func(u *Account) { u.Password = "x" },
	}
	for name, change := range ok {
		u := account()
		change(&u)
		if err := u.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(*Account){
		"no name":                func(u *Account) { u.Name = "" },
		"name mx":                func(u *Account) { u.Name = "mx" },
		"name with a space":      func(u *Account) { u.Name = "a b" },
		"upper case name":        func(u *Account) { u.Name = "Sink" },
		"long name":              func(u *Account) { u.Name = strings.Repeat("a", 64) },
		"no host":                func(u *Account) { u.Host = "" },
		"host with a port":       func(u *Account) { u.Host = "example.com:25" },
		"mistyped address":       func(u *Account) { u.Host = "127.0.0.256" },
		"unspecified address":    func(u *Account) { u.Host = "0.0.0.0" },
		"host with a newline":    func(u *Account) { u.Host = "example.com\n" },
		"port 0":                 func(u *Account) { u.Port = 0 },
		"port 65536":             func(u *Account) { u.Port = 65536 },
		"no TLS mode":            func(u *Account) { u.TLS = "" },
		"another TLS mode":       func(u *Account) { u.TLS = "starttls" },
		"account without TLS":    func(u *Account) { u.TLS = TLSNone },
		"account, opportunistic": func(u *Account) { u.TLS = TLSOpportunistic },
		"no password":            func(u *Account) { u.Password = "" },
		"no user":                func(u *Account) { u.Username = "" },
		"NUL in the password":    func(u *Account) { u.Password = "a\x00b" },
		"CRLF in the user name":  func(u *Account) { u.Username = "a\r\nb" },
		"no PEM":                 func(u *Account) { u.CA = "no PEM" },
		"CA without use":         func(u *Account) { u.TLS, u.CA, u.Username, u.Password = TLSNone, ca, "", "" },
		"too many connections":   func(u *Account) { u.MaxConnections = MaxConnections + 1 },
		"negative connections":   func(u *Account) { u.MaxConnections = -1 },
	}
	for name, change := range bad {
		u := account()
		change(&u)
		if err := u.Validate(); !errors.Is(err, refusal.ErrInvalid) || err.Error() == refusal.ErrInvalid.Error() {
			t.Errorf("%s: %v, want ErrInvalid with a sentence", name, err)
		}
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
