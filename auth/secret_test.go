package auth

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth/throttle"
	"postern/policy/quota"

	"github.com/google/go-cmp/cmp"
)

func TestParseSecret(t *testing.T) {
	t.Parallel()
	random := GeneratePassword()
	id, got, ok := parseSecret(secretOf(42, random))
	if !ok || id != 42 || got != random {
		t.Errorf("parseSecret = %d, %q, %v", id, got, ok)
	}
	for _, password := range []string{
		"", "ps_", "ps__" + random, "ps_42", "ps_42_", "ps_42_" + random[1:], "ps_42_" + random + "a",
		"ps_0_" + random, "ps_-1_" + random, "ps_+1_" + random, "ps_042_" + random, "ps_42x_" + random,
		"ps_9223372036854775808_" + random, "PS_42_" + random, "ps_42_" + strings.Repeat("0", 32),
		"ps_42_" + random[1:] + "A", " ps_42_" + random, "ps_42_" + random + "\n",
	} {
		if isSecret(password) {
			t.Errorf("%q has the form of a secret", password)
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add("ps_42_" + strings.Repeat("a", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if id, random, ok := parseSecret(s); ok && secretOf(id, random) != s {
			t.Fatalf("%q parses as %d, %q", s, id, random)
		}
	})
}

func TestSecretHash(t *testing.T) {
	t.Parallel()
	random := GeneratePassword()
	stored := newSecretHash(random).String()
	h, err := parseSecretHash(stored)
	must(t, err)
	if !h.matches(secretOf(1, random)) || h.matches(secretOf(1, GeneratePassword())) || h.matches(random) || h.matches("") {
		t.Errorf("%s matches wrongly", stored)
	}
	if stored == newSecretHash(random).String() || strings.Contains(stored, random) {
		t.Errorf("%s is not salted", stored)
	}
	if secretDecoy().matches(secretOf(1, random)) || secretDecoy().matches("") {
		t.Error("something matches the decoy")
	}
	for _, s := range []string{"", secretScheme, stored + "$", stored[:len(stored)-1], strings.Replace(stored, "hmac", "HMAC", 1),
		secretScheme + "$" + stored[len(secretScheme):], stored[:20] + "\n" + stored[21:], strings.Repeat("A", 1<<20)} {
		if h, err := parseSecretHash(s); err == nil {
			t.Errorf("parseSecretHash(%.80q) = %v", s, h)
		}
	}
}

func withSecret(id int64) (a account, secret string) {
	random := GeneratePassword()
	return account{id: id, version: 1, enabled: true, hash: newSecretHash(random).String(), credentialID: id + 100}, secretOf(id+100, random)
}

// A6 for generated secrets: the same bare error and one lookup, one HMAC and no slow
// hash, whatever is wrong; with the cache warm as well.
func TestA6OnePathForEveryWrongSecret(t *testing.T) {
	t.Parallel()
	users := fakeUsers{}
	secrets := map[string]string{}
	for i, name := range []string{"alice", "bob", "disabled", "expired", "elsewhere", "revoked", "broken"} {
		users[name], secrets[name] = withSecret(int64(i + 1))
	}
	change := func(name string, by func(a *account)) {
		a := users[name]
		by(&a)
		users[name] = a
	}
	change("disabled", func(a *account) { a.enabled = false })
	change("expired", func(a *account) { a.expires = time.Now().Add(-time.Second) })
	change("elsewhere", func(a *account) { a.networks = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} })
	change("revoked", func(a *account) { a.hash = "" })
	change("broken", func(a *account) { a.hash = secretScheme + "x" })
	var lookups atomic.Int64
	a := newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
		lookups.Add(1)
		return users.account(ctx, q)
	}), cheap, Config{})
	if _, err := a.Verify(t.Context(), "alice", secrets["alice"], at(home)); err != nil {
		t.Fatal(err) // and now the cache is warm
	}
	wrong := secretOf(101, GeneratePassword())
	for _, try := range []struct{ name, secret string }{
		{"nobody", wrong}, {"alice", wrong}, {"alice", secrets["bob"]}, {"bob", secrets["alice"]},
		{"nobody", secrets["alice"]}, {"disabled", secrets["disabled"]}, {"expired", secrets["expired"]},
		{"elsewhere", secrets["elsewhere"]}, {"revoked", secrets["revoked"]}, {"broken", secrets["broken"]},
		{"alice", secretOf(1<<62, GeneratePassword())},
	} {
		a.throttle = throttle.New()
		macs, reads := a.macs.Load(), lookups.Load()
		id, err := a.Verify(t.Context(), try.name, try.secret, at(home))
		if err != ErrCredentials || !cmp.Equal(id, Identity{}) {
			t.Errorf("%v: %+v, %v; want the bare ErrCredentials", try, id, err)
		}
		if m, l := a.macs.Load()-macs, lookups.Load()-reads; m != 1 || l != 1 {
			t.Errorf("%v: %d HMACs, %d lookups; want 1 and 1", try, m, l)
		}
	}
	if n := a.hashing.done.Load(); n != 0 {
		t.Errorf("%d slow hashes", n)
	}
}

func TestStoreSecrets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	for _, name := range []string{"alice", "bob"} {
		_, err := s.AddUser(ctx, NewUser{Name: name, Password: "pw"})
		must(t, err)
	}
	expires := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	c, secret, err := s.AddCredential(ctx, "ALICE", NewCredential{Label: "crm\x00", Expires: expires,
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.77/24"), netip.MustParsePrefix("::ffff:198.51.100.0/120")}})
	must(t, err)
	networks := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24")}
	if c.User != "alice" || c.Kind != KindSecret || c.Label != "crm\uFFFD" || !c.Expires.Equal(expires) || !cmp.Equal(c.Networks, networks, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) {
		t.Errorf("credential = %+v", c)
	}
	_, plain, err := s.AddCredential(ctx, "alice", NewCredential{})
	must(t, err)
	a := newAuthenticator(s, cheap, patient)
	verify := func(what, name, secret string, from netip.Addr, want error) Identity {
		t.Helper()
		a.Forget(nil, true)
		a.throttle = throttle.New()
		id, err := a.Verify(ctx, name, secret, at(from))
		if !errors.Is(err, want) {
			t.Errorf("%s: err = %v, want %v", what, err, want)
		}
		return id
	}
	if id := verify("right", "Alice", secret, home, nil); id.CredentialID != c.ID || id.UserID != c.UserID || id.Name != "alice" {
		t.Errorf("identity = %+v", id)
	}
	verify("without bounds", "alice", plain, ip(1), nil)
	verify("another network", "alice", secret, ip(1), ErrCredentials)
	verify("another user", "bob", secret, home, ErrCredentials)
	verify("another random part", "alice", secretOf(c.ID, GeneratePassword()), home, ErrCredentials)
	verify("the password, whose id is right", "alice", secretOf(c.ID-1, GeneratePassword()), home, ErrCredentials)
	verify("the password beside it", "alice", "pw", home, nil)
	_, err = s.pool().Exec(ctx, `update credential set expires_at = now() where id = $1`, c.ID)
	must(t, err)
	verify("expired", "alice", secret, home, ErrCredentials)
	_, err = s.pool().Exec(ctx, `update credential set expires_at = null where id = $1`, c.ID)
	must(t, err)
	verify("not expired", "alice", secret, home, nil)
	for _, span := range []time.Duration{10 * time.Minute, 0, MaxDuplicates} {
		set, err := s.SetDuplicates(ctx, c.ID, &span)
		must(t, err)
		if id := verify("with duplicates", "alice", secret, home, nil); id.Duplicates == nil || *id.Duplicates != span || *set.Duplicates != span {
			t.Errorf("%v: %v of the credential, %v of the login", span, set.Duplicates, id.Duplicates)
		}
		if id := verify("the password", "alice", plain, home, nil); id.Duplicates != nil {
			t.Errorf("the password has %v", id.Duplicates)
		}
	}
	set, err := s.SetDuplicates(ctx, c.ID, nil)
	must(t, err)
	if id := verify("as configured", "alice", secret, home, nil); id.Duplicates != nil || set.Duplicates != nil {
		t.Errorf("%v of the credential, %v of the login", set.Duplicates, id.Duplicates)
	}
	revoked, err := s.RevokeCredential(ctx, c.ID)
	must(t, err)
	if again, err := s.RevokeCredential(ctx, c.ID); err != nil || revoked.RevokedAt.IsZero() || !again.RevokedAt.Equal(revoked.RevokedAt) {
		t.Errorf("revoked %+v, then %+v, %v", revoked, again, err)
	}
	verify("revoked", "alice", secret, home, ErrCredentials)
	verify("the other one", "alice", plain, home, nil)
	must(t, s.SetEnabled(ctx, "alice", false, ""))
	verify("disabled", "alice", plain, home, ErrCredentials)
	if list, err := s.Credentials(ctx, "alice"); err != nil || len(list) != 3 || list[0].Kind != KindPassword || list[1].ID != c.ID {
		t.Errorf("credentials = %+v, %v", list, err)
	}
	must(t, s.RemoveUser(ctx, "alice"))
	verify("removed", "alice", plain, home, ErrCredentials)
}

func TestStoreRefusesCredentials(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice"})
	must(t, err)
	for _, tt := range []struct {
		user string
		n    NewCredential
		want error
	}{
		{"nobody", NewCredential{}, ErrNotFound},
		{"a b", NewCredential{}, ErrName},
		{"alice", NewCredential{Expires: time.Now()}, ErrNewCredential},
		{"alice", NewCredential{Label: strings.Repeat("x", 201)}, ErrNewCredential},
		{"alice", NewCredential{Networks: []netip.Prefix{{}}}, ErrNewCredential},
	} {
		if _, secret, err := s.AddCredential(ctx, tt.user, tt.n); !errors.Is(err, tt.want) || secret != "" {
			t.Errorf("%s %+v: %q, %v; want %v", tt.user, tt.n, secret, err, tt.want)
		}
	}
	week := MaxDuplicates + 1
	if _, err := s.SetDuplicates(ctx, 1, &week); !errors.Is(err, ErrNewCredential) {
		t.Errorf("err = %v", err)
	}
	if _, err := s.SetDuplicates(ctx, 1<<40, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("err = %v", err)
	}
	if _, err := s.RevokeCredential(ctx, 1<<40); !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "user") {
		t.Errorf("err = %v", err)
	}
	if err := s.SetPassword(ctx, "alice", secretOf(1, GeneratePassword())); !errors.Is(err, ErrPassword) {
		t.Errorf("a password of a secret's form: %v", err)
	}
	if list, err := s.Credentials(ctx, "alice"); err != nil || len(list) != 0 {
		t.Errorf("credentials = %v, %v", list, err)
	}
}

// What a session may still do.
func TestCurrent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	c, secret, err := s.AddCredential(ctx, "alice", NewCredential{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	must(t, err)
	a := newAuthenticator(s, cheap, patient)
	id, err := a.Verify(ctx, "alice", secret, at(home))
	must(t, err)
	current := func(what string, from netip.Addr, want error) Identity {
		t.Helper()
		got, err := a.Current(ctx, id.UserID, id.CredentialID, from)
		if !errors.Is(err, want) {
			t.Errorf("%s: err = %v, want %v", what, err, want)
		}
		return got
	}
	id.NewNetwork = false
	if diff := cmp.Diff(id, current("unchanged", home, nil)); diff != "" {
		t.Error(diff)
	}
	current("elsewhere", ip(1), ErrCredentials)
	must(t, s.AddSender(ctx, "alice", "*@x.example"))
	must(t, s.SetLimits(ctx, LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Size, Max: 9}}))
	id.Senders, id.Limits = []string{"*@x.example"}, []quota.Limit{{Kind: quota.Size, Max: 9, Scope: quota.User, Subject: quota.ID(id.UserID)}}
	if diff := cmp.Diff(id, current("changed", home, nil)); diff != "" {
		t.Error(diff)
	}
	if _, err := a.Current(ctx, id.UserID+1, c.ID, home); err != ErrCredentials {
		t.Errorf("another user: %v", err)
	}
	must(t, s.SetEnabled(ctx, "alice", false, ""))
	current("disabled", home, ErrCredentials)
	must(t, s.SetEnabled(ctx, "alice", true, ""))
	current("enabled", home, nil)
	_, err = s.RevokeCredential(ctx, c.ID)
	must(t, err)
	current("revoked", home, ErrCredentials)
	s.pool().Close()
	current("database away", home, ErrUnavailable)
}

// A change that is committed while a password is compared is not overtaken by it.
func TestChangeDuringALogin(t *testing.T) {
	t.Parallel()
	users := fakeUsers{"alice": withPassword(1, "pw"), "bob": withPassword(2, "pw")}
	var a *Authenticator
	during := func() {}
	a = newAuthenticator(usersFunc(func(ctx context.Context, q question) (account, error) {
		acct, err := users.account(ctx, q)
		during()
		return acct, err
	}), cheap, Config{})
	during = func() {
		changed := users["alice"]
		changed.enabled, changed.version = false, 2
		users["alice"] = changed
		a.Forget([]int64{1}, false)
		during = func() {}
	}
	if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("err = %v, want ErrUnavailable", err)
	}
	if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != ErrCredentials {
		t.Errorf("err = %v, want ErrCredentials", err)
	}
	during = func() { a.Forget([]int64{1}, false); during = func() {} }
	if _, err := a.Verify(t.Context(), "bob", "pw", at(home)); err != nil {
		t.Errorf("another user's change: %v", err)
	}
}
