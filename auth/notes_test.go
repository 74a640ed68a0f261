package auth

import (
	"context"
	"testing"
	"time"

	"postern/auth/throttle"

	"golang.org/x/crypto/bcrypt"
)

func TestLastUse(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	c, secret, err := s.AddCredential(ctx, "alice", NewCredential{})
	must(t, err)
	if !c.LastUse.At.IsZero() || c.LastUse.Addr.IsValid() {
		t.Errorf("never used: %+v", c.LastUse)
	}
	a := NewAuthenticator(s, patient)
	w := &writing{store: s, notes: a.notes}
	login := func(peer Peer) Use {
		t.Helper()
		_, err := a.Verify(ctx, "alice", secret, peer)
		must(t, err)
		must(t, w.round(ctx))
		c, err := s.Credential(ctx, c.ID)
		must(t, err)
		return c.LastUse
	}
	start := time.Now().Add(-time.Second)
	first := login(at(home))
	if first.Addr != home || first.TLS != "TLSv1.3" || first.At.Before(start) || first.At.After(time.Now().Add(time.Second)) {
		t.Errorf("last use %+v", first)
	}
	if again := login(at(home)); again != first {
		t.Errorf("written again within a minute: %+v", again)
	}
	if moved := login(Peer{Addr: home, TLS: "TLSv1.2"}); moved.TLS != "TLSv1.2" || !moved.At.After(first.At) {
		t.Errorf("with other TLS: %+v", moved)
	}
	if _, err := a.Verify(ctx, "alice", "wrong", at(ip(1))); err == nil {
		t.Error("a wrong password")
	}
	must(t, w.round(ctx))
	list, err := s.Credentials(ctx, "alice")
	must(t, err)
	if list[0].Kind != KindPassword || !list[0].LastUse.At.IsZero() {
		t.Errorf("a failure is a use: %+v", list[0])
	}
	if u, err := s.User(ctx, "alice"); err != nil || u.LastUsedAt.IsZero() {
		t.Errorf("user = %+v, %v", u, err)
	}
}

// An older use, from a node that was late, does not overwrite a newer one; and one of
// a credential or user that is gone stops nothing.
func TestLateNotes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	list, err := s.Credentials(ctx, "alice")
	must(t, err)
	c := list[0]
	now := time.Now().Truncate(time.Microsecond)
	for _, at := range []time.Time{now, now.Add(-time.Hour)} {
		n := newNotes()
		n.used(c.ID, Use{At: at, Addr: home})
		n.used(c.ID+999, Use{At: at, Addr: home})
		n.atHome(dwelling{c.UserID, throttle.OriginOf(home, "").Wide})
		n.atHome(dwelling{c.UserID + 999, throttle.OriginOf(home, "").Wide})
		must(t, (&writing{store: s, notes: n}).round(ctx))
	}
	if c, err = s.Credential(ctx, c.ID); err != nil || !c.LastUse.At.Equal(now) {
		t.Errorf("last use %+v, %v; want %s", c.LastUse, err, now)
	}
}

func TestNotesAreBounded(t *testing.T) {
	t.Parallel()
	n := newNotes()
	for i := range 2 * notesMax {
		n.used(int64(i), Use{At: time.Now()})
		n.atHome(dwelling{int64(i), throttle.OriginOf(home, "").Wide})
	}
	uses, homes := n.take()
	if len(uses) != notesMax || len(homes) != notesMax {
		t.Errorf("%d uses, %d homes", len(uses), len(homes))
	}
	n.used(1, Use{At: time.Now(), TLS: "later"})
	n.giveBack(uses, homes)
	if got, _ := n.take(); got[1].TLS != "later" || len(got) != notesMax {
		t.Errorf("%d uses, %+v", len(got), got[1])
	}
}

// Run writes what is left when it ends.
func TestRunWritesTheRest(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	_, err := s.AddUser(t.Context(), NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	a := NewAuthenticator(s, patient)
	a.last = patience
	_, err = a.Verify(t.Context(), "alice", "pw", at(home))
	must(t, err)
	fails(a.throttle, throttle.OriginOf(home, "bob"), time.Now())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	a.Run(ended)
	var uses, failures int
	must(t, s.db.QueryRow(t.Context(), `
		select (select count(*) from credential where last_used_at is not null), (select count(*) from auth_failure)`).Scan(&uses, &failures))
	if uses != 1 || failures != 4 {
		t.Errorf("%d uses, %d failures", uses, failures)
	}
}

// A hash that is of an import, or cheap, is replaced at a login, and whatever was
// verified by the old one holds.
func TestRehashAtLogin(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	old, err := bcrypt.GenerateFromPassword([]byte("pw"), bcrypt.MinCost)
	must(t, err)
	cheaper := Cost{Memory: 32, Time: 1, Threads: 1}
	for _, hash := range []string{string(old), "$2y" + string(old)[3:], hashPassword("pw", cheaper)} {
		s := testStore(t)
		_, err := s.Import(ctx, []ImportUser{{Name: "alice", Hash: hash}}, false)
		must(t, err)
		a := NewAuthenticator(s, patient)
		if _, err := a.Verify(ctx, "alice", "wrong", at(home)); err != ErrCredentials {
			t.Fatalf("err = %v", err)
		}
		if len(a.outdated) != 0 {
			t.Error("a wrong password is to be hashed")
		}
		id, err := a.Verify(ctx, "alice", "pw", at(home))
		must(t, err)
		var version, after int64
		var now string
		must(t, s.db.QueryRow(ctx, `select version from app_user`).Scan(&version))
		if len(a.outdated) != 1 {
			t.Fatalf("%d passwords are to be hashed anew", len(a.outdated))
		}
		o := <-a.outdated
		a.rehashOne(ctx, o)
		must(t, s.db.QueryRow(ctx, `select u.version, c.hash from app_user u join credential c on c.user_id = u.id`).Scan(&after, &now))
		if p, err := parsePHC(now); err != nil || p.cost != cheap || !p.matches("pw") || after != version {
			t.Errorf("%s, version %d, was %d: %v", now, after, version, err)
		}
		hashes := a.hashing.done.Load()
		again, err := a.Verify(ctx, "alice", "pw", at(home))
		if err != nil || again.CredentialID != id.CredentialID || a.hashing.done.Load() != hashes {
			t.Errorf("after it: %+v, %v, %d hashes", again, err, a.hashing.done.Load()-hashes)
		}
		a.successes.forget(func(struct{}) bool { return true })
		if _, err := a.Verify(ctx, "alice", "pw", at(home)); err != nil || len(a.outdated) != 0 {
			t.Errorf("by the new hash: %v, %d to be hashed", err, len(a.outdated))
		}
		// A password that was changed meanwhile stands.
		must(t, s.SetPassword(ctx, "alice", "new"))
		a.rehashOne(ctx, o)
		if _, err := a.Verify(ctx, "alice", "new", at(home)); err != nil {
			t.Errorf("the changed password: %v", err)
		}
	}
}

func TestRehashQueueIsBounded(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(fakeUsers{}, defaultCost, Config{})
	acct := withPassword(1, "pw")
	for range 10 * rehashQueue {
		a.renew(acct, loginTry{})
	}
	if n := len(a.outdated); n != rehashQueue {
		t.Errorf("%d wait", n)
	}
	if a.renew(acct, loginTry{credential: credential{id: 1}}); len(a.outdated) != rehashQueue {
		t.Error("a secret is to be hashed")
	}
}
