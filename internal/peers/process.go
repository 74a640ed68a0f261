package peers

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 3 * time.Minute
	stopTimeout  = 60 * time.Second
	pollInterval = 10 * time.Millisecond
)

// supervise runs the command that follows it and ends it when the standard input
// ends: so no server outlives us, not even when we are killed. A death signal
// would not do, since the kernel forgets it when a server changes its user.
const supervise = `exec 3<&0
"$@" 3<&- </dev/null &
server=$!
{ read -r _ <&3; kill -TERM "$server"; } &
watch=$!
exec 3<&-
wait "$server"
status=$?
kill "$watch" 2>/dev/null
exit "$status"`

// A process is a server that runs in the foreground under our supervision.
type process struct {
	cmd     *exec.Cmd
	alive   io.Closer     // closing it stops the server
	pidFile string        // of a server that leads a session of its own
	ended   chan struct{} // closed when it has ended
	err     error         // how it ended; read after ended
}

// startProcess runs argv with its output appended to a file. As root it runs as
// the user uid when that is not 0.
func startProcess(argv, env []string, output string, uid int) (*process, error) {
	log, err := os.OpenFile(output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command("/bin/sh", append([]string{"-c", supervise, "supervise"}, argv...)...)
	cmd.Dir = "/"
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if uid != 0 && os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &process{cmd: cmd, alive: stdin, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// stop ends the server and waits for it; what does not obey is killed. It may be
// called again.
func (p *process) stop() {
	leader := p.leader()
	_ = p.alive.Close() // tells the supervisor
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // its process group
	}
	if leader != 0 { // normally nothing is left but children that have their signal already
		_ = syscall.Kill(-leader, syscall.SIGKILL)
	}
	<-p.ended
}

// leader is the session that the server made for itself, or 0.
func (p *process) leader() int {
	pid, err := strconv.Atoi(strings.TrimSpace(readAll(p.pidFile)))
	if err != nil {
		return 0
	}
	return pid
}

// ready waits until the server at the address greets with 220.
func (p *process) ready(ctx context.Context, address string, implicit bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		err := greeted(ctx, address, implicit)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended immediately: %v", p.err)
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-poll.C:
		}
	}
}

// greeted connects and reads the greeting; with implicit TLS the connection alone
// must do.
func greeted(ctx context.Context, address string, implicit bool) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if implicit {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "220 ") {
		return fmt.Errorf("greeted with %q", line)
	}
	if _, err := io.WriteString(conn, "QUIT\r\n"); err != nil {
		return err
	}
	return nil
}

// serverDir makes a folder that other users can enter, unlike a test's own; in the
// temporary folder when parent is empty.
func serverDir(parent, program string) (string, error) {
	dir, err := os.MkdirTemp(parent, "peers-"+program+"-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	return dir, nil
}

// readAll joins the files that can be read.
func readAll(files ...string) string {
	var text strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		text.Write(b)
	}
	return text.String()
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Users that only our servers see, by libnss-wrapper: nothing of the machine
// changes. The numbers are below 65,536, which user namespaces map as a rule.
const (
	eximUID     = 64200
	postfixUID  = 64201
	postdropGID = 64202
	nobodyUID   = 64203
)

// lendUsers writes users into dir and returns the environment that lends them to a
// program by the library. The numbers are those of Exim's user and group.
func lendUsers(dir, library string, uid, gid int) ([]string, error) {
	passwd := "root:x:0:0::/:/bin/sh\n" +
		fmt.Sprintf("Debian-exim:x:%d:%d::/:/bin/false\n", uid, gid) +
		fmt.Sprintf("postfix:x:%d:%d::/:/bin/false\n", postfixUID, postfixUID) +
		fmt.Sprintf("nobody:x:%d:%d::/:/bin/false\n", nobodyUID, nobodyUID)
	group := "root:x:0:\nmail:x:8:\n" +
		fmt.Sprintf("Debian-exim:x:%d:\n", gid) +
		fmt.Sprintf("postfix:x:%d:\n", postfixUID) +
		fmt.Sprintf("postdrop:x:%d:\n", postdropGID) +
		fmt.Sprintf("nogroup:x:%d:\n", nobodyUID)
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("lend users: %w", err)
		}
	}
	return []string{
		"LD_PRELOAD=" + library,
		"NSS_WRAPPER_PASSWD=" + filepath.Join(dir, "passwd"),
		"NSS_WRAPPER_GROUP=" + filepath.Join(dir, "group"),
	}, nil
}
