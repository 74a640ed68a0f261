package auth

import (
	"errors"
	"testing"
)

func TestSetInDoubt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Senders: []string{"a@b"}})
	must(t, err)
	for _, policy := range append(DoubtPolicies(), "") {
		must(t, s.SetInDoubt(ctx, "ALICE", policy))
		if u, err := s.User(ctx, "alice"); err != nil || u.InDoubt != policy {
			t.Errorf("%q, %v; want %q", u.InDoubt, err, policy)
		}
	}
	if err := s.SetInDoubt(ctx, "alice", "ask"); !errors.Is(err, ErrDoubtPolicy) {
		t.Errorf("an unknown policy: %v", err)
	}
	if err := s.SetInDoubt(ctx, "bob", "hold"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}
