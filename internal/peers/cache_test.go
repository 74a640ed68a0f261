package peers

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenCache(t *testing.T) {
	for _, tc := range []struct {
		name        string
		files       map[string]string // beside or in the cache folder
		unavailable bool
		says        string // part of the error; "" when there is a cache
	}{
		{name: "fetched", files: map[string]string{"peers/stamp": "x"}},
		{name: "never fetched", says: "run `make peers`"},
		{name: "half fetched", files: map[string]string{"peers/log": "x"}, says: "run `make peers`"},
		{
			name: "no package manager", files: map[string]string{"peers-unavailable": "no apt-get\n"},
			unavailable: true, says: "no apt-get",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("POSTERN_PEERS", filepath.Join(dir, "peers"))
			for name, text := range tc.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := OpenCache()
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one with %q", err, tc.says)
			}
			if errors.Is(err, ErrUnavailable) != tc.unavailable {
				t.Errorf("%v: unavailable should be %t", err, tc.unavailable)
			}
		})
	}
}

// A module that is missing is a failure wherever npm could have fetched it.
func TestModules(t *testing.T) {
	bin, cache := t.TempDir(), Cache{t.TempDir()}
	t.Setenv("PATH", bin)
	if err := cache.hasModule("x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without npm: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "npm"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := cache.hasModule("x"); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("with npm: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(cache.dir, "node/node_modules/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := cache.hasModule("x"); err != nil {
		t.Error(err)
	}
}

func TestCacheComesBeforeTheMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, "root/usr/bin/sh")
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{"sh": own, "no-such-program": ""} {
		got, err := Cache{dir}.lookPath(program)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s is found at %q, want %q (%v)", program, got, want, err)
		}
	}
}
