package auth

import "testing"

func TestStats(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{Permits: 3})
	for _, password := range []string{"pw", "pw", "wrong"} {
		_, _ = a.Verify(t.Context(), "alice", password, at(home)) // the counts are what is asked
	}
	s := a.Stats()
	if s.Permits != 3 || s.Hashing != 0 || s.Waiting != 0 || s.Hashes != 2 || s.CacheHits != 1 || s.CacheMisses != 2 || s.Cached != 1 || s.Throttled == 0 {
		t.Errorf("%+v", s)
	}
}
