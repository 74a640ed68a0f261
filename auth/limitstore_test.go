package auth

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestStoreLimits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	c, secret, err := s.AddCredential(ctx, "alice", NewCredential{})
	must(t, err)
	everybody, alice, one := LimitTarget{Default: true}, LimitTarget{User: "Alice"}, LimitTarget{Credential: c.ID}
	limit := func(kind LimitKind, window time.Duration, most int64, source LimitSource) Limit {
		return Limit{kind, window, most, source}
	}
	must(t, s.SetLimits(ctx, everybody, []Limit{
		limit(LimitMessages, time.Minute, 10, ""), limit(LimitMessages, 24*time.Hour, 100, ""), limit(LimitSize, 0, 1e6, "")}))
	must(t, s.SetLimits(ctx, alice, []Limit{limit(LimitSize, 0, 2e6, FromCredential), limit(LimitSessions, 0, 3, "")}))
	must(t, s.SetLimits(ctx, one, []Limit{limit(LimitBytes, time.Hour, 1<<40, "")}))
	must(t, s.SetLimits(ctx, everybody, []Limit{limit(LimitMessages, time.Hour, 50, "")})) // in place of both

	a := newAuthenticator(s, cheap, patient)
	under := func(password string, want ...Limit) {
		t.Helper()
		a.Forget(nil, true)
		id, err := a.Verify(ctx, "alice", password, at(home))
		must(t, err)
		less := func(a, b Limit) bool { return a.Kind+LimitKind(a.Source) < b.Kind+LimitKind(b.Source) }
		if diff := cmp.Diff(want, id.Limits, cmpopts.SortSlices(less)); diff != "" {
			t.Error(diff)
		}
	}
	byDefault := []Limit{limit(LimitMessages, time.Hour, 50, FromDefault), limit(LimitSize, 0, 1e6, FromDefault)}
	ofUser := []Limit{limit(LimitSize, 0, 2e6, FromUser), limit(LimitSessions, 0, 3, FromUser)}
	ofOne := limit(LimitBytes, time.Hour, 1<<40, FromCredential)
	under("pw", append(byDefault, ofUser...)...)
	under(secret, append(append(byDefault, ofUser...), ofOne)...)
	must(t, s.SetNoDefaults(ctx, "alice", true))
	if u, err := s.User(ctx, "alice"); err != nil || !u.NoDefaults {
		t.Errorf("user = %+v, %v", u, err)
	}
	under(secret, append(ofUser, ofOne)...)
	must(t, s.ResetLimits(ctx, alice, LimitSize))
	under("pw", ofUser[1])
	must(t, s.ResetLimits(ctx, alice))
	under(secret, ofOne)
	must(t, s.SetNoDefaults(ctx, "alice", false))
	under("pw", byDefault...)
	got, err := s.Limits(ctx, everybody)
	if diff := cmp.Diff(byDefault, got); diff != "" || err != nil {
		t.Errorf("%s%v", diff, err)
	}
	if got, err := s.Limits(ctx, one); err != nil || !cmp.Equal(got, []Limit{ofOne}) {
		t.Errorf("limits = %v, %v", got, err)
	}
}

func TestStoreRefusesLimits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice"})
	must(t, err)
	good := Limit{Kind: LimitMessages, Window: time.Minute, Max: 0}
	for _, tt := range []struct {
		target LimitTarget
		limits []Limit
		want   error
	}{
		{LimitTarget{}, []Limit{good}, ErrLimit},
		{LimitTarget{Default: true, User: "alice"}, []Limit{good}, ErrLimit},
		{LimitTarget{User: "alice", Credential: 1}, []Limit{good}, ErrLimit},
		{LimitTarget{Credential: -1}, []Limit{good}, ErrLimit},
		{LimitTarget{User: "nobody"}, []Limit{good}, ErrNotFound},
		{LimitTarget{Credential: 99}, []Limit{good}, ErrNotFound},
		{LimitTarget{User: "a b"}, []Limit{good}, ErrName},
		{LimitTarget{User: "alice"}, nil, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{good, good}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: "mesages", Window: time.Minute}}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: LimitMessages}}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: LimitMessages, Window: time.Minute + 1}}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: LimitMessages, Window: 367 * 24 * time.Hour}}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: LimitSize, Window: time.Minute}}, ErrLimit},
		{LimitTarget{User: "alice"}, []Limit{{Kind: LimitSize, Max: -1}}, ErrLimit},
	} {
		if err := s.SetLimits(ctx, tt.target, tt.limits); !errors.Is(err, tt.want) {
			t.Errorf("%+v %v: err = %v, want %v", tt.target, tt.limits, err, tt.want)
		}
	}
	must(t, s.SetLimits(ctx, LimitTarget{User: "alice"}, []Limit{good, {Kind: LimitMessages, Window: MaxWindow, Max: 1<<63 - 1}}))
}
