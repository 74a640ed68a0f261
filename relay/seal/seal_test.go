package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func newSealer(t *testing.T, fill byte) *Sealer {
	t.Helper()
	s, err := New(bytes.Repeat([]byte{fill}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSeal(t *testing.T) {
	t.Parallel()
	s := newSealer(t, 1)
	value := sealed(t, s, "sink", "secret")
	if bytes.Contains(value, []byte("secret")) {
		t.Error("the secret is there to be read")
	}
	if bytes.Equal(value, sealed(t, s, "sink", "secret")) {
		t.Error("sealing twice gives the same: the nonce is not random")
	}
	if got, err := s.Open("sink", value); err != nil || string(got) != "secret" {
		t.Errorf("Open = %q, %v", got, err)
	}
	damaged := bytes.Clone(value)
	damaged[len(damaged)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another place": func() ([]byte, error) { return s.Open("other", value) },
		"another key":   func() ([]byte, error) { return newSealer(t, 2).Open("sink", value) },
		"damage":        func() ([]byte, error) { return s.Open("sink", damaged) },
		"too short":     func() ([]byte, error) { return s.Open("sink", value[:10]) },
		"nothing":       func() ([]byte, error) { return s.Open("sink", nil) },
	} {
		if got, err := open(); !errors.Is(err, ErrSeal) || got != nil {
			t.Errorf("%s: %q, %v; want ErrSeal", name, got, err)
		}
	}
	if _, err := New(make([]byte, 16)); err == nil {
		t.Error("a key of 16 octets passes")
	}
}

func TestLoadOrCreate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	keys := make([]string, 8)
	var group sync.WaitGroup
	for i := range keys { // several processes that start together agree on one key
		group.Go(func() {
			s, err := LoadOrCreate(path)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = s.Current()
		})
	}
	group.Wait()
	for _, key := range keys {
		if key == "" || key != keys[0] {
			t.Fatalf("keys %q and %q", keys[0], key)
		}
	}
	if key, err := os.ReadFile(path); err != nil || len(key) != KeySize || bytes.Equal(key, make([]byte, KeySize)) {
		t.Errorf("the key is %x, %v", key, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".key-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// What a command of root's makes is for the server, whose the folder is.
func TestKeyOfRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	dir := t.TempDir()
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "secret.key")
	if _, err := LoadOrCreate(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != nobody || st.Gid != nobody || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %d's, group %d, mode %o", st.Uid, st.Gid, info.Mode().Perm())
	}
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, size int, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := map[string]struct{ path, says string }{
		"all may read":   {write("world", KeySize, 0o604), "mode 0604 lets everybody read it; chmod 600 it"},
		"all may write":  {write("writable", KeySize, 0o602), "mode 0602 lets everybody change it; chmod 600 it"},
		"too short":      {write("short", KeySize-1, 0o600), "not a key"},
		"too long":       {write("long", KeySize+1, 0o600), "not a key"},
		"a folder":       {dir, "not a regular file"},
		"no such folder": {filepath.Join(dir, "no", "key"), "create key"},
	}
	// As Kubernetes mounts a secret for a pod with an fsGroup.
	if _, err := LoadOrCreate(write("group", KeySize, 0o440)); err != nil {
		t.Errorf("a group may read it: %v", err)
	}
	for name, test := range tests {
		if key, err := LoadOrCreate(test.path); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, %v; want an error that says %q", name, key, err, test.says)
		}
	}
}
