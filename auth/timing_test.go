package auth

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"postern/auth/throttle"
	"postern/internal/longtest"
)

// TestA6Timing measures 2,000 interleaved failures of each kind, five minutes of
// hashing, and so runs only when POSTERN_LONG is set. The median times may differ by
// max(2 ms, 3%). TestA6OnePathForEveryFailure shows in every run that the work is the same.
func TestA6Timing(t *testing.T) {
	if !longtest.Run() {
		return // nothing is left untested silently: see above
	}
	s := testStore(t)
	s.cost = defaultCost
	for _, name := range []string{"known", "disabled"} {
		_, err := s.AddUser(t.Context(), NewUser{Name: name, Password: "pw"})
		must(t, err)
	}
	_, err := s.AddUser(t.Context(), NewUser{Name: "nohash"})
	must(t, err)
	must(t, s.SetEnabled(t.Context(), "disabled", false, "test"))
	for name, change := range map[string]string{"expired": "expires_at = now()", "revoked": "revoked_at = now()", "elsewhere": "allowed_networks = '{203.0.113.0/24}'"} {
		u, err := s.AddUser(t.Context(), NewUser{Name: name, Password: "pw"})
		must(t, err)
		_, err = s.db.Exec(t.Context(), "update credential set "+change+" where user_id = $1", u.ID)
		must(t, err)
	}
	compareTimes(t, s, 2000, words{"known", "pw"}, []failure{
		{"unknown", words{"unknown", "pw"}}, {"wrong password", words{"known", "wrong"}},
		{"disabled", words{"disabled", "pw"}}, {"no hash", words{"nohash", "pw"}},
		{"expired", words{"expired", "pw"}}, {"revoked", words{"revoked", "pw"}}, {"elsewhere", words{"elsewhere", "pw"}},
	})
}

// TestA6TimingOfSecrets is TestA6Timing for generated secrets, in seconds; what is done
// for each is shown in every run by TestA6OnePathForEveryWrongSecret.
func TestA6TimingOfSecrets(t *testing.T) {
	if !longtest.Run() {
		return // as above: a busy machine has other medians
	}
	s := testStore(t)
	logins := map[string]words{}
	for _, name := range []string{"known", "disabled", "expired", "revoked", "elsewhere"} {
		_, err := s.AddUser(t.Context(), NewUser{Name: name})
		must(t, err)
		c, secret, err := s.AddCredential(t.Context(), name, NewCredential{})
		must(t, err)
		logins[name] = words{name, secret}
		change := map[string]string{"expired": "expires_at = now()", "revoked": "revoked_at = now()", "elsewhere": "allowed_networks = '{203.0.113.0/24}'"}[name]
		if change != "" {
			_, err = s.db.Exec(t.Context(), "update credential set "+change+" where id = $1", c.ID)
			must(t, err)
		}
	}
	must(t, s.SetEnabled(t.Context(), "disabled", false, "test"))
	compareTimes(t, s, 500, logins["known"], []failure{
		{"unknown user", words{"unknown", logins["known"].password}},
		{"unknown credential", words{"known", secretOf(1<<60, GeneratePassword())}},
		{"wrong secret", words{"known", secretOf(1, GeneratePassword())}},
		{"disabled", logins["disabled"]}, {"expired", logins["expired"]},
		{"revoked", logins["revoked"]}, {"elsewhere", logins["elsewhere"]},
	})
}

type words struct{ name, password string }

type failure struct {
	kind string
	words
}

// compareTimes fails when the median times of interleaved failures of each kind
// differ by more than max(2 ms, 3%). The cache is warm with a login that is right.
func compareTimes(t *testing.T, s *Store, rounds int, right words, kinds []failure) {
	a := NewAuthenticator(s, patient)
	times := make([][]time.Duration, len(kinds))
	for range rounds {
		if _, err := a.Verify(t.Context(), right.name, right.password, at(home)); err != nil {
			t.Fatal(err)
		}
		for i, k := range kinds {
			a.throttle = throttle.New()
			start := time.Now()
			_, err := a.Verify(t.Context(), k.name, k.password, at(home))
			times[i] = append(times[i], time.Since(start))
			if err != ErrCredentials {
				t.Fatalf("%s: %v", k.kind, err)
			}
		}
	}
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.kind
	}
	compareMedians(t, names, times)
}

// compareMedians fails when the medians of times differ by more than max(2 ms, 3%), and
// by more than twice what chance and the machine did: the difference between the medians
// of one kind's even and odd times.
func compareMedians(t *testing.T, names []string, times [][]time.Duration) {
	t.Helper()
	var medians []time.Duration
	var chance time.Duration
	text := ""
	for i, name := range names {
		m := median(times[i])
		halves := [2][]time.Duration{}
		for j, d := range times[i] {
			halves[j%2] = append(halves[j%2], d)
		}
		chance = max(chance, (median(halves[0]) - median(halves[1])).Abs())
		medians = append(medians, m)
		text += fmt.Sprintf("%s %s; ", name, m)
	}
	t.Logf("%sby chance %s", text, chance)
	least, most := slices.Min(medians), slices.Max(medians)
	if most-least > max(2*time.Millisecond, least*3/100, 2*chance) {
		t.Errorf("medians differ by %s: %s", most-least, text)
	}
}

func median(times []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)/2]
}
