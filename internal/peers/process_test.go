package peers

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/serve"
)

// orphanOutput names a pipe: this run of the test binary starts a server that
// writes there, and then waits to be killed.
const orphanOutput = "PEERS_TEST_ORPHAN_OUTPUT"

func TestMain(m *testing.M) {
	if output := os.Getenv(orphanOutput); output != "" {
		if _, err := startProcess([]string{"/bin/sh", "-c", "echo started; exec sleep 600"}, os.Environ(), output, 0); err != nil {
			panic(err)
		}
		select {}
	}
	os.Exit(m.Run())
}

// listenTo makes a named pipe and opens it for reading as soon as somebody writes.
func listenTo(t *testing.T) (path string, opened <-chan *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "output")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	files := make(chan *os.File, 1)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
		}
		files <- f
	}()
	return path, files
}

// The pipe ends when its last writer has ended, so that nothing has to be guessed.
func TestServerEndsWhenWeAreKilled(t *testing.T) {
	t.Parallel()
	path, opened := listenTo(t)
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), orphanOutput+"="+path)
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	output := <-opened
	defer func() { _ = output.Close() }()
	if err := output.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(output)
	if line, err := lines.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("the server said %q: %v", line, err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	if _, err := io.ReadAll(lines); err != nil {
		t.Fatalf("the server outlived its owner: %v", err)
	}
}

func TestStopMayBeRepeated(t *testing.T) {
	t.Parallel()
	p, err := startProcess([]string{"/bin/sh", "-c", "exec sleep 600"}, os.Environ(), filepath.Join(t.TempDir(), "output"), 0)
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.stop()
	if state := p.cmd.ProcessState; !state.Exited() {
		t.Errorf("it did not obey but was killed: %s", state)
	}
}

func TestReadyFailsWhenTheServerEnds(t *testing.T) {
	t.Parallel()
	port, err := serve.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p, err := startProcess([]string{"/bin/false"}, os.Environ(), filepath.Join(t.TempDir(), "output"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if err := p.ready(t.Context(), loopback(port), false); err == nil || !strings.Contains(err.Error(), "ended immediately") {
		t.Errorf("nobody listens, and it says %v", err)
	}
}
