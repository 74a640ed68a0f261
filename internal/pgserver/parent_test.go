package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// TestMain lets this program be the parent that TestEndsWithItsParent kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("POSTERN_TEST_PARENT"); dir != "" {
		parent(dir)
	}
	os.Exit(m.Run())
}

// parent starts a server, says so and waits to be killed.
func parent(dir string) {
	server, err := pgserver.Start(context.Background(), pgserver.Config{
		Dir:       dir,
		Unsafe:    true,
		Temporary: os.Getenv("POSTERN_TEST_TEMPORARY") != "",
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("running", server.PID())
	select {}
}

// startParent returns the parent's process and its server's process id.
func startParent(t *testing.T, dir string, env ...string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "POSTERN_TEST_PARENT="+dir)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "running ")))
	if err != nil {
		t.Fatal(line)
	}
	return cmd, pid
}

func TestEndsWithItsParent(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			dir := pgtest.Dir(t)
			cmd, pid := startParent(t, dir, "POSTERN_TEST_TEMPORARY=1")
			kill(t, cmd, signal)
			await(t, "the server to end", func() bool { return !running(pid) })
			await(t, "its folder to be removed", func() bool {
				_, err := os.Stat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
		})
	}
}

// TestSocketOutsideIsRemovedWithTheParent: the folder's path is too long.
func TestSocketOutsideIsRemovedWithTheParent(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t) + strings.Repeat("-long", 20)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cmd, pid := startParent(t, dir)
	url, ok := pgserver.Running(dir)
	if !ok {
		t.Fatal("the server is not running")
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(config.Host, dir) {
		t.Fatalf("the socket is in %s, which is too long", config.Host)
	}
	kill(t, cmd, syscall.SIGKILL)
	await(t, "the server to end", func() bool { return !running(pid) })
	await(t, "the socket's folder to be removed", func() bool {
		_, err := os.Stat(config.Host)
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestRunningFindsAnotherProcessesServer(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	if url, ok := pgserver.Running(dir); ok {
		t.Errorf("without a folder, %s is running", url)
	}
	cmd, pid := startParent(t, dir)
	url, ok := pgserver.Running(dir)
	if !ok {
		t.Fatal("the server is not found")
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	kill(t, cmd, syscall.SIGKILL)
	awaitGone(t, dir)
	await(t, "the server to end", func() bool { return !running(pid) })
}

// TestLookingDoesNotDisturbAStart has many look while the server starts.
func TestLookingDoesNotDisturbAStart(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	if err := start(t, config).Stop(); err != nil { // makes the cluster
		t.Fatal(err)
	}
	looking, stop := context.WithCancel(t.Context())
	var eyes sync.WaitGroup
	for range 4 {
		eyes.Go(func() {
			for looking.Err() == nil {
				pgserver.Running(config.Dir)
			}
		})
	}
	for range 3 {
		if err := start(t, config).Stop(); err != nil {
			t.Error(err)
		}
	}
	stop()
	eyes.Wait()
}

// TestStartsAgainAtOnceAfterItsParentWasKilled is what an init system does.
func TestStartsAgainAtOnceAfterItsParentWasKilled(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	cmd, pid := startParent(t, config.Dir)
	if _, err := pgserver.Start(t.Context(), config); !errors.Is(err, pgserver.ErrInUse) ||
		!strings.Contains(err.Error(), itoa(cmd.Process.Pid)) {
		t.Fatalf("start beside the parent: %v, want ErrInUse with its process id", err)
	}
	kill(t, cmd, syscall.SIGKILL)
	server := start(t, config)
	if server.PID() == pid {
		t.Fatal("the old server was taken for the new one")
	}
	connect(t, server)
}

// TestAnOrphanIsStopped has the guard killed as well, so that nothing but the
// next start is there to end the server.
func TestAnOrphanIsStopped(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	cmd, pid := startParent(t, config.Dir)
	guard := childNamed(t, cmd.Process.Pid, "postern-pg-guard")
	if err := syscall.Kill(guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kill(t, cmd, syscall.SIGKILL)
	if !running(pid) {
		t.Fatal("the orphan has ended by itself; this test shows nothing")
	}
	connect(t, start(t, config))
	if running(pid) {
		t.Error("the orphan still runs beside the new server")
	}
}

func kill(t *testing.T, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it always says that it was killed
}

// await looks again and again: the processes are no children of this one, which
// therefore cannot wait for them.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// awaitGone waits until no server is found in the folder: a process that this one is
// just starting has the lock of a stopped one for a moment.
func awaitGone(t *testing.T, dir string) {
	t.Helper()
	await(t, "nobody to be found in "+dir, func() bool {
		_, ok := pgserver.Running(dir)
		return !ok
	})
}

// running is false for a zombie, which a container without an init never reaps.
func running(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && !strings.Contains(string(text), "State:\tZ")
}

func childNamed(t *testing.T, parent int, name string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		status, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(status), "\nPPid:\t"+itoa(parent)+"\n") {
			continue
		}
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(command), name) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("process %d has no child %s", parent, name)
	return 0
}

func itoa(n int) string { return strconv.Itoa(n) }
