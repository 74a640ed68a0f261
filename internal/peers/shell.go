package peers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Shells are those that a completion can be written for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// A Shell is an interactive one on a pseudo-terminal, with the completion that it has when
// its packages are installed and nothing of the machine's own.
type Shell struct {
	t   testing.TB
	pty *os.File

	mu      sync.Mutex
	written bytes.Buffer
	more    chan struct{} // closed when there is more, or nothing to come
	from    int           // what Await has seen
	ended   bool
}

// StartShell starts one in the folder dir and reads the script, a completion of some
// program, in it. The shell ends with the test.
func StartShell(t testing.TB, name, dir, script string, env ...string) *Shell {
	t.Helper()
	cache := requireCache(t)
	argv, setUp, err := cache.shell(name, dir)
	if err != nil {
		t.Fatal(err)
	}
	pty, terminal, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	// A home of its own: shells keep a history.
	cmd.Env = append(append(cache.environ(argv[0]), env...), "TERM=xterm", "HOME="+dir, "ZDOTDIR="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Shell{t: t, pty: pty, more: make(chan struct{})}
	var reading sync.WaitGroup
	reading.Go(s.read)
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its session's first group
		_ = cmd.Wait()
		_ = pty.Close()
		reading.Wait()
	})
	for line := range strings.Lines(setUp + "source " + script + "\n") {
		s.edits()
		s.Type(line)
	}
	s.Sync()
	return s
}

// shell is how a shell is started in a folder, and what is typed first.
func (c Cache) shell(name, dir string) (argv []string, setUp string, err error) {
	share := filepath.Join(c.root(), "usr/share")
	switch name {
	case "bash":
		argv, setUp = []string{"bash", "--norc", "--noprofile", "-i"}, "source "+share+"/bash-completion/bash_completion\n"
	case "zsh": // it needs its modules before its first line
		argv = []string{"zsh", "-d", "-i"}
		text := "module_path=(" + c.root() + "/usr/lib/*/zsh/*(/N))\nfpath=(" + share + "/zsh/functions/**/*(/N) $fpath)\n"
		err = errors.Join(os.WriteFile(filepath.Join(dir, ".zshenv"), []byte(text), 0o600),
			os.WriteFile(filepath.Join(dir, ".zshrc"), []byte("autoload -Uz compinit\ncompinit -u -D\n"), 0o600))
	case "fish":
		argv = []string{"fish", "--no-config", "-i"}
	}
	if err != nil {
		return nil, "", err
	}
	argv[0], err = c.lookPath(argv[0])
	return argv, setUp, err
}

// openTerminal makes a pseudo-terminal: our side of it, and the program's.
func openTerminal() (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(ours.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200})
	}
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return ours, theirs, nil
}

func (s *Shell) read() {
	buf := make([]byte, 4096)
	for {
		n, err := s.pty.Read(buf)
		s.mu.Lock()
		s.written.Write(buf[:n])
		s.ended = err != nil
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Type presses keys.
func (s *Shell) Type(keys string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// Sync returns what the shell has written when it is done with all keys before, those that
// complete included: it reads one after the other. Their line is thrown away.
func (s *Shell) Sync() string {
	s.t.Helper()
	s.edits()
	s.Type("\x15sh -c 'echo synchronous-$((6*7))'\n") // Ctrl-U; the sum is not in what is typed
	text := s.Await(`synchronous-42`)
	s.edits()
	return text
}

// edits waits until the shell reads keys, and not the terminal lines for it: before that,
// TAB is no key.
func (s *Shell) edits() {
	s.t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for until := time.Now().Add(startTimeout); time.Now().Before(until); <-tick.C {
		mode, err := unix.IoctlGetTermios(int(s.pty.Fd()), unix.TCGETS)
		if err != nil {
			s.t.Fatal(err)
		}
		if mode.Lflag&unix.ICANON == 0 {
			return
		}
	}
	s.t.Fatal("the shell never reads keys")
}

// Await returns what the shell has written since the last call, up to a match of pattern.
func (s *Shell) Await(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(startTimeout)
	for {
		s.mu.Lock()
		text, more, ended := s.written.String()[s.from:], s.more, s.ended
		s.mu.Unlock()
		if at := re.FindStringIndex(text); at != nil {
			s.from += at[1]
			return text[:at[1]]
		}
		if ended {
			s.t.Fatalf("the shell has ended, no %q in %q", pattern, text)
		}
		select {
		case <-more:
		case <-deadline:
			s.t.Fatalf("no %q in %q", pattern, text)
		}
	}
}
