package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgtest"
)

// cheap is a cost for tests that are not about the cost.
var cheap = Cost{Memory: 64, Time: 1, Threads: 1}

var home = netip.MustParseAddr("192.0.2.1")

func testStore(t testing.TB) *Store {
	s := NewStore(pgtest.New(t).Pool)
	s.cost = cheap
	return s
}

func (s *Store) pool() *pgxpool.Pool { return s.db.(*pgxpool.Pool) }

// at is a client at an address.
func at(addr netip.Addr) Peer { return Peer{Addr: addr, TLS: "TLSv1.3"} }

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

// patient waits for the database and for a permit as long as a test does.
var patient = Config{Patience: patience, Timeout: patience}

// eventually polls what other goroutines bring about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("did not come about within %v: %s", patience, what)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreAddUser(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	got, err := s.AddUser(ctx, NewUser{Name: "Alice@Example.COM", Password: "secret", Senders: []string{"*@Example.com", "b@c"}})
	must(t, err)
	want := User{Name: "alice@example.com", Enabled: true, HasPassword: true, Credentials: 1, Senders: []string{"*@example.com", "b@c"}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(User{}, "ID", "CreatedAt", "UpdatedAt")); diff != "" {
		t.Error(diff)
	}
	refused := []struct {
		user NewUser
		want error
	}{
		{NewUser{Name: "ALICE@example.com."}, ErrExists},
		{NewUser{Name: "a b"}, ErrName},
		{NewUser{Name: "bob", Senders: []string{"nothing"}}, ErrPattern},
		{NewUser{Name: "bob", Password: "a\nb"}, ErrPassword},
		{NewUser{Name: "bob", Password: strings.Repeat("x", 1025)}, ErrPassword},
	}
	for _, tt := range refused {
		if _, err := s.AddUser(ctx, tt.user); !errors.Is(err, tt.want) {
			t.Errorf("%q: err = %v, want %v", tt.user.Name, err, tt.want)
		}
	}
	if _, err := s.User(ctx, "bob"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused user exists: %v", err)
	}
}

func TestStoreListPages(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	for i := range 5 {
		_, err := s.AddUser(ctx, NewUser{Name: fmt.Sprintf("u%d", i)})
		must(t, err)
	}
	var got []string
	for after := ""; ; {
		page, err := s.ListUsers(ctx, after, 2)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, u := range page {
			got = append(got, u.Name)
		}
		after = page[len(page)-1].Name
	}
	if diff := cmp.Diff([]string{"u0", "u1", "u2", "u3", "u4"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestStoreUnknownUser(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	for name, err := range map[string]error{
		"password": s.SetPassword(ctx, "nobody", "x"),
		"enabled":  s.SetEnabled(ctx, "nobody", false, ""),
		"sender":   s.AddSender(ctx, "nobody", "a@b"),
		"remove":   s.RemoveSender(ctx, "nobody", "a@b"),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

// Every change raises the version, acts on an Authenticator whose cache is warm,
// and is announced.
func TestStoreChangesActOnAWarmCache(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "old"})
	must(t, err)
	a := newAuthenticator(s, cheap, patient)
	try := func(password string, want error) Identity {
		t.Helper()
		a.Forget(nil, true) // as a notification or five seconds would
		id, err := a.Verify(ctx, "alice", password, at(home))
		if !errors.Is(err, want) {
			t.Fatalf("password %q: err = %v, want %v", password, err, want)
		}
		return id
	}
	conn, err := s.pool().Acquire(ctx)
	must(t, err)
	defer conn.Release()
	_, err = conn.Exec(ctx, "listen "+Channel)
	must(t, err)
	announced := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		n, err := conn.Conn().WaitForNotification(ctx)
		must(t, err)
		if n.Payload == "" {
			t.Error("no user id in the notification")
		}
	}

	try("old", nil)
	must(t, s.SetPassword(ctx, "ALICE", "new"))
	announced()
	try("old", ErrCredentials)
	try("new", nil)
	must(t, s.SetEnabled(ctx, "alice", false, "left\x00"))
	announced()
	try("new", ErrCredentials)
	if u, _ := s.User(ctx, "alice"); u.Enabled || u.DisabledReason != "left\uFFFD" {
		t.Errorf("user = %+v", u)
	}
	must(t, s.SetEnabled(ctx, "alice", true, ""))
	announced()
	must(t, s.AddSender(ctx, "alice", "*@X.example"))
	must(t, s.AddSender(ctx, "alice", "*@x.example"))
	id := try("new", nil)
	want := Identity{UserID: id.UserID, CredentialID: id.CredentialID, Name: "alice", Senders: []string{"*@x.example"}, Suppressed: RefuseSuppressed, NewNetwork: true}
	if diff := cmp.Diff(want, id); diff != "" || id.UserID == 0 || id.CredentialID == 0 {
		t.Errorf("%s %+v", diff, id)
	}
	must(t, s.RemoveSender(ctx, "alice", "*@x.example"))
	if err := s.RemoveSender(ctx, "alice", "*@x.example"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing it twice: %v", err)
	}
	if id := try("new", nil); len(id.Senders) != 0 {
		t.Errorf("senders = %v", id.Senders)
	}
}

// The option to resend is a pattern's: it goes to whoever logs in, and on and off again.
func TestSetResend(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw", Senders: []string{"a@b", "c@d"}})
	must(t, err)
	for _, tt := range []struct {
		pattern         string
		on              bool
		senders, resend []string
	}{
		{"a@b", false, []string{"a@b", "c@d"}, nil},
		{"A@b", true, []string{"a@b", "c@d"}, []string{"a@b"}},
		{"*@E.example", true, []string{"*@e.example", "a@b", "c@d"}, []string{"*@e.example", "a@b"}},
		{"a@b", false, []string{"*@e.example", "a@b", "c@d"}, []string{"*@e.example"}},
		{"a@b", false, []string{"*@e.example", "a@b", "c@d"}, []string{"*@e.example"}},
	} {
		must(t, s.SetResend(ctx, "ALICE", tt.pattern, tt.on))
		must(t, s.AddSender(ctx, "alice", tt.pattern)) // leaves the option as it is
		u, err := s.User(ctx, "alice")
		must(t, err)
		id, err := newAuthenticator(s, cheap, patient).Verify(ctx, "alice", "pw", at(ip(1)))
		must(t, err)
		for who, got := range map[string][2][]string{"user": {u.Senders, u.Resend}, "identity": {id.Senders, id.Resend}} {
			if diff := cmp.Diff([2][]string{tt.senders, tt.resend}, got); diff != "" {
				t.Errorf("%+v: %s: %s", tt, who, diff)
			}
		}
	}
	for _, on := range []bool{true, false} {
		if err := s.SetResend(ctx, "alice", NullSender, on); !errors.Is(err, ErrPattern) {
			t.Errorf("the null sender: %v", err)
		}
	}
	if err := s.SetResend(ctx, "bob", "a@b", true); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestStoreExpiryAndNetworks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	a := newAuthenticator(s, cheap, patient)
	tests := []struct {
		set  string
		peer string
		want error
	}{
		{"allowed_networks = '{192.0.2.0/24,2001:db8::/32}'", "192.0.2.9", nil},
		{"label = ''", "::ffff:192.0.2.9", nil},
		{"label = ''", "2001:db8::9", nil},
		{"label = ''", "198.51.100.1", ErrCredentials},
		{"allowed_networks = '{}'", "198.51.100.1", nil},
		{"expires_at = now() + interval '1 hour'", "192.0.2.1", nil},
		{"expires_at = now()", "192.0.2.1", ErrCredentials},
		{"expires_at = null, revoked_at = now()", "192.0.2.1", ErrCredentials},
	}
	for _, tt := range tests {
		_, err := s.pool().Exec(ctx, "update credential set "+tt.set)
		must(t, err)
		a.Forget(nil, true)
		if _, err := a.Verify(ctx, "alice", "pw", at(netip.MustParseAddr(tt.peer))); !errors.Is(err, tt.want) {
			t.Errorf("%s from %s: err = %v, want %v", tt.set, tt.peer, err, tt.want)
		}
	}
}

// Text that is hostile to SQL, or that Postgres could not store, is nobody's name.
func TestStoreHostileNames(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	a := newAuthenticator(s, cheap, patient)
	for _, name := range []string{"' or 1=1--", "a\x00b", "\xff\xfe", strings.Repeat("x", 1<<20), "$1", "';drop table app_user;--"} {
		if _, err := a.Verify(context.Background(), name, "pw", at(home)); !errors.Is(err, ErrCredentials) {
			t.Errorf("%.20q: err = %v, want ErrCredentials", name, err)
		}
	}
}

func TestStoreClosedPoolIsUnavailable(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	_, err := s.AddUser(context.Background(), NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	a := newAuthenticator(s, cheap, patient)
	s.pool().Close()
	for _, password := range []string{"pw", "wrong"} {
		_, err := a.Verify(context.Background(), "alice", password, at(home))
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrCredentials) {
			t.Errorf("err = %v, want ErrUnavailable", err)
		}
	}
}
