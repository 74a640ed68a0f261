package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"postern/internal/pg"
	"postern/relay/feed"
)

const (
	postTime   = 15 * time.Second // for a request, with all that it takes
	mostAnswer = 4 << 10          // octets of an answer that are read
	mostHeader = 16 << 10         // and of its header
	keptAnswer = 1 << 10          // and that are kept
)

// Reach is how endpoints are reached; its zero value reaches the public ones.
type Reach struct {
	Allow    Allow
	Resolver *net.Resolver  // nil: the system's
	Roots    *x509.CertPool // nil: the system's
}

// Answer is what became of a request.
type Answer struct {
	Status int           // 0: there was no answer
	Body   string        // its beginning, for admins only
	Took   time.Duration // until it was read
	Err    error         // why the event counts as not taken; nil: it was taken

	asked time.Duration // to wait
	ours  bool          // the fault is this machine's
}

// client has the connections to one endpoint.
type client struct {
	url  *url.URL
	http http.Client
}

// newClient makes one. The connections take no proxy of the environment, and no redirect is followed. They speak
// HTTP/1.1: a connection of HTTP/2 that has fallen silent would be used again for the next request.
func newClient(r Reach, endpoint string, concurrency int) (*client, error) {
	u, err := r.Allow.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Control: r.Allow.control(u), Resolver: r.Resolver}
	return &client{u, http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS12},
			DisableCompression: true, MaxResponseHeaderBytes: mostHeader,
			MaxConnsPerHost: concurrency, MaxIdleConnsPerHost: concurrency, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// post sends one event.
func (c *client) post(ctx context.Context, secrets []Secret, id string, body []byte) Answer {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	a := c.exchange(ctx, secrets, id, body, start)
	a.Took = time.Since(start)
	return a
}

func (c *client) exchange(ctx context.Context, secrets []Secret, id string, body []byte, now time.Time) (a Answer) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return Answer{Err: bare(err)}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "Postern")
	// Not sent: it lets net/http use a new connection when the endpoint has ended a kept one.
	request.Header["Idempotency-Key"] = nil
	for name, value := range Headers(secrets, id, now, body) {
		request.Header.Set(name, value)
	}
	response, err := c.http.Do(request)
	if err != nil {
		c.close() // else net/http goes on dialling for later requests, with no time limit
		return Answer{Err: bare(err), ours: isOurs(err)}
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusSwitchingProtocols { // its body is the connection, which ctx does not end
		return Answer{Status: response.StatusCode, Err: errors.New("the answer was 101")}
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer))
	a = Answer{Status: response.StatusCode, Body: brief(string(text)), asked: asked(response, now)}
	switch {
	case a.Status >= 300 && a.Status < 400:
		a.Err = fmt.Errorf("the answer %d sends elsewhere, which is not followed", a.Status)
	case a.Status < 200 || a.Status >= 300:
		a.Err = fmt.Errorf("the answer was %d", a.Status)
	case err != nil:
		a.Err = fmt.Errorf("the answer %d did not end: %w", a.Status, bare(err))
	}
	return a
}

// brief is the part of an answer that is kept, as it can be stored and shown.
func brief(text string) string {
	text = pg.Storable(text)
	if len(text) > keptAnswer {
		text = strings.ToValidUTF8(text[:keptAnswer], "")
	}
	return text
}

// isOurs reports that this process ended the request, or that this machine had no descriptor, port or memory
// for a connection.
func isOurs(err error) bool {
	if errors.Is(err, context.Canceled) {
		return true
	}
	for _, want := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

// bare is an error without the URL, which says nothing new.
func bare(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no complete answer within %s", postTime)
	}
	if with := (*url.Error)(nil); errors.As(err, &with) {
		return with.Err
	}
	return err
}

// Sample is an event to try an endpoint with, and its id.
func Sample(name string, now time.Time) (id string, body []byte, err error) {
	e := feed.Event{ID: uuid.New(), Kind: Test, At: now.UTC().Truncate(time.Microsecond), Object: name}
	text, err := encode(&e, false)
	return e.ID.String(), []byte(text), err
}

// Send sends one event from this process. Errors: those of Allow.Parse.
func Send(ctx context.Context, r Reach, endpoint string, secrets []Secret, id string, body []byte) (Answer, error) {
	c, err := newClient(r, endpoint, 1)
	if err != nil {
		return Answer{}, err
	}
	defer c.close()
	return c.post(ctx, secrets, id, body), nil
}
