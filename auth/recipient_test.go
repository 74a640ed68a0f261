package auth

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRecipientPatterns: what a login by each credential may write to, and what it does with suppressed
// recipients.
func TestRecipientPatterns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testStore(t)
	for _, name := range []string{"shop@example.com", "other@example.com"} {
		_, err := s.AddUser(ctx, NewUser{Name: name, Password: "secret"})
		must(t, err)
	}
	one, _, err := s.AddCredential(ctx, "shop@example.com", NewCredential{})
	must(t, err)
	two, secret, err := s.AddCredential(ctx, "shop@example.com", NewCredential{})
	must(t, err)
	must(t, s.SetRecipients(ctx, "shop@example.com", 0, true, "*@Example.com", "*@*.example.com"))
	must(t, s.SetRecipients(ctx, "Shop@example.com", 0, false, "boss@example.com"))
	must(t, s.SetRecipients(ctx, "shop@example.com", one.ID, false, "*@example.net"))
	must(t, s.SetRecipients(ctx, "shop@example.com", two.ID, true, "x@example.com"))
	must(t, s.SetRecipients(ctx, "shop@example.com", two.ID, false, "x@example.com")) // changed
	_, err = s.SetSuppressed(ctx, two.ID, IgnoreSuppressed)
	must(t, err)
	users := []RecipientPattern{{Pattern: "boss@example.com"}, {Allow: true, Pattern: "*@*.example.com"}, {Allow: true, Pattern: "*@example.com"}}
	ofOne, ofTwo := RecipientPattern{Credential: one.ID, Pattern: "*@example.net"}, RecipientPattern{Credential: two.ID, Pattern: "x@example.com"}
	for credential, want := range map[int64][]RecipientPattern{0: users, one.ID: append(users[:3:3], ofOne), two.ID: append(users[:3:3], ofTwo)} {
		id, err := s.Identity(ctx, one.UserID, credential)
		must(t, err)
		if diff := cmp.Diff(want, id.Recipients); diff != "" {
			t.Errorf("credential %d: %s", credential, diff)
		}
	}
	a := NewAuthenticator(s, patient)
	id, err := a.Verify(ctx, "shop@example.com", secret, at(home))
	must(t, err)
	if id.Suppressed != IgnoreSuppressed || len(id.Recipients) != 4 {
		t.Errorf("identity %+v", id)
	}
	id, err = a.Verify(ctx, "other@example.com", "secret", at(home))
	must(t, err)
	if id.Suppressed != RefuseSuppressed || id.Recipients != nil {
		t.Errorf("identity %+v", id)
	}
	all, err := s.Recipients(ctx, "shop@example.com")
	must(t, err)
	if diff := cmp.Diff(append(users[:3:3], ofOne, ofTwo), all); diff != "" {
		t.Error(diff)
	}
	// All or nothing.
	if err := s.RemoveRecipients(ctx, "shop@example.com", 0, "boss@example.com", "no@example.com"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	must(t, s.RemoveRecipients(ctx, "shop@example.com", 0, "boss@example.com", "*@example.com", "*@*.example.com"))
	if id, err := s.Identity(ctx, one.UserID, 0); err != nil || id.Recipients != nil {
		t.Errorf("%+v, %v", id.Recipients, err)
	}
	for what, err := range map[string]error{
		"the null path":            s.SetRecipients(ctx, "shop@example.com", 0, true, "<>"),
		"no pattern":               s.SetRecipients(ctx, "shop@example.com", 0, true, "nobody"),
		"another's credential":     s.SetRecipients(ctx, "other@example.com", one.ID, true, "*@x.test"),
		"no user":                  s.SetRecipients(ctx, "ghost@example.com", 0, true, "*@x.test"),
		"no credential":            func() error { _, err := s.SetSuppressed(ctx, 1000, AcceptSuppressed); return err }(),
		"no word that is possible": func() error { _, err := s.SetSuppressed(ctx, one.ID, "drop"); return err }(),
	} {
		if !errors.Is(err, ErrPattern) && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrSuppressed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
