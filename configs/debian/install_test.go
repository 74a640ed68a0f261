package debian_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/machine"
)

// The life of the package on a machine: installed, set up by the commands of
// docs/install.md, started as the unit says by a plain init, a message sent through
// it, updated, removed and purged, and then nothing is left.
func TestInstall(t *testing.T) {
	t.Parallel()
	deb := pack(t)
	newer := filepath.Join(t.TempDir(), "newer.deb")
	repack(t, deb, newer, "1.3.0")
	out := machine.Run(t, "install", "OLDER="+deb, "NEWER="+newer)
	if !strings.HasSuffix(out, "\nnothing is left\n") {
		t.Fatal(out)
	}
	t.Log(out)
}

// repack makes the package of another version out of one.
func repack(t *testing.T, deb, to, version string) {
	t.Helper()
	dir := t.TempDir()
	run(t, nil, "dpkg-deb", "--raw-extract", deb, dir)
	control := filepath.Join(dir, "DEBIAN/control")
	text, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("Version: 1.2.0\n"), []byte("Version: "+version+"\n"), 1)
	if err := os.WriteFile(control, text, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", dir, to)
}
