package auth

import (
	"testing"

	"postern/policy/quota"
)

func TestStoreIdentity(t *testing.T) {
	t.Parallel()
	s, ctx := testStore(t), t.Context()
	u, err := s.AddUser(ctx, NewUser{Name: "alice@example.com"})
	must(t, err)
	c, _, err := s.AddCredential(ctx, u.Name, NewCredential{Label: "a"})
	must(t, err)
	must(t, s.SetLimits(ctx, LimitTarget{Default: true}, []quota.Limit{{Kind: quota.Size, Max: 1}}))
	must(t, s.SetLimits(ctx, LimitTarget{User: u.Name}, []quota.Limit{{Kind: quota.Size, Max: 2}}))
	must(t, s.SetLimits(ctx, LimitTarget{Credential: c.ID}, []quota.Limit{{Kind: quota.Size, Max: 3}}))
	for credential, limits := range map[int64]int{0: 2, c.ID: 3} {
		id, err := s.Identity(ctx, u.ID, credential)
		must(t, err)
		if id.Name != u.Name || len(id.Limits) != limits {
			t.Errorf("by credential %d: %+v", credential, id)
		}
	}
	if _, err := s.Identity(ctx, u.ID+1, 0); err == nil {
		t.Error("a user that is not there has an identity")
	}
	for prefix, want := range map[string]int{"": 1, "x": 0, "-1": 0} {
		if found, err := s.FindCredentials(ctx, prefix, 10); err != nil || len(found) != want {
			t.Errorf("%q: %v, %v", prefix, found, err)
		}
	}
}
