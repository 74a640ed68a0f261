package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/cmd/postern/demo"
	"postern/internal/peers"
	"postern/internal/pgtest"
	"postern/relay/queue/desk"
)

// patience bounds each wait for a program, also on a machine with other things to do.
const patience = 3 * time.Minute

// firstFile is the descriptor of the first file that a program is given. The last one
// is the lifeline, by which it notices that the test's process is gone, even by SIGKILL.
const firstFile = 3

// A site is one installation: a folder with a configuration, and the environment
// that commands run in.
type site struct {
	dir      string // of postern.toml, cert.pem and what the test puts there
	config   string
	env      []string
	starttls int // ports, once it serves
	implicit int
	account  login
}

// login is a user of the relay.
type login struct{ name, password string }

// installSite makes a relay as an admin does, with a migrated database of its own:
// configuration, certificate and one user. Upstreams, routes and serve are the
// test's part.
func installSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{
		dir: dir, config: filepath.Join(dir, "postern.toml"), account: login{"alice@example.com", "a good password"},
		env: []string{"POSTERN_DATABASE_URL=" + pgtest.New(t).URL, "POSTERN_SECRET_KEY_FILE=" + filepath.Join(dir, "secret.key")},
	}
	if err := demo.WriteCertificate(dir); err != nil {
		t.Fatal(err)
	}
	const text = `hostname = "relay.test"
[[listener]]
address = "127.0.0.1:0"
tls = "starttls"
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
[tls]
certificate = "cert.pem"
key = "key.pem"
[log]
format = "json"
[admin]
address = "127.0.0.1:0"
` + equalMail
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must(t, s.account.password, "user", "add", s.account.name, "--password-stdin", "--sender", "*@example.com")
	return s
}

// equalMail lets tests send one message several times.
const equalMail = `[queue]
duplicates = "0"
`

// command is the program as a process in the site's folder. The end of ctx
// interrupts it.
func (s *site) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := programAs(ctx, s.dir, s.env, append([]string{"--config", s.config}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	return cmd
}

// postern runs one command to its end.
func (s *site) postern(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := s.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must is postern for commands that have to succeed.
func (s *site) must(t *testing.T, stdin string, args ...string) (stdout string) {
	t.Helper()
	out, errs, err := s.postern(t, stdin, args...)
	if err != nil {
		t.Fatalf("postern %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// A daemon is a program that stays up until its test ends.
type daemon struct {
	stdout, stderr watched
	process        *os.Process
	ended          chan struct{} // closed when it has ended
	err            error         // how; read after ended
	killed         bool          // by the test, so that its end is no failure
	stopping       bool          // a signal asked for its end; a second one would kill it
}

// kill ends it as a crash does.
func (d *daemon) kill() {
	d.killed = true
	_ = d.process.Kill() // it may have ended
	<-d.ended
}

// start begins a daemon. When the test ends it is interrupted, and must then end
// with status 0.
func (s *site) start(t *testing.T, args ...string) *daemon {
	t.Helper()
	return s.startWith(t, nil, nil, args...)
}

// startWith is start with sockets that are handed over, and more of an environment.
func (s *site) startWith(t *testing.T, sockets []*os.File, env []string, args ...string) *daemon {
	t.Helper()
	ours, theirs, err := lifelinePipe()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{ended: make(chan struct{})}
	cmd := s.command(context.Background(), args...)
	cmd.Env = append(append(cmd.Env, env...), "POSTERN_TEST_LIFELINE="+strconv.Itoa(firstFile+len(sockets)))
	cmd.ExtraFiles = append(slices.Clone(sockets), theirs)
	if len(sockets) > 0 { // sockets are for the process that LISTEN_PID names
		shell := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)...)
		cmd.Path, cmd.Args = shell.Path, shell.Args
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(sockets)))
	}
	cmd.Stdout, cmd.Stderr = &d.stdout, &d.stderr
	err = cmd.Start()
	_ = theirs.Close() // the process has its own
	if err != nil {
		t.Fatal(err)
	}
	d.process = cmd.Process
	go func() {
		d.err = cmd.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() {
		defer ours.Close()
		if !d.stopping {
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		}
		select {
		case <-d.ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-d.ended
		}
		if d.err != nil && !d.killed {
			t.Errorf("postern %s: %v", args[0], d.err)
		}
		if t.Failed() {
			t.Logf("postern %s said:\n%s%s", args[0], &d.stdout, &d.stderr)
		}
	})
	return d
}

func lifelinePipe() (ours, theirs *os.File, err error) {
	theirs, ours, err = os.Pipe()
	return ours, theirs, err
}

// endWithParent ends this process when the one that started it has gone. It is
// for the program's side of start.
func endWithParent() {
	lifeline, err := strconv.Atoi(os.Getenv("POSTERN_TEST_LIFELINE"))
	if err != nil {
		return
	}
	syscall.CloseOnExec(lifeline)
	pipe := os.NewFile(uintptr(lifeline), "lifeline")
	go func() {
		_, _ = pipe.Read(make([]byte, 1)) // nothing is ever written
		os.Exit(exitFailed)
	}()
}

// await waits until the pattern matches what the daemon wrote to one of its
// outputs, and returns the match with its groups.
func (d *daemon) await(t *testing.T, output *watched, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		text, more := output.look()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-more:
		case <-d.ended:
			t.Fatalf("the program ended (%v) before it said %q:\n%s%s", d.err, pattern, &d.stdout, &d.stderr)
		case <-deadline:
			t.Fatalf("the program did not say %q within %v:\n%s%s", pattern, patience, &d.stdout, &d.stderr)
		}
	}
}

// watched collects what a process writes and tells who waits for more.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed by the next Write; nil when nobody waits
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more != nil {
		close(w.more)
		w.more = nil
	}
	return w.text.Write(b)
}

func (w *watched) look() (text string, more <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more == nil {
		w.more = make(chan struct{})
	}
	return w.text.String(), w.more
}

func (w *watched) String() string {
	text, _ := w.look()
	return text
}

// serve starts the relay and waits until it listens.
func (s *site) serve(t *testing.T) *daemon {
	t.Helper()
	return s.serveWith(t, nil, nil)
}

// serveWith is serve with sockets that are handed over, and more of an environment.
func (s *site) serveWith(t *testing.T, sockets []*os.File, env []string) *daemon {
	t.Helper()
	d := s.startWith(t, sockets, env, "serve")
	line := d.await(t, &d.stderr, `(?m)^.*"msg":"postern is ready".*$`)[0]
	var ready struct{ Listeners []string }
	if err := json.Unmarshal([]byte(line), &ready); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if _, err := fmt.Sscanf(strings.Join(ready.Listeners, " "), "127.0.0.1:%d starttls 127.0.0.1:%d implicit", &s.starttls, &s.implicit); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return d
}

// settings are what the site's user types into a mail client.
func (s *site) settings(mode peers.TLS, message string, to ...string) peers.Settings {
	port := s.starttls
	if mode == peers.Implicit {
		port = s.implicit
	}
	return peers.Settings{
		Host: "localhost", Port: port, TLS: mode, CAFile: filepath.Join(s.dir, "cert.pem"),
		User: s.account.name, Password: s.account.password, From: s.account.name, To: to, Message: message,
	}
}

var queuedAs = regexp.MustCompile(`250 2\.0\.0 Ok: queued as ([0-9a-f-]{36})`)

// send submits a mail with a foreign client and returns the queue id that the
// relay gave it.
func send(t *testing.T, client string, settings peers.Settings) (id string) {
	t.Helper()
	out, err := peers.Send(t, client, settings)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := queuedAs.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("%s does not show the reply with the queue id:\n%s", client, out)
	}
	return m[1]
}

// trace is what `postern trace ID --json` says.
func (s *site) trace(t *testing.T, id string) desk.History {
	t.Helper()
	var h desk.History
	if err := json.Unmarshal([]byte(s.must(t, "", "trace", id, "--json")), &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// traceUntil asks for the trace until it is as wanted, or will never be.
func (s *site) traceUntil(t *testing.T, id, what string, wanted func(*desk.History) bool) desk.History {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		h := s.trace(t, id)
		if wanted(&h) {
			return h
		}
		if h.Done() {
			t.Fatalf("message %s ended without being %s: %+v", id, what, h)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("message %s is not %s after %v: %+v", id, what, patience, h)
		}
	}
}

// finished is the trace once nothing is left to be done.
func (s *site) finished(t *testing.T, id string) desk.History {
	t.Helper()
	return s.traceUntil(t, id, "finished", (*desk.History).Done)
}

// results are the attempts for one recipient, as in "deferred 451 4.2.0 Greylisted".
func results(h desk.History, recipient string) []string {
	var list []string
	for _, a := range h.Events {
		if a.Recipient == recipient {
			list = append(list, strings.TrimSpace(a.Result+" "+a.Reply))
		}
	}
	return list
}

// waiting is what `postern queue list --json` says.
func (s *site) waiting(t *testing.T) []desk.Entry {
	t.Helper()
	var list []desk.Entry
	if err := json.Unmarshal([]byte(s.must(t, "", "queue", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// mailFile puts a mail into a file for a client.
func mailFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mail.eml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
