package auth

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"postern/policy/quota"
)

func TestStoreLimits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice", Password: "pw"})
	must(t, err)
	u, err := s.User(ctx, "alice")
	must(t, err)
	c, secret, err := s.AddCredential(ctx, "alice", NewCredential{})
	must(t, err)
	everybody, alice, one := LimitTarget{Default: true}, LimitTarget{User: "Alice"}, LimitTarget{Credential: c.ID}
	limit := func(kind quota.Kind, window time.Duration, most int64, source quota.Scope) quota.Limit {
		return quota.Limit{Kind: kind, Window: window, Max: most, Scope: source}
	}
	must(t, s.SetLimits(ctx, everybody, []quota.Limit{
		limit(quota.Messages, time.Minute, 10, ""), limit(quota.Messages, 24*time.Hour, 100, ""), limit(quota.Size, 0, 1e6, "")}))
	must(t, s.SetLimits(ctx, alice, []quota.Limit{limit(quota.Size, 0, 2e6, quota.Credential), limit(quota.Sessions, 0, 3, "")}))
	must(t, s.SetLimits(ctx, one, []quota.Limit{limit(quota.Bytes, time.Hour, 1<<40, "")}))
	must(t, s.SetLimits(ctx, everybody, []quota.Limit{limit(quota.Messages, time.Hour, 50, "")})) // in place of both

	a := newAuthenticator(s, cheap, patient)
	under := func(password string, want ...quota.Limit) {
		t.Helper()
		want = slices.Clone(want)
		a.Forget(nil, true)
		id, err := a.Verify(ctx, "alice", password, at(home))
		must(t, err)
		for i := range want {
			if want[i].Subject = quota.ID(u.ID); want[i].Scope == quota.Credential {
				want[i].Subject = quota.ID(c.ID)
			}
		}
		less := func(a, b quota.Limit) bool { return string(a.Kind)+string(a.Scope) < string(b.Kind)+string(b.Scope) }
		if diff := cmp.Diff(want, id.Limits, cmpopts.SortSlices(less)); diff != "" {
			t.Error(diff)
		}
	}
	byDefault := []quota.Limit{limit(quota.Messages, time.Hour, 50, quota.Default), limit(quota.Size, 0, 1e6, quota.Default)}
	ofUser := []quota.Limit{limit(quota.Size, 0, 2e6, quota.User), limit(quota.Sessions, 0, 3, quota.User)}
	ofOne := limit(quota.Bytes, time.Hour, 1<<40, quota.Credential)
	ofOne.Subject = quota.ID(c.ID)
	under("pw", append(byDefault, ofUser...)...)
	under(secret, append(append(byDefault, ofUser...), ofOne)...)
	must(t, s.SetNoDefaults(ctx, "alice", true))
	if u, err := s.User(ctx, "alice"); err != nil || !u.NoDefaults {
		t.Errorf("user = %+v, %v", u, err)
	}
	under(secret, append(ofUser, ofOne)...)
	must(t, s.ResetLimits(ctx, alice, quota.Size))
	under("pw", ofUser[1])
	must(t, s.ResetLimits(ctx, alice))
	under(secret, ofOne)
	must(t, s.SetNoDefaults(ctx, "alice", false))
	under("pw", byDefault...)
	got, err := s.Limits(ctx, everybody)
	if diff := cmp.Diff(byDefault, got); diff != "" || err != nil {
		t.Errorf("%s%v", diff, err)
	}
	if got, err := s.Limits(ctx, one); err != nil || !cmp.Equal(got, []quota.Limit{ofOne}) {
		t.Errorf("limits = %v, %v", got, err)
	}
}

func TestStoreRefusesLimits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "alice"})
	must(t, err)
	good := quota.Limit{Kind: quota.Messages, Window: time.Minute, Max: 0}
	for _, tt := range []struct {
		target LimitTarget
		limits []quota.Limit
		want   error
	}{
		{LimitTarget{}, []quota.Limit{good}, quota.ErrLimit},
		{LimitTarget{Default: true, User: "alice"}, []quota.Limit{good}, quota.ErrLimit},
		{LimitTarget{User: "alice", Credential: 1}, []quota.Limit{good}, quota.ErrLimit},
		{LimitTarget{User: "alice", Domain: "example.com"}, []quota.Limit{good}, quota.ErrLimit},
		{LimitTarget{Credential: -1}, []quota.Limit{good}, quota.ErrLimit},
		{LimitTarget{User: "nobody"}, []quota.Limit{good}, ErrNotFound},
		{LimitTarget{Credential: 99}, []quota.Limit{good}, ErrNotFound},
		{LimitTarget{User: "a b"}, []quota.Limit{good}, ErrName},
		{LimitTarget{User: "alice"}, nil, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{good, good}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: "mesages", Window: time.Minute}}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Messages}}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Messages, Window: time.Minute + 1}}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Messages, Window: 367 * 24 * time.Hour}}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Size, Window: time.Minute}}, quota.ErrLimit},
		{LimitTarget{User: "alice"}, []quota.Limit{{Kind: quota.Size, Max: -1}}, quota.ErrLimit},
	} {
		if err := s.SetLimits(ctx, tt.target, tt.limits); !errors.Is(err, tt.want) {
			t.Errorf("%+v %v: err = %v, want %v", tt.target, tt.limits, err, tt.want)
		}
	}
	must(t, s.SetLimits(ctx, LimitTarget{User: "alice"}, []quota.Limit{good, {Kind: quota.Messages, Window: quota.MaxWindow, Max: 1<<63 - 1}}))
}

// A limit of a domain is on all users whose names are in it, those without the default limits
// too, and on nobody else.
func TestStoreDomainLimits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	ids := map[string]int64{}
	for _, name := range []string{"a@example.com", "b@example.com", "c@sub.example.com", "d@xn--bcher-kva.example", "word"} {
		_, err := s.AddUser(ctx, NewUser{Name: name})
		must(t, err)
		u, err := s.User(ctx, name)
		must(t, err)
		ids[name] = u.ID
	}
	under := func(name string, want ...quota.Limit) {
		t.Helper()
		id, err := s.Identity(ctx, ids[name], 0)
		must(t, err)
		if diff := cmp.Diff(want, id.Limits, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	limit := quota.Limit{Kind: quota.Messages, Window: time.Hour, Max: 100}
	must(t, s.SetLimits(ctx, LimitTarget{Domain: "Example.COM."}, []quota.Limit{limit}))
	must(t, s.SetLimits(ctx, LimitTarget{Domain: "bücher.example"}, []quota.Limit{limit}))
	must(t, s.SetLimits(ctx, LimitTarget{Default: true}, []quota.Limit{{Kind: quota.Size, Max: 9}}))
	must(t, s.SetNoDefaults(ctx, "b@example.com", true))
	of := func(domain string) quota.Limit {
		l := limit
		l.Scope, l.Subject = quota.Domain, domain
		return l
	}
	size := func(name string) quota.Limit {
		return quota.Limit{Kind: quota.Size, Max: 9, Scope: quota.Default, Subject: quota.ID(ids[name])}
	}
	under("a@example.com", of("example.com"), size("a@example.com"))
	under("b@example.com", of("example.com"))
	under("c@sub.example.com", size("c@sub.example.com"))
	under("d@xn--bcher-kva.example", of("xn--bcher-kva.example"), size("d@xn--bcher-kva.example"))
	under("word", size("word"))
	must(t, s.SetNoDefaults(ctx, "word", true))
	under("word")
	if got, err := s.Limits(ctx, LimitTarget{Domain: "EXAMPLE.com"}); err != nil || !cmp.Equal(got, []quota.Limit{of("example.com")}) {
		t.Errorf("limits = %v, %v", got, err)
	}
	must(t, s.ResetLimits(ctx, LimitTarget{Domain: "example.com"}))
	under("b@example.com")
	under("d@xn--bcher-kva.example", of("xn--bcher-kva.example"), size("d@xn--bcher-kva.example"))
	for _, domain := range []string{"*.example.com", "a b", "x@y", strings.Repeat("x.", 130) + "x"} {
		if err := s.SetLimits(ctx, LimitTarget{Domain: domain}, []quota.Limit{limit}); !errors.Is(err, quota.ErrLimit) {
			t.Errorf("%q: err = %v", domain, err)
		}
	}
}
