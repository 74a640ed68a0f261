package deb_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// insideEnv makes this test binary the first process of a machine of its own.
const insideEnv = "POSTERN_TEST_DEB_INSIDE"

// The life of the package on a machine: installed, set up by the commands of
// docs/packages.md, started as the unit says by a plain init, a message sent through
// it, updated, removed and purged, and then nothing is left.
//
// The machine is this one with everything written put aside: the first process of new
// namespaces mounts an overlay on / and changes its root to it. When that process
// ends, the kernel ends all others there, and the files are gone with the mount.
func TestInstall(t *testing.T) {
	t.Parallel()
	deb := pack(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can install a package")
	}
	dir := t.TempDir() // where the machine is mounted, in its own namespace only
	newer := filepath.Join(t.TempDir(), "newer.deb")
	repack(t, deb, newer, "1.3.0")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), insideEnv+"="+dir, "OLDER="+deb, "NEWER="+newer)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil || !strings.HasSuffix(out.String(), "\nnothing is left\n") {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Log(&out)
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
