package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"postern/internal/refusal"
	"postern/internal/special"
)

// MaxURL bounds an endpoint's URL, in octets.
const MaxURL = 1000

const checkTime = 2 * time.Second // for the addresses of a name

// Allow are the endpoints of the configuration file that need neither https nor a public address. The
// zero Allow has none.
type Allow struct {
	networks []netip.Prefix
	hosts    []string // host:port
}

// ParseAllow reads networks as 10.0.0.0/8, and host:port.
func ParseAllow(list []string) (a Allow, err error) {
	for _, text := range list {
		if p, err := netip.ParsePrefix(text); err == nil {
			a.networks = append(a.networks, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked())
			continue
		}
		host, port, err := net.SplitHostPort(text)
		if err != nil || host == "" || port == "" {
			return Allow{}, fmt.Errorf("%q is neither a network, as 10.0.0.0/8, nor HOST:PORT", text)
		}
		a.hosts = append(a.hosts, net.JoinHostPort(strings.ToLower(host), port))
	}
	return a, nil
}

// hostPort is the endpoint's, in small letters.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// Parse reads the URL of an endpoint. Errors: refusal.ErrInvalid.
func (a Allow) Parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, refusal.Invalid("%q is not a URL such as https://example.com/hook", text)
	case len(text) > MaxURL:
		return nil, refusal.Invalid("the URL has %d octets, at most %d are allowed", len(text), MaxURL)
	case u.User != nil:
		return nil, refusal.Invalid("a URL with a password is shown in lists and logs: verify the signature instead")
	case u.Fragment != "":
		return nil, refusal.Invalid("a URL with a fragment (#%s) cannot be requested", u.Fragment)
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, refusal.Invalid("%q is not a URL of https", text)
	case u.Scheme == "http" && len(a.networks) == 0 && !slices.Contains(a.hosts, hostPort(u)):
		return nil, refusal.Invalid("http would send mail addresses in clear: use https, or allow the endpoint in the configuration file: [webhooks] allow = [%q]", hostPort(u))
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !a.host(u) {
		if err := a.address(u, addr); err != nil {
			return nil, refuse(u, err)
		}
	}
	return u, nil
}

func refuse(u *url.URL, err error) error {
	return refusal.Invalid("%s: %v, as %q", u.Host, err, hostPort(u))
}

// Check reads the URL of an endpoint as Parse does, and refuses it also if its name has only addresses that are
// not allowed. A name that has none, or for which nobody answers soon, is not refused. Errors: refusal.ErrInvalid.
func (r Reach) Check(ctx context.Context, endpoint string) error {
	u, err := r.Allow.Parse(endpoint)
	if err != nil || r.Allow.host(u) {
		return err
	}
	resolver := r.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	list, _ := resolver.LookupNetIP(ctx, "ip", u.Hostname())
	for _, addr := range list {
		if err = r.Allow.address(u, addr); err == nil {
			return nil
		}
	}
	if err != nil {
		return refuse(u, err)
	}
	return nil
}

func (a Allow) host(u *url.URL) bool { return slices.Contains(a.hosts, hostPort(u)) }

var (
	errInside = fmt.Errorf("%w: it needs an entry in [webhooks] allow", special.Err)
	errClear  = errors.New("http needs an entry in [webhooks] allow")
)

// address says why an endpoint must not be at an address.
func (a Allow) address(u *url.URL, addr netip.Addr) error {
	plain := addr.Unmap().WithZone("")
	switch {
	case slices.ContainsFunc(a.networks, func(p netip.Prefix) bool { return p.Contains(plain) }):
		return nil
	case special.Is(addr):
		return errInside
	case u.Scheme == "http":
		return errClear
	}
	return nil
}

// control is a net.Dialer's Control for an endpoint. It sees the address that is dialled, so a name
// that resolves to something else the second time does not evade it.
func (a Allow) control(u *url.URL) func(network, address string, _ syscall.RawConn) error {
	if a.host(u) {
		return nil
	}
	return func(_, address string, _ syscall.RawConn) error {
		target, err := netip.ParseAddrPort(address)
		if err != nil {
			return special.Err
		}
		return a.address(u, target.Addr())
	}
}
