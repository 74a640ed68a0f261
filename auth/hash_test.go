package auth

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func TestHashRoundTrip(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"x", "secret", "with space", "pässwörd", strings.Repeat("y", 1024)} {
		stored := hashPassword(password, cheap)
		h, err := parseHash(stored)
		must(t, err)
		if !h.matches(preparePassword(password)) {
			t.Errorf("%q does not match its own hash", password)
		}
		if h.matches(password+"x") || h.matches("") {
			t.Errorf("%q: another password matches", password)
		}
		p, err := parsePHC(stored)
		must(t, err)
		if p.String() != stored {
			t.Errorf("%s is written again as %s", stored, p)
		}
		if stored == hashPassword(password, cheap) {
			t.Error("two hashes share a salt")
		}
	}
}

// A vector of the reference implementation, so that hashes of other programs work.
func TestHashOfTheReferenceImplementation(t *testing.T) {
	t.Parallel()
	h, err := parseHash("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4")
	must(t, err)
	if !h.matches("password") {
		t.Error("does not match")
	}
}

func TestDefaultCostIsWhatTheDesignSays(t *testing.T) {
	t.Parallel()
	if !strings.HasPrefix(decoy(defaultCost).String(), "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Error(decoy(defaultCost).String())
	}
}

func TestNFDPasswordMatchesNFC(t *testing.T) {
	t.Parallel()
	h, err := parseHash(hashPassword("caf\u00e9", cheap))
	must(t, err)
	if !h.matches(preparePassword("cafe\u0301")) {
		t.Error("the encoding of a letter matters")
	}
}

func TestParseHashIsStrict(t *testing.T) {
	t.Parallel()
	const good = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	if _, err := parseHash(good); err != nil {
		t.Fatal(err)
	}
	bad := []string{
		"", "x", "$", "$argon2id$", "plain text",
		strings.Replace(good, "argon2id", "argon2i", 1),
		strings.Replace(good, "v=19", "v=16", 1),
		strings.Replace(good, "m=256", "m=4194304", 1),
		strings.Replace(good, "m=256", "m=131073", 1),
		strings.Replace(good, "m=256", "m=7", 1),
		strings.Replace(good, "m=256", "m=0256", 1),
		strings.Replace(good, "m=256", "m=+256", 1),
		strings.Replace(good, "m=256", "m=-1", 1),
		strings.Replace(good, "m=256", "m=4294967552", 1),
		strings.Replace(good, "t=2", "t=0", 1),
		strings.Replace(good, "t=2", "t=11", 1),
		strings.Replace(good, "p=1", "p=0", 1),
		strings.Replace(good, "p=1", "p=17", 1),
		strings.Replace(good, "p=1", "p=257", 1),
		strings.Replace(good, "p=1", "p=1,x=1", 1),
		strings.Replace(good, "m=256,t=2", "t=2,m=256", 1),
		strings.Replace(good, "c29tZXNhbHQ", "", 1),
		strings.Replace(good, "c29tZXNhbHQ", "c29t", 1),
		strings.Replace(good, "c29tZXNhbHQ", "c29tZXNhbHR", 1), // padding bits set
		strings.Replace(good, "c29tZXNhbHQ", "c29tZXNhbHQ=", 1),
		strings.Replace(good, "c29tZXNhbHQ", strings.Repeat("A", 4000), 1),
		good + "$", good + "\n", " " + good, good[:len(good)-30],
		"$2a$15$" + strings.Repeat("a", 53), "$2b$10$short", "$2x$10$" + strings.Repeat("a", 53), "$2a$99$" + strings.Repeat("a", 53),
	}
	for _, s := range bad {
		if h, err := parseHash(s); err == nil {
			t.Errorf("parseHash(%q) = %v", s, h)
		}
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4")
	f.Add("$argon2id$v=19$m=4194304,t=2,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePHC(s)
		if err != nil {
			return
		}
		if p.cost.Memory > maxMemory || p.cost.Time > maxTime || p.cost.Threads > maxThreads || p.String() != s {
			t.Fatalf("%q parses as %+v", s, p)
		}
	})
}

func TestBcrypt(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 72)
	for _, password := range []string{"secret", long} {
		stored, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		must(t, err)
		for _, s := range []string{string(stored), strings.Replace(string(stored), "$2a$", "$2b$", 1)} {
			h, err := parseHash(s)
			must(t, err)
			if !h.matches(password) {
				t.Errorf("%q does not match", s)
			}
			if h.matches(password + "y") {
				t.Errorf("%d octets match by the first %d", len(password)+1, len(password))
			}
		}
	}
}

// A7: a row that asks for 4 GiB is refused before anything is allocated.
func TestA7PoisonedHashAllocatesNothing(t *testing.T) {
	const poisoned = "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	a := newAuthenticator(fakeUsers{"alice": {id: 1, enabled: true, hash: poisoned}}, cheap, Config{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := a.Verify(t.Context(), "alice", "password", at(home))
	runtime.ReadMemStats(&after)
	if err != ErrCredentials {
		t.Errorf("err = %v, want ErrCredentials", err)
	}
	if a.hashing.done.Load() != 1 {
		t.Error("no dummy work was done")
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("allocated %d octets", got)
	}
}

func TestGeneratePassword(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		p := GeneratePassword()
		if len(p) != 32 || strings.Trim(p, "abcdefghijkmnpqrstuvwxyz23456789") != "" || seen[p] {
			t.Fatalf("password %q", p)
		}
		seen[p] = true
	}
}

func BenchmarkHash(b *testing.B) {
	h := decoy(defaultCost)
	for b.Loop() {
		h.matches("password")
	}
}
