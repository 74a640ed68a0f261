package rig

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Node is one serve process, or the place for one between its end and its start.
type Node struct {
	Name string // the node's name; Name + ".test" is its host name

	t      testing.TB
	binary string
	file   string // its configuration
	args   []string
	env    []string
	log    *os.File

	mu  sync.Mutex
	run *run // the present process, nil when there is none
}

// run is one life of a node.
type run struct {
	cmd   *exec.Cmd
	guard io.WriteCloser
	ready chan struct{} // closed when it listens; starttls and implicit are set
	ended chan struct{} // closed when the process has ended; err is set
	err   error

	starttls, implicit, admin string
}

// NodeConfig says how a node differs from the others.
type NodeConfig struct {
	Name     string
	Only     string // "submission" or "delivery"
	Database string // where it finds the database; "": directly
	Drain    string // its drain_time; "": long enough for what is under way on a busy machine
	Extra    string // more of the configuration, whole tables
}

const nodeConfig = `hostname = "%[1]s.test"
node = "%[1]s"
drain_time = "%[6]s"
[database]
url = "%[2]s"
max_connections = 8
[[listener]]
address = "127.0.0.1:0"
tls = "starttls"
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
[tls]
certificate = "%[3]s"
key = "%[4]s"
[log]
format = "json"
[admin]
address = "127.0.0.1:0"
%[5]s`

// Node writes a node's configuration and starts it. It is ended with the test,
// which fails when the node has panicked or raced.
func (r *Rig) Node(cfg NodeConfig) *Node {
	r.t.Helper()
	file := filepath.Join(r.dir, cfg.Name+".toml")
	text := fmt.Sprintf(nodeConfig, cfg.Name, cmp.Or(cfg.Database, r.url), r.cert, r.key, cfg.Extra, cmp.Or(cfg.Drain, "2m"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(r.dir, cfg.Name+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	n := &Node{Name: cfg.Name, t: r.t, binary: r.binary, log: log, file: file, args: []string{"serve", "--config", file},
		env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "TMPDIR=" + r.dir, "GORACE=" + os.Getenv("GORACE"), r.sealing()}}
	if cfg.Only != "" {
		n.args = append(n.args, "--only", cfg.Only)
	}
	r.t.Cleanup(n.close)
	n.Start()
	n.Ready()
	return n
}

// guard kills the node when this process is gone, however it ended, also when the
// node is stopped and would notice nothing itself.
const guard = `read -r word; [ "$word" = done ] || kill -KILL "$1"`

// Start starts the node's process and does not wait for it; see Ready.
func (n *Node) Start() {
	n.t.Helper()
	cmd := exec.Command(n.binary, n.args...)
	cmd.Env = n.env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	life := &run{cmd: cmd, ready: make(chan struct{}), ended: make(chan struct{})}
	watch := exec.Command("/bin/sh", "-c", guard, "guard", fmt.Sprint(cmd.Process.Pid))
	watch.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if life.guard, err = watch.StdinPipe(); err == nil {
		err = watch.Start()
	}
	n.mu.Lock()
	n.run = life
	n.mu.Unlock()
	go n.follow(life, stderr, watch)
	if err != nil {
		n.t.Fatal(err)
	}
}

// follow copies the node's log and learns from it when it is ready, until it ends.
func (n *Node) follow(life *run, stderr io.Reader, watch *exec.Cmd) {
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadBytes('\n')
		_, _ = n.log.Write(line)
		if bytes.Contains(line, []byte(`"postern is ready"`)) {
			life.learn(line)
		}
		if err != nil {
			break
		}
	}
	err := life.cmd.Wait()
	_, _ = io.WriteString(life.guard, "done\n")
	_ = life.guard.Close()
	_ = watch.Wait()
	life.err = err
	close(life.ended)
}

// learn reads the addresses that the node listens on from the line that says so.
func (l *run) learn(line []byte) {
	var ready struct {
		Listeners []string `json:"listeners"`
		Admin     string   `json:"admin"`
	}
	if json.Unmarshal(line, &ready) != nil {
		return
	}
	l.admin = ready.Admin
	for _, listener := range ready.Listeners {
		switch addr, kind, _ := strings.Cut(listener, " "); kind {
		case "starttls":
			l.starttls = addr
		case "implicit": // the last, see Proxied
			l.implicit = addr
		}
	}
	close(l.ready)
}

func (n *Node) life() *run {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// Ready returns when the node is listening.
func (n *Node) Ready() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	life := n.life()
	select {
	case <-life.ready:
	case <-life.ended:
		n.t.Fatalf("node %s ended instead of starting: %v\n%s", n.Name, life.err, n.tail())
	case <-ctx.Done():
		n.t.Fatalf("node %s is not ready\n%s", n.Name, n.tail())
	}
}

// errNotUp says that a node has no process that listens.
var errNotUp = errors.New("the node is not up")

// Addr is where the node listens now.
func (n *Node) Addr(implicit bool) (string, error) {
	life := n.life()
	select {
	case <-life.ended:
		return "", errNotUp
	default:
	}
	select {
	case <-life.ready:
	default:
		return "", errNotUp
	}
	if implicit {
		return life.implicit, nil
	}
	return life.starttls, nil
}

// Admin is the address of the node's health and metrics now, which must be up.
func (n *Node) Admin() string {
	n.t.Helper()
	n.Ready()
	return n.life().admin
}

// Kill ends the node by SIGKILL and returns when it has ended.
func (n *Node) Kill() {
	n.t.Helper()
	life := n.life()
	if err := life.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		n.t.Fatalf("kill node %s: %v\n%s", n.Name, err, n.tail())
	}
	<-life.ended
}

// Pause stops the node by SIGSTOP and returns when each of its threads stands still:
// on a busy machine some run on for a while after the signal was sent.
func (n *Node) Pause() {
	n.t.Helper()
	n.signal(syscall.SIGSTOP)
	pid := n.life().cmd.Process.Pid
	for until := time.Now().Add(Patience); !stopped(pid); {
		if time.Now().After(until) {
			n.t.Fatalf("node %s does not stop", n.Name)
		}
		time.Sleep(time.Millisecond) // the kernel tells nobody
	}
}

// stopped reports that every thread of a process is in state T.
func stopped(pid int) bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(files) == 0 {
		return false
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		// The state follows the name, which is in parentheses and may hold anything.
		_, rest, ok := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), ") ")
		if !ok || !strings.HasPrefix(rest, "T") {
			return false
		}
	}
	return true
}

// Continue lets a paused node go on.
func (n *Node) Continue() { n.signal(syscall.SIGCONT) }

func (n *Node) signal(sig syscall.Signal) {
	n.t.Helper()
	if err := n.life().cmd.Process.Signal(sig); err != nil {
		n.t.Fatalf("signal %v to node %s: %v\n%s", sig, n.Name, err, n.tail())
	}
}

// Terminate asks the node to stop and returns when it has, which must be with
// status 0.
func (n *Node) Terminate() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	life := n.life()
	select {
	case <-life.ended:
	case <-ctx.Done():
		n.t.Fatalf("node %s does not stop\n%s", n.Name, n.tail())
	}
	if life.err != nil {
		n.t.Errorf("node %s ended with %v\n%s", n.Name, life.err, n.tail())
	}
}

// Ask asks the node to stop by SIGTERM and does not wait for it.
func (n *Node) Ask() { n.t.Helper(); n.signal(syscall.SIGTERM) }

// Become makes the next life of the node one of another version of the relay.
func (n *Node) Become(r *Rig) { n.binary = r.binary }

// ConfigFile is the node's configuration, for commands.
func (n *Node) ConfigFile() string { return n.file }

// Said counts the lines of the node's log that have a text in them.
func (n *Node) Said(text string) int {
	n.t.Helper()
	log, err := os.ReadFile(n.log.Name())
	if err != nil {
		n.t.Fatal(err)
	}
	return bytes.Count(log, []byte(text))
}

// LogSize is how many octets the node has logged.
func (n *Node) LogSize() int64 {
	n.t.Helper()
	info, err := n.log.Stat()
	if err != nil {
		n.t.Fatal(err)
	}
	return info.Size()
}

// Memory is what the node's process holds now, in octets, and the most that it has held
// since the last call (VmRSS and VmHWM of proc(5)).
func (n *Node) Memory() (now, peak int64) {
	n.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", n.life().cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err == nil {
		err = os.WriteFile(proc+"clear_refs", []byte("5"), 0)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		kib := int64(0)
		switch name, rest, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			_, err = fmt.Sscan(rest, &kib)
			now = kib << 10
		case "VmHWM":
			_, err = fmt.Sscan(rest, &kib)
			peak = kib << 10
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
	return now, peak
}

// close ends the node with the test and judges its log.
func (n *Node) close() {
	life := n.life()
	select {
	case <-life.ended:
		n.t.Logf("node %s had ended before: %v", n.Name, life.err)
	default:
		if n.t.Failed() { // what it was doing tells more than its log
			_ = life.cmd.Process.Signal(syscall.SIGQUIT)
			select {
			case <-life.ended:
			case <-time.After(10 * time.Second):
			}
		}
	}
	_ = life.cmd.Process.Signal(syscall.SIGKILL)
	<-life.ended
	_ = n.log.Close()
	text, err := os.ReadFile(n.log.Name())
	if err != nil {
		n.t.Error(err)
		return
	}
	for _, alarm := range []string{"WARNING: DATA RACE", "panic: ", `"panic":`} {
		if at := bytes.Index(text, []byte(alarm)); at >= 0 {
			n.t.Errorf("node %s: %s", n.Name, text[at:min(len(text), at+4000)])
			return
		}
	}
	if n.t.Failed() {
		log, stacks, _ := bytes.Cut(text, []byte("SIGQUIT: quit"))
		n.t.Logf("the last words of node %s:\n%s\n%s", n.Name, log[max(0, len(log)-6000):], stacks[:min(len(stacks), 60_000)])
	}
}

// tail is the end of the node's log.
func (n *Node) tail() []byte {
	text, err := os.ReadFile(n.log.Name())
	if err != nil {
		return []byte(err.Error())
	}
	return text[max(0, len(text)-6000):]
}
