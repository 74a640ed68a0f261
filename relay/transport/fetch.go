package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	maxPolicy  = 64 << 10         // octets of a policy (RFC 8461 section 3.3 advises 64 kilobytes)
	fetchTime  = 10 * time.Second // for a policy, with all that it takes; the RFC lets a minute
	maxFetches = 20               // of a node at the same time
	fetchPart  = 0.25             // see share: the domains of one organisation, whose hosts may all hang, have
	maxOfOne   = 4                // of them, and fewer while others have some
)

// Fetcher gets policies from the hosts of domains. It is safe for concurrent use.
type Fetcher struct {
	// Addresses looks a host up.
	Addresses func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address. Domains are chosen by those who send mail: it must not connect to
	// private ones.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Port  int            // 443 if 0; others are for tests
	Roots *x509.CertPool // nil: the system's
	Time  time.Duration  // for one policy: 10 s if 0
}

var errRedirect = errors.New("it sends elsewhere, which is not followed")

// Policy gets the policy of a domain (RFC 8461 section 3.3): from the host mta-sts below it, whose
// certificate must be valid, without following redirects.
func (f *Fetcher) Policy(ctx context.Context, domain string) (STS, error) {
	host := "mta-sts." + domain
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(f.Time, fetchTime))
	defer cancel()
	text, err := f.get(ctx, host)
	if err != nil {
		return STS{}, fmt.Errorf("get the policy from %s: %w", host, err)
	}
	return parseSTS(text)
}

func (f *Fetcher) get(ctx context.Context, host string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/mta-sts.txt", http.NoBody)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{ // without a proxy of the environment, and with no connection kept
		DialContext:            func(ctx context.Context, network, _ string) (net.Conn, error) { return f.dial(ctx, network, host) },
		TLSClientConfig:        &tls.Config{ServerName: host, RootCAs: f.Roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxPolicy,
	}
	defer transport.CloseIdleConnections() // else net/http waits for a handshake for ever, though ctx has ended
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect }}
	response, err := client.Do(request)
	if err != nil {
		return "", bare(err)
	}
	defer response.Body.Close()
	kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode != http.StatusOK:
		return "", fmt.Errorf("its answer is %d", response.StatusCode)
	case err != nil || kind != "text/plain":
		return "", fmt.Errorf("its answer is %.40q and not text/plain", response.Header.Get("Content-Type"))
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxPolicy+1))
	if err == nil {
		err = ctx.Err() // then the host may have ended the answer because we closed the connection
	}
	switch {
	case err != nil:
		return "", bare(err)
	case len(text) > maxPolicy:
		return "", fmt.Errorf("the policy has more than %d octets", maxPolicy)
	}
	return string(text), nil
}

// dial connects to the first address of a host that answers.
func (f *Fetcher) dial(ctx context.Context, network, host string) (net.Conn, error) {
	list, err := f.Addresses(ctx, host)
	if err == nil && len(list) == 0 {
		err = errors.New("it has no address")
	}
	for _, addr := range list {
		var c net.Conn
		if c, err = f.Dial(ctx, network, net.JoinHostPort(addr.String(), strconv.Itoa(cmp.Or(f.Port, 443)))); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// bare is an error without the URL, which says nothing new.
func bare(err error) error {
	if with := (*url.Error)(nil); errors.As(err, &with) {
		return with.Err
	}
	return err
}
