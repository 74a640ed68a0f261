package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// secretOf is a key of one octet, repeated.
func secretOf(fill byte) []byte { return bytes.Repeat([]byte{fill}, KeySize) }

func sealed(t *testing.T, s *Sealer, place, secret string) []byte {
	t.Helper()
	value, err := s.Seal(place, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// unasked lets a key be added.
func unasked(string) error { return nil }

// former is a value as it was sealed before keys had names.
func former(t *testing.T, fill byte, place, secret string) []byte {
	t.Helper()
	s := newSealer(t, fill)
	return bytes.TrimPrefix(sealed(t, s, place, secret), s.Head())
}

func TestRing(t *testing.T) {
	t.Parallel()
	ring, err := New(secretOf(1), secretOf(2), secretOf(3))
	if err != nil {
		t.Fatal(err)
	}
	one, two, three := ring.Keys()[0], ring.Keys()[1], ring.Keys()[2]
	if err := ring.Use(two); err != nil || ring.Current() != two {
		t.Fatalf("%v: %s is current, want %s", err, ring.Current(), two)
	}
	for name, test := range map[string]struct {
		value []byte
		key   string
	}{
		"of the current key":       {sealed(t, ring, "place", "secret"), two},
		"of an old key":            {sealed(t, newSealer(t, 1), "place", "secret"), one},
		"of a new key":             {sealed(t, newSealer(t, 3), "place", "secret"), three},
		"of a former version":      {former(t, 1, "place", "secret"), one},
		"of a former version, two": {former(t, 2, "place", "secret"), two},
	} {
		if got, err := ring.Open("place", test.value); err != nil || string(got) != "secret" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if key, err := ring.KeyOf("place", test.value); err != nil || key != test.key {
			t.Errorf("%s: sealed with %q, %v; want %q", name, key, err, test.key)
		}
		if current := bytes.HasPrefix(test.value, ring.Head()); current != (name == "of the current key") {
			t.Errorf("%s: it begins with the head of the current key: %v", name, current)
		}
	}
	unknown := newSealer(t, 9)
	value := sealed(t, unknown, "place", "secret")
	_, err = ring.Open("place", value)
	if !errors.Is(err, ErrSeal) || !strings.Contains(err.Error(), unknown.Current()) || !strings.Contains(err.Error(), "the key file does not have") {
		t.Errorf("a key that is not in the ring: %v", err)
	}
	if key, err := ring.KeyOf("place", value); key != unknown.Current() || !errors.Is(err, ErrSeal) {
		t.Errorf("a key that is not in the ring: %q, %v", key, err)
	}
	if key, err := ring.KeyOf("place", former(t, 9, "place", "secret")); key != "" || !errors.Is(err, ErrSeal) {
		t.Errorf("a former version's value of another key: %q, %v", key, err)
	}
	if err := ring.Use(unknown.Current()); err == nil || ring.Current() != two {
		t.Errorf("a key that is not in the ring is used: %v, %s", err, ring.Current())
	}
	renamed := append([]byte("key:"+one+":"), value[headSize:]...)
	if _, err := ring.Open("place", renamed); !errors.Is(err, ErrSeal) {
		t.Errorf("another key's name: %v", err)
	}
	if _, err := New(secretOf(1), secretOf(1)); err == nil {
		t.Error("one key twice passes")
	}
}

func TestRingFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link := filepath.Join(dir, "secret.key"), filepath.Join(t.TempDir(), "link")
	err := errors.Join(os.WriteFile(path, secretOf(1), 0o640), os.Symlink(path, link),
		os.WriteFile(path+".new", []byte("of a process that was killed"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	s, err := LoadOrCreate(link)
	if err != nil {
		t.Fatal(err)
	}
	first := s.Current()
	second, err := s.Add(unasked)
	if err != nil {
		t.Fatal(err)
	}
	other, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{first, second}; !slices.Equal(other.Keys(), want) || !slices.Equal(s.Keys(), want) || other.Current() != first || s.Current() != first {
		t.Errorf("keys %q and %q, want %q; current %s and %s, want the first", s.Keys(), other.Keys(), want, s.Current(), other.Current())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want 0640", info.Mode(), err)
	}
	if st := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && (st.Uid != 65534 || st.Gid != 65534) {
		t.Errorf("it belongs to %d:%d", st.Uid, st.Gid)
	}
	if at, err := os.Readlink(link); err != nil || at != path {
		t.Errorf("the link leads to %q, %v", at, err)
	}
	third, err := other.Add(unasked)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Reload(), s.Use(third)); err != nil || s.Current() != third {
		t.Errorf("%v: current is %s, want %s", err, s.Current(), third)
	}
	for _, id := range []string{third, "unknown"} {
		if err := s.Remove(id); err == nil || !strings.Contains(err.Error(), `no key "`+id+`" that could be removed`) {
			t.Errorf("removal of %s: %v", id, err)
		}
	}
	if err := errors.Join(s.Remove(second), other.Reload()); err != nil {
		t.Error(err)
	}
	if want := []string{first, third}; !slices.Equal(other.Keys(), want) {
		t.Errorf("after the removal of an old key: %q, want %q", other.Keys(), want)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestReloadKeepsTheCurrentKey: a file that lacks what this process seals with is not taken.
func TestReloadKeepsTheCurrentKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	s, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Use(s.Current()); err != nil {
		t.Fatal(err)
	}
	value := sealed(t, s, "place", "secret")
	for name, text := range map[string]string{
		"another key": string(secretOf(2)), "a damaged file": "damaged", "an empty file": "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Open("place", value); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Add(unasked); err == nil {
			t.Errorf("%s: a key is written", name)
		}
	}
}

func TestDamagedRing(t *testing.T) {
	t.Parallel()
	one, two := string(secretOf(1)), string(secretOf(2))
	tests := map[string]struct{ text, says string }{
		"cut":           {one + two[:20], "nor up to 64 such keys"},
		"longer":        {one + two + "\n", "nor up to 64 such keys"},
		"empty":         {"", "nor up to 64 such keys"},
		"too many keys": {strings.Repeat(one, 65), "nor up to 64 such keys"},
		"a key twice":   {one + two + one, newSealer(t, 1).Current() + " is there twice"},
	}
	path := filepath.Join(t.TempDir(), "secret.key")
	for name, test := range tests {
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := LoadOrCreate(path); err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v; want an error that says %q", name, s, err, test.says)
		}
	}
	if err := os.WriteFile(path, []byte(one+two), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := LoadOrCreate(path); err != nil || s.Current() != newSealer(t, 1).Current() || len(s.Keys()) != 2 {
		t.Errorf("a whole ring: %v, %v", s, err)
	}
}

// TestNothingIsSealedBeforeUse: the first key of a file may be an old one; until Use says which
// is current, nothing is sealed, and any file is taken.
func TestNothingIsSealedBeforeUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	if err := os.WriteFile(path, secretOf(1), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	if value, err := s.Seal("place", []byte("secret")); err == nil || value != nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%q, %v", value, err)
	}
	two, one := newSealer(t, 2).Current(), s.Current()
	if err := s.Use(two); !errors.Is(err, ErrSeal) || !strings.Contains(err.Error(), "if no node has it any more, 'postern key use "+one+" --force'") {
		t.Errorf("%v", err)
	}
	if _, err := s.Seal("place", nil); err == nil {
		t.Error("it seals with an old key")
	}
	if err := errors.Join(os.WriteFile(path, append(secretOf(3), secretOf(2)...), 0o600), s.Reload(), s.Use(two)); err != nil {
		t.Fatal(err)
	}
	if id, err := s.KeyOf("place", sealed(t, s, "place", "secret")); err != nil || id != two {
		t.Errorf("sealed with %s, %v; want %s", id, err, two)
	}
}

// TestFullRing: a key that would make the file unreadable is not added.
func TestFullRing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	var text []byte
	for i := range mostKeys {
		text = append(text, secretOf(byte(i))...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(unasked); err == nil || !strings.Contains(err.Error(), "has 64 keys") {
		t.Errorf("%v", err)
	}
	if _, err := LoadOrCreate(path); err != nil {
		t.Error(err)
	}
}
