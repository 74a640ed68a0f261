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

// atOnce is how many tests run concurrently, at least.
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
	// Without what a debugger needs, as go test links, it is linked in half the time.
	args := []string{"build", "-buildvcs=false", "-ldflags=-s -w", "-tags", tags, "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "postern/cmd/postern")...).CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay: %w: %s", err, out)
	}
	return nil
}

// Main is the TestMain of a package that uses the rig.
func Main(m *testing.M) {
	Prepare()
	code := m.Run()
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// Prepare is for a TestMain, before its tests run. They wait for programs, leases and
// restarts most of the time, so more of them run concurrently than there are processors,
// unless -parallel says otherwise. And programs that are built under the race detector do not
// sleep for a second at their end, as it has them do to catch what still runs then: tests run
// some thousand of them.
func Prepare() {
	if f := flag.Lookup("test.parallel"); f != nil {
		_ = f.Value.Set(strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=10")
}
