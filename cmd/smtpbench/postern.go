package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/serve"
)

const (
	startTime = 3 * time.Minute
	stopTime  = 45 * time.Second // postern gives itself 30 s
)

// relayConfig says which Postern to measure, and how.
type relayConfig struct {
	program  string            // path of the binary
	profile  string            // file for a CPU profile, or ""
	settings map[string]string // of PostgreSQL, beyond those of pgserver
	secret   bool              // log in with a generated secret
	limits   string            // messages over time, or ""
	dkim     string            // the keys that sign, or ""
	copies   string            // for how long they are recognised, or "" for the default
	events   bool              // a program reads the feed, and a webhook waits for failures
}

// postern starts a private PostgreSQL server with full durability and the relay on
// it.
func (l *lab) postern(ctx context.Context, config relayConfig) (*contender, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	database, err := pgserver.Start(ctx, pgserver.Config{Dir: filepath.Join(l.dir, "postgres"), Settings: config.settings})
	if err != nil {
		return nil, err
	}
	stopDatabase := func() { _ = database.Stop() } // its data go with the folder
	p := &posternRelay{program: config.program, dir: l.dir, url: database.URL()}
	to, err := p.launch(ctx, l, config)
	if err != nil {
		p.stop()
		stopDatabase()
		return nil, fmt.Errorf("start postern: %w\n%s", err, p.lastWords())
	}
	c := &contender{
		name: "postern", target: to, pid: p.cmd.Process.Pid,
		meters: []meter{treeMeter("server", p.cmd.Process.Pid), treeMeter("postgres", database.PID())},
		close:  func() { p.stop(); stopDatabase() },
	}
	if p.reader != nil {
		c.meters = append(c.meters, treeMeter("reader", p.reader.Process.Pid))
	}
	return c, nil
}

// posternRelay is the relay's process.
type posternRelay struct {
	program string
	dir     string
	url     string // of the database
	cmd     *exec.Cmd
	ended   chan struct{}
	reader  *exec.Cmd // of the feed, or nil
}

func (p *posternRelay) config() string { return filepath.Join(p.dir, "postern.toml") }
func (p *posternRelay) log() string    { return filepath.Join(p.dir, "postern.log") }

// launch sets the relay up and returns when it accepts connections.
func (p *posternRelay) launch(ctx context.Context, l *lab, config relayConfig) (*target, error) {
	port, err := p.configure(ctx, l, config.copies)
	if err != nil {
		return nil, err
	}
	password, err := p.account(ctx, config)
	if err != nil {
		return nil, err
	}
	if config.dkim != "" {
		if err := p.sign(ctx, config.dkim); err != nil {
			return nil, err
		}
	}
	if err := p.start(config.profile); err != nil {
		return nil, err
	}
	to, err := l.target(port)
	if err != nil {
		return nil, err
	}
	to.password = password
	if config.events {
		if err := p.listen(ctx); err != nil {
			return nil, err
		}
	}
	return to, awaitGreeting(ctx, to.address, p.ended)
}

// configure makes the schema, the account, the route and the configuration, and
// returns the port that the relay will listen on.
func (p *posternRelay) configure(ctx context.Context, l *lab, copies string) (int, error) {
	port, err := serve.FreePort()
	if err != nil {
		return 0, err
	}
	text := fmt.Sprintf(`hostname = "relay.test"
secret_key_file = "secret.key"
[[listener]]
address = "127.0.0.1:%d"
tls = "starttls"
[tls]
certificate = %q
key = %q
[submission]
message_size = "200MiB"
spool_dir = %q
[admin]
address = "127.0.0.1:0"
`, port, l.certFile, l.keyFile, p.dir)
	if copies != "" {
		text += fmt.Sprintf("[queue]\nduplicates = %q\n", copies)
	}
	if err := os.WriteFile(p.config(), []byte(text), 0o600); err != nil {
		return 0, err
	}
	for _, args := range [][]string{
		{"migrate"},
		{"user", "add", benchUser, "--password-stdin"},
		{"upstream", "add", "sink", "--host", l.exchange.sink.Addr().String(), "--tls", "none"},
		{"route", "add", "--via", "sink"},
	} {
		if err := p.run(ctx, args...); err != nil {
			return 0, err
		}
	}
	return port, nil
}

// account sets the account up as config has it, and returns what it logs in with.
func (p *posternRelay) account(ctx context.Context, config relayConfig) (password string, err error) {
	if config.limits != "" {
		if err := p.run(ctx, "limit", "set", benchUser, "--messages", config.limits); err != nil {
			return "", err
		}
	}
	if !config.secret {
		return benchPassword, nil
	}
	out, err := p.command(ctx, "credential", "add", benchUser, "--generate", "--json").Output()
	if err != nil {
		return "", fmt.Errorf("postern credential add: %w", err)
	}
	var added struct{ Secret string }
	if err := json.Unmarshal(out, &added); err != nil {
		return "", fmt.Errorf("postern credential add: %w", err)
	}
	return added.Secret, nil
}

// activate has the keys of a domain sign, as if its name servers had answered their records.
const activate = `update dkim_key set state = 'active', looks = 2 where domain = 'example.com';
update dkim_domain set next_look_at = now() + interval '1 year'`

// sign adds keys for the domain of benchUser, of which those of mode sign.
func (p *posternRelay) sign(ctx context.Context, mode string) error {
	if err := p.run(ctx, "upstream", "set", "sink", "--dkim", mode); err != nil {
		return err
	}
	if err := p.run(ctx, "dkim", "add", "example.com"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, activate, pgx.QueryExecModeSimpleProtocol)
	return err
}

// listen has a program read the feed, and a webhook wait for what does not happen here: no request is
// sent.
func (p *posternRelay) listen(ctx context.Context) error {
	if err := p.run(ctx, "webhook", "add", "https://hooks.example.com/", "--all", "--kind", "failed", "--kind", "expired"); err != nil {
		return err
	}
	p.reader = p.command(context.Background(), "events", "--follow", "--json")
	return p.reader.Start()
}

func (p *posternRelay) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.program, append([]string{"--config", p.config()}, args...)...)
	cmd.Env = append(os.Environ(), "POSTERN_DATABASE_URL="+p.url)
	return cmd
}

// run carries out an admin's command; one that asks for a password gets it.
func (p *posternRelay) run(ctx context.Context, args ...string) error {
	cmd := p.command(ctx, args...)
	cmd.Stdin = strings.NewReader(benchPassword + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("postern %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// start runs the server with its log in a file, as Postfix has it.
func (p *posternRelay) start(profile string) error {
	log, err := os.Create(p.log())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own
	args := []string{"serve"}
	if profile != "" {
		args = append(args, "--cpuprofile", profile)
	}
	cmd := p.command(context.Background(), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is ours to pass on
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.ended = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait() // what it said is in its log
		close(p.ended)
	}()
	return nil
}

// stop ends the server; it may be called for one that never started.
func (p *posternRelay) stop() {
	if p.reader != nil && p.reader.Process != nil {
		_ = p.reader.Process.Kill()
		_ = p.reader.Wait()
	}
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// lastWords is the end of the server's log.
func (p *posternRelay) lastWords() string {
	text, err := os.ReadFile(p.log())
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-2000):])
}
