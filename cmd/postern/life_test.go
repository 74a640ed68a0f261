package main

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"postern/cmd/postern/database"
	"postern/cmd/postern/demo"
)

// dialogue is a client of the site that says what a test wants.
type dialogue struct {
	t    *testing.T
	conn net.Conn
	*textproto.Conn
}

// dialogue connects to the site, over STARTTLS, and logs in.
func (s *site) dialogue(t *testing.T) *dialogue {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.starttls))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	d := &dialogue{t, conn, textproto.NewConn(conn)}
	d.expect(220)
	d.say(250, "EHLO client.test")
	d.say(220, "STARTTLS")
	d.conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	d.Conn = textproto.NewConn(d.conn)
	d.say(250, "EHLO client.test")
	d.say(235, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+s.account.name+"\x00"+s.account.password)))
	return d
}

func (d *dialogue) say(code int, line string) {
	d.t.Helper()
	if err := d.PrintfLine("%s", line); err != nil {
		d.t.Fatal(err)
	}
	d.expect(code)
}

func (d *dialogue) expect(code int) {
	d.t.Helper()
	if _, _, err := d.ReadResponse(code); err != nil {
		d.t.Fatal(err)
	}
}

// certificate is the serial number of the one that the site shows.
func (s *site) certificate(t *testing.T) string {
	t.Helper()
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.implicit), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// edit changes the site's configuration.
func (s *site) edit(t *testing.T, change func(text string) string) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, []byte(change(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := d.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	d.stopping = d.stopping || sig == syscall.SIGTERM || sig == os.Interrupt
}

// TestReload: what can be changed is, sessions keep what they had, and what is wrong
// changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	d := s.serve(t)
	before := s.dialogue(t)
	shown := s.certificate(t)

	s.edit(t, func(text string) string {
		return "drain_time = \"20s\"\n" + strings.Replace(text, "format = \"json\"", "level = \"debug\"\nformat = \"json\"", 1) +
			"[submission]\nrecipients = 1\n[database]\nmax_connections = 9\n"
	})
	if err := os.Remove(filepath.Join(s.dir, "cert.pem")); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.await(t, &d.stderr, `"msg":"the configuration is not reloaded, the node keeps the old one","error":"[^"]*cert.pem`)
	s.oneRecipient(t, false)
	if got := s.certificate(t); got != shown {
		t.Error("a certificate that could not be read has taken the place of the one before")
	}

	if err := demo.WriteCertificate(s.dir); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.await(t, &d.stderr, `"msg":"configuration reloaded","applied":"drain_time, submission.recipients, log.level","needs_restart":"database.max_connections"`)
	s.oneRecipient(t, true)
	before.say(250, "MAIL FROM:<alice@example.com>")
	before.say(250, "RCPT TO:<a@example.net>")
	before.say(250, "RCPT TO:<b@example.net>")
	if got := s.certificate(t); got == shown {
		t.Error("the new certificate is not shown")
	}
	d.await(t, &d.stderr, `"level":"DEBUG","msg":"session_open"`)

	s.edit(t, func(text string) string { return text + "recipients = 7\n" })
	d.signal(t, syscall.SIGHUP)
	d.await(t, &d.stderr, `"msg":"the configuration is not reloaded, the node keeps the old one","error":"[^"]*line \d+: unknown key`)
	s.oneRecipient(t, true)

	s.edit(t, func(text string) string {
		return strings.Replace(strings.TrimSuffix(text, "recipients = 7\n"), "format = \"json\"", "format = \"text\"", 1)
	})
	d.signal(t, syscall.SIGHUP)
	d.await(t, &d.stderr, `msg="configuration reloaded" applied=log.format needs_restart=database.max_connections`)
}

// oneRecipient wants new sessions to take one recipient, or more.
func (s *site) oneRecipient(t *testing.T, only bool) {
	t.Helper()
	c := s.dialogue(t)
	c.say(250, "MAIL FROM:<alice@example.com>")
	c.say(250, "RCPT TO:<a@example.net>")
	code := 250
	if only {
		code = 452
	}
	c.say(code, "RCPT TO:<b@example.net>")
	c.conn.Close()
}

// manager is what a service manager hears of the processes that it runs.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	env  []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &manager{t: t, conn: conn, env: []string{"NOTIFY_SOCKET=" + path}}
}

// hear returns the next message that has the assignment, with what came before it.
func (m *manager) hear(assignment string) (message string, before []string) {
	m.t.Helper()
	buffer := make([]byte, 4<<10)
	for {
		n, err := m.conn.Read(buffer)
		if err != nil {
			m.t.Fatalf("the manager did not hear %s, but %q: %v", assignment, before, err)
		}
		message = string(buffer[:n])
		if strings.HasPrefix(message, assignment) || strings.Contains(message, "\n"+assignment) {
			return message, before
		}
		before = append(before, message)
	}
}

// TestServiceManager: it hears of each state in its time.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	s, m := installSite(t), newManager(t)
	s.edit(t, func(text string) string { return "drain_time = \"7s\"\n" + text })
	d := s.startWith(t, nil, append(m.env, "WATCHDOG_USEC=100000"), "serve")
	ready, before := m.hear("READY=1")
	if !strings.Contains(ready, "\nSTATUS=listening on 127.0.0.1:") {
		t.Errorf("READY came with %q", ready)
	}
	if !strings.Contains(strings.Join(before, "\n"), "STATUS=waiting for the database") {
		t.Errorf("before READY came %q", before)
	}
	m.hear("WATCHDOG=1")
	m.hear("WATCHDOG=1")
	var asked int64
	_, _ = fmt.Sscanf(sd.SdNotifyMonotonicUsec(), "MONOTONIC_USEC=%d", &asked)
	d.signal(t, syscall.SIGHUP)
	reloading, _ := m.hear("RELOADING=1")
	var usec, now int64
	_, _ = fmt.Sscanf(reloading, "RELOADING=1\nMONOTONIC_USEC=%d\n", &usec)
	_, _ = fmt.Sscanf(sd.SdNotifyMonotonicUsec(), "MONOTONIC_USEC=%d", &now)
	if usec <= asked || usec > now {
		t.Errorf("RELOADING came with %q, want a time from %d to %d", reloading, asked, now)
	}
	m.hear("READY=1")
	d.signal(t, syscall.SIGTERM)
	if stopping, _ := m.hear("STOPPING=1"); !strings.Contains(stopping, "\nEXTEND_TIMEOUT_USEC=17000000\n") {
		t.Errorf("STOPPING came with %q", stopping)
	}
	m.hear("STATUS=draining: queue")
	select {
	case <-d.ended:
	case <-time.After(patience):
		t.Error("it does not end")
	}
}

// TestStopBeforeReady: a process that is asked to stop while it starts ends well.
func TestStopBeforeReady(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	// A database that takes connections and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := &site{dir: t.TempDir()}
	s.config = filepath.Join(s.dir, "postern.toml")
	text := fmt.Sprintf("[database]\nurl = \"postgres://x@%s/x\"\n[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"starttls\"\n[tls]\nself_signed = true\n", silent.Addr())
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d := s.startWith(t, nil, m.env, "serve")
	m.hear("STATUS=waiting for the database")
	d.signal(t, syscall.SIGHUP) // no reason to die
	d.signal(t, syscall.SIGTERM)
	<-d.ended // its status is looked at at the end
}

// TestSecondSignal: the first waits for a message that is under way, the second cuts.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	s, m := installSite(t), newManager(t)
	s.edit(t, func(text string) string { return "drain_time = \"10m\"\n" + text })
	d := s.serveWith(t, nil, m.env)
	c := s.dialogue(t)
	c.say(250, "MAIL FROM:<alice@example.com>")
	d.signal(t, syscall.SIGTERM)
	m.hear("STATUS=draining: submission")
	c.say(250, "RCPT TO:<a@example.net>") // it waits
	d.signal(t, syscall.SIGINT)
	c.expect(421)
	select {
	case <-d.ended:
	case <-time.After(patience):
		t.Fatal("it waits for the message still")
	}
	d.await(t, &d.stderr, "not all work ended in time")
	if n := pgtestCount(t, s, `select count(*) from node where reaped_at is null`); n != 0 {
		t.Errorf("%d epochs are alive: the lease was not given up", n)
	}
}

// TestM6LastCounts: a stop writes how many lines were left out.
func TestM6LastCounts(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	d := s.serve(t)
	const tries = 5
	for range tries {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.starttls))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n")
		_, _ = io.Copy(io.Discard, conn) // until it is closed
		_ = conn.Close()
	}
	d.signal(t, syscall.SIGTERM)
	d.await(t, &d.stderr, `"msg":"repeated","what":"protocol violation: HTTP request","network":"127.0.0.1/32","more":\d+}`)
	d.await(t, &d.stderr, "postern has stopped")
}

// TestStopInReload: a configuration that cannot be read to its end keeps the node from
// no stop. A pipe stands for a file system that hangs.
func TestStopInReload(t *testing.T) {
	t.Parallel()
	s, m := installSite(t), newManager(t)
	d := s.serveWith(t, nil, m.env)
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(s.config, 0o600); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	m.hear("STATUS=reloading the configuration")
	d.signal(t, syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(patience):
		t.Fatal("it reloads still")
	}
	d.await(t, &d.stderr, "the configuration is not reloaded, the node keeps the old one")
}

// pgtestCount asks the site's database.
func pgtestCount(t *testing.T, s *site, sql string) (n int) {
	t.Helper()
	url := strings.TrimPrefix(s.env[0], "POSTERN_DATABASE_URL=")
	conn, err := new(database.Connector).Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// socketToHand is a listening socket as a service manager has it, until the test ends.
func socketToHand(t *testing.T) (f *os.File, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	if f, err = ln.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, ln.Addr().String()
}

// TestHandedOver restarts a node whose sockets somebody else holds, as systemd does:
// who connects meanwhile is served, by the node before or by the one after.
func TestHandedOver(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	s.edit(t, func(text string) string {
		text = strings.Replace(text, "127.0.0.1:0", "systemd:submission", 1)
		return strings.Replace(text, "127.0.0.1:0", "systemd:submissions", 1)
	})
	var files []*os.File
	var addresses []string
	for range 2 {
		f, address := socketToHand(t)
		files, addresses = append(files, f), append(addresses, address)
	}
	env := []string{"LISTEN_FDNAMES=submission:submissions"}
	d := s.serveWith(t, files, env)
	for i, port := range []int{s.starttls, s.implicit} {
		if got := fmt.Sprintf("127.0.0.1:%d", port); got != addresses[i] {
			t.Fatalf("it listens on %s, not on what it was given, %s", got, addresses[i])
		}
	}

	stop := make(chan struct{})
	var clients sync.WaitGroup
	served := make(chan error, 1000)
	for i := range 4 {
		implicit := i%2 == 1
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case served <- greeted(addresses[i%2], implicit):
				}
			}
		})
	}
	good := 0
	count := func(more int) {
		for range more {
			if err := <-served; err != nil {
				t.Error(err)
			}
			good++
		}
	}
	for range 2 {
		count(20)
		d.signal(t, syscall.SIGTERM)
		<-d.ended
		d = s.serveWith(t, files, env)
	}
	count(20)
	close(stop)
	clients.Wait()
	close(served)
	for err := range served {
		if err != nil {
			t.Error(err)
		}
		good++
	}
	t.Logf("%d connections, none refused", good)
}

// greeted connects and wants to be served, or asked to come back by the node that ends.
func greeted(address string, implicit bool) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if implicit {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	text := textproto.NewConn(conn)
	code, message, err := text.ReadResponse(0)
	if err != nil {
		return fmt.Errorf("a connection was taken and dropped: %w", err)
	}
	if code != 220 && code != 421 {
		return fmt.Errorf("greeted with %d %s", code, message)
	}
	return nil
}

// TestLifeCyclePage: the configuration that docs/operate.md shows is one.
func TestLifeCyclePage(t *testing.T) {
	t.Parallel()
	blocks := codeBlocks(t, "../../docs/operate.md", "toml")
	if len(blocks) == 0 {
		t.Fatal("the page shows no configuration")
	}
	for _, block := range blocks {
		if err := takesConfig(t, block); err != nil {
			t.Errorf("%v:\n%s", err, block)
		}
	}
}
