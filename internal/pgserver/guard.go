package pgserver

import (
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"
)

// guard is a shell that outlives this process by a moment. It reads a pipe
// whose other end only this process has, so it notices when this process is
// gone, however it ended; then it stops the server and removes a temporary
// folder.
//
// The kernel's own parent-death signal would not do: it is bound to the thread
// that started the child, which the Go runtime may end at any time, and it
// cannot remove a folder.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// script reads the server's process id, once for each start,
// "none" when that process has ended, the path of a folder to remove, and at
// last "done". $1 is the signal that stops the server, $2 another folder to
// remove or nothing. The server gets 30 seconds before it is cut off.
const script = `
trap '' HUP INT TERM
pid= away=
while read -r word; do
	case $word in
	done) exit 0 ;;
	none) pid= ;;
	/*) away=$word ;;
	*) pid=$word ;;
	esac
done
if [ -n "$pid" ]; then
	kill -s CONT "$pid" 2>/dev/null
	kill -s "$1" "$pid" 2>/dev/null
	tries=600
	while kill -0 "$pid" 2>/dev/null && [ $tries -gt 0 ]; do
		sleep 0.05
		tries=$((tries - 1))
	done
	kill -s QUIT "$pid" 2>/dev/null
fi
for dir in "$2" "$away"; do
	[ -z "$dir" ] || rm -rf -- "$dir"
done
`

func startGuard(config Config) (*guard, error) {
	stop, remove := "INT", ""
	if config.Unsafe {
		stop = "QUIT" // nothing to write out
	}
	if config.Temporary {
		remove = config.Dir
	}
	cmd := exec.Command("/bin/sh", "-c", script, "postern-pg-guard", stop, remove)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of a terminal's signals
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return &guard{cmd: cmd, pipe: pipe}, nil
}

// watch names the process to stop.
func (g *guard) watch(pid int) error { return g.tell(strconv.Itoa(pid)) }

// remove names a socket's folder to remove, if it is outside the server's own.
func (g *guard) remove(s socket) error {
	if !s.away {
		return nil
	}
	return g.tell(s.dir)
}

// forget says that the process has ended. A guard that cannot be told is gone.
func (g *guard) forget() { _ = g.tell("none") }

func (g *guard) tell(word string) error {
	if _, err := io.WriteString(g.pipe, word+"\n"); err != nil {
		return fmt.Errorf("tell guard: %w", err)
	}
	return nil
}

// dismiss ends the guard without its doing anything.
func (g *guard) dismiss() {
	_ = g.tell("done")
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}
