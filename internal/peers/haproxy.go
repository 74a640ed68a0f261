package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/serve"
)

// A Balancer is a running HAProxy in front of servers on 127.0.0.1, to which it says
// in a PROXY header who its clients are. It connects from Source.
type Balancer struct {
	Ports  []int // where it listens on 127.0.0.1, one for each target
	Source string

	dir     string
	process *process
}

// balancerSource is another address than clients of a test have.
const balancerSource = "127.0.0.9"

const haproxyConfig = `global
	log stderr format raw local0
defaults
	mode tcp
	timeout connect 10s
	timeout client 60s
	timeout server 60s
`

// StartBalancer starts an HAProxy in front of ports on 127.0.0.1 for the time of the
// test, with headers of version 1 or 2. It checks the health of each ten times a second,
// and takes clients once a server is found well.
func StartBalancer(t testing.TB, version int, targets ...int) *Balancer {
	t.Helper()
	b, err := requireCache(t).runBalancer(t.Context(), version, targets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the balancer:\n%s", b.Log())
		}
		b.Close()
	})
	return b
}

// runBalancer starts an HAProxy; the context bounds the start.
func (c Cache) runBalancer(ctx context.Context, version int, targets []int) (*Balancer, error) {
	program, err := c.lookPath("haproxy")
	if err != nil {
		return nil, err
	}
	b := &Balancer{Source: balancerSource}
	if b.dir, err = serverDir("", "haproxy"); err != nil {
		return nil, fmt.Errorf("prepare haproxy: %w", err)
	}
	send := map[int]string{1: "send-proxy", 2: "send-proxy-v2"}[version]
	text := haproxyConfig
	for i, target := range targets {
		port, err := serve.FreePort()
		if err != nil {
			b.Close()
			return nil, err
		}
		b.Ports = append(b.Ports, port)
		text += fmt.Sprintf("listen l%d\n\tbind %s\n\tserver s%d %s source %s %s check check-send-proxy inter 100ms\n",
			i, loopback(port), i, loopback(target), b.Source, send)
	}
	file := filepath.Join(b.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		b.Close()
		return nil, fmt.Errorf("configure haproxy: %w", err)
	}
	if b.process, err = startProcess([]string{program, "-db", "-f", file}, c.environ(program), b.logFile(), 0); err != nil {
		b.Close()
		return nil, err
	}
	for _, port := range b.Ports {
		if err := b.process.ready(ctx, loopback(port), true); err != nil {
			log := b.Log()
			b.Close()
			return nil, fmt.Errorf("haproxy: %w\n%s", err, log)
		}
	}
	return b, nil
}

func (b *Balancer) logFile() string { return filepath.Join(b.dir, "haproxy.log") }

// Log is what it has written to its log: a line when a server is found well or not.
func (b *Balancer) Log() string { return readAll(b.logFile()) }

// Close ends it and removes its folder.
func (b *Balancer) Close() {
	if b.process != nil {
		b.process.stop()
	}
	_ = os.RemoveAll(b.dir) // a leftover in the temporary folder does no harm
}
