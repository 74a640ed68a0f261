package rig

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// shared is what all tests of a process use: the binary, made once, and its folder.
var shared struct {
	build sync.Once
	dir   string
	err   error
}

// atOnce is how many tests of the rig run at once at least.
const atOnce = 4

// binary returns the path of the relay's binary, built under the race detector
// when the tests are.
func binary(t testing.TB) string {
	t.Helper()
	shared.build.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "postern-rig-"); shared.err == nil {
			shared.err = build(filepath.Join(shared.dir, "postern"))
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return filepath.Join(shared.dir, "postern")
}

func build(path string) error {
	args := []string{"build", "-buildvcs=false", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "postern/cmd/postern")...).CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay: %w: %s", err, out)
	}
	return nil
}

// Main is the TestMain of a package that uses the rig. Its tests wait for leases and
// restarts most of the time, so more of them run at once than there are processors.
func Main(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
	code := m.Run()
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}
