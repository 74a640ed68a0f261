package check

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

const (
	healthcheckTime = 5 * time.Second
	healthcheckMost = 16 << 10 // of the answer
)

// Ready returns what keeps the server at address from being ready, if anything.
func Ready(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTime)
	defer cancel()
	network, address := dialable(address)
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, MaxResponseHeaderBytes: healthcheckMost,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/readyz", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("the server does not answer at %s: %w", address, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, healthcheckMost))
	if err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	var said readiness
	ours := json.Unmarshal(text, &said) == nil
	if answer.StatusCode != http.StatusOK || !ours || !said.Ready {
		return &unreadyError{answer.StatusCode, ours, screen.Printable(cmp.Or(said.failed(), screen.OneLine(string(text))))}
	}
	return nil
}

// readiness is what a server of ours answers.
type readiness struct {
	Ready  bool
	Checks []struct{ Name, State, Detail, Advice string }
}

// failed is what keeps the server from being ready; checks that say the same are named together.
// With a token it tells names only.
func (r *readiness) failed() string {
	var details, list []string
	for _, c := range r.Checks {
		if c.State != string(health.Failed) {
			continue
		}
		detail := strings.Trim(c.Detail+"; "+c.Advice, "; ")
		if i := slices.Index(details, detail); i >= 0 {
			list[i] += ", " + c.Name
			continue
		}
		details, list = append(details, detail), append(list, c.Name)
	}
	for i, detail := range details {
		if detail != "" {
			list[i] += ": " + detail
		}
	}
	return screen.OneLine(strings.Join(list, " | "))
}

// unreadyError is an answer to /readyz of a server that is not ready, or of one that is
// not ours.
type unreadyError struct {
	code int
	ours bool
	text string
}

func (e *unreadyError) Error() string {
	return fmt.Sprintf("not ready (%d %s): %s", e.code, http.StatusText(e.code), e.text)
}

// isRefused reports that nobody listens there.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// dialable is where a server that listens on address can be reached on this machine.
func dialable(address string) (network, where string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "tcp", address // which the dialer refuses
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "tcp", net.JoinHostPort(host, port)
}
