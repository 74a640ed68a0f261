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

// shared is what all tests of a process use: the binaries, each made once, and their
// folder.
var shared struct {
	mu    sync.Mutex
	dir   string
	built map[string]error // by tags
}

// nextTag makes of this tree the version after it, see migrations/next_build.go.
const nextTag = "postern_next"

// atOnce is how many tests of the rig run concurrently, at least.
const atOnce = 4

// binary returns the path of the relay's binary, built under the race detector
// when the tests are.
func binary(t testing.TB, tags string) string {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.dir == "" {
		dir, err := os.MkdirTemp("", "postern-rig-")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir, shared.built = dir, map[string]error{}
	}
	path := filepath.Join(shared.dir, "postern"+tags)
	if _, done := shared.built[tags]; !done {
		shared.built[tags] = build(path, tags)
	}
	if err := shared.built[tags]; err != nil {
		t.Fatal(err)
	}
	return path
}

func build(path, tags string) error {
	args := []string{"build", "-buildvcs=false", "-tags", tags, "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "postern/cmd/postern")...).CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay: %w: %s", err, out)
	}
	return nil
}

// Main is the TestMain of a package that uses the rig. Its tests wait for leases and
// restarts most of the time, so more of them run concurrently than there are processors.
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
