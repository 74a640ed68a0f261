package peers

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/serve"
)

// UpstreamConfig is a Postfix or Exim that stands behind Postern as its smarthost:
// STARTTLS, then AUTH, then it takes mail for everybody.
type UpstreamConfig struct {
	User     string // the one account
	Password string
	Answers  Answers // replies to RCPT other than acceptance
	// Settings are parameters of Postfix's main.cf, or main options of Exim, on top of ours.
	Settings map[string]string
}

// An Upstream is a running mail server that hands everything it accepts to a
// [Capture].
type Upstream struct {
	Host     string // 127.0.0.1, which the certificate carries
	Port     int
	CAFile   string // PEM file of the authority behind its certificate
	User     string
	Password string

	capture *Capture
	answers *answerServer
	dir     string
	stop    func()
	log     func() string
}

// Next is the oldest message that came through the server and was not taken yet;
// it waits for one. The server added its Received field to it.
func (u *Upstream) Next(ctx context.Context) (Message, error) { return u.capture.Next(ctx) }

// Asked is how often RCPT named the address.
func (u *Upstream) Asked(recipient string) int { return u.answers.count(recipient) }

// Log is what the server has written to its log.
func (u *Upstream) Log() string { return u.log() }

// Close ends the server and removes its folder.
func (u *Upstream) Close() {
	if u.stop != nil {
		u.stop()
	}
	u.capture.Close()
	u.answers.server.Close()
	_ = os.RemoveAll(u.dir) // a leftover in the temporary folder does no harm
}

// newUpstream starts what stands around a server, and makes its folder.
func newUpstream(program string, config UpstreamConfig) (*Upstream, certificate, error) {
	capture, err := StartCapture(CaptureConfig{})
	if err != nil {
		return nil, certificate{}, err
	}
	answers, err := startAnswers(config.Answers)
	if err != nil {
		capture.Close()
		return nil, certificate{}, err
	}
	u := &Upstream{Host: "127.0.0.1", User: config.User, Password: config.Password, capture: capture, answers: answers}
	var identity certificate
	u.dir, err = serverDir("", program)
	if err == nil {
		identity, err = makeCertificate(u.dir)
	}
	if err == nil {
		u.Port, err = serve.FreePort()
	}
	if err != nil {
		u.Close()
		return nil, certificate{}, fmt.Errorf("prepare %s: %w", program, err)
	}
	u.CAFile = identity.caFile
	return u, identity, nil
}

// RunPostfix starts a Postfix as an upstream; the context bounds the start.
func (c Cache) RunPostfix(ctx context.Context, config UpstreamConfig) (*Upstream, error) {
	u, identity, err := newUpstream("postfix", config)
	if err != nil {
		return nil, err
	}
	parameters := map[string]string{
		"relayhost":                    fmt.Sprintf("[127.0.0.1]:%d", u.capture.Port()),
		"smtpd_recipient_restrictions": fmt.Sprintf("check_policy_service inet:%s", loopback(u.answers.server.Addr().Port)),
		"queue_run_delay":              "5s",
		"minimal_backoff_time":         "5s",
	}
	maps.Copy(parameters, config.Settings)
	p, err := c.runPostfix(ctx, postfixSpec{
		dir: u.dir, ports: []int{u.Port}, user: config.User, password: config.Password, identity: identity, main: parameters,
	})
	if err != nil {
		u.Close()
		return nil, err
	}
	u.stop, u.log = p.stop, p.log
	return u, nil
}

// StartPostfix starts a Postfix for the time of the test. Where it cannot run the
// test is skipped with the reason; its log is shown when the test fails.
func StartPostfix(t testing.TB, config UpstreamConfig) *Upstream {
	t.Helper()
	cache := requireCache(t)
	if os.Geteuid() != 0 {
		t.Skip(errNotRoot)
	}
	u, err := cache.RunPostfix(t.Context(), config)
	return forTest(t, u, err)
}

// forTest ends the server with the test.
func forTest(t testing.TB, u *Upstream, err error) *Upstream {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the upstream %s:\n%s", filepath.Base(u.dir), u.Log())
		}
		u.Close()
	})
	return u
}
