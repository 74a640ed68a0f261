package main

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
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/admin"
)

const (
	healthcheckTime = 5 * time.Second
	healthcheckMost = 16 << 10 // of the answer
)

// healthcheckCmd asks a running server, for container engines: their images may hold
// neither a shell nor curl.
func (a *app) healthcheckCmd() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "ask the running server whether it is ready",
		Long: `Asks the server that runs with this configuration for /readyz at its [admin]
address. The exit status is 0 when it is ready, and 1, with what it says, when it is
not or does not answer within 5 s. It is for container engines and scripts;
'postern check' looks further.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				cfg, _, err := a.loadConfig()
				if err != nil {
					return err
				}
				if address = cfg.Admin.Address; address == "" {
					return errors.New("[admin] address is empty in the configuration: the server answers no questions")
				}
			}
			if err := askReady(cmd.Context(), address); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.stdout, "ready")
			return err
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "`HOST:PORT` or unix:PATH to ask (default: that of the configuration)")
	return cmd
}

// askReady returns what keeps the server at address from being ready, if anything.
func askReady(ctx context.Context, address string) error {
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
		return &unreadyError{answer.StatusCode, ours, printable(cmp.Or(said.failed(), oneLine(string(text))))}
	}
	return nil
}

// readiness is what a server of ours answers.
type readiness struct {
	Ready  bool
	Checks []struct{ Name, State, Detail, Advice string }
}

// failed is what keeps the server from being ready. With a token it tells names only.
func (r *readiness) failed() string {
	var list []string
	for _, c := range r.Checks {
		if c.State != string(admin.Failed) {
			continue
		}
		text := c.Name
		if c.Detail != "" {
			text += ": " + c.Detail
		}
		if c.Advice != "" {
			text += "; " + c.Advice
		}
		list = append(list, text)
	}
	return oneLine(strings.Join(list, " | "))
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
