package resolver

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
	lookAgain  = 5 * time.Second // between two looks at the first file
)

// system is what the machine's files say.
type system struct {
	path  string // as /etc/resolv.conf
	hosts string // as /etc/hosts

	mu     sync.Mutex
	looked time.Time
	was    time.Time // when the file was changed
	conf   *dns.ClientConfig
}

// read returns the file's content, which is the last one known while it cannot be read.
func (s *system) read() *dns.ClientConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf != nil && time.Since(s.looked) < lookAgain {
		return s.conf
	}
	s.looked = time.Now()
	info, err := os.Stat(s.path)
	if err == nil && !info.ModTime().Equal(s.was) {
		if conf, err := dns.ClientConfigFromFile(s.path); err == nil {
			s.conf, s.was = conf, info.ModTime()
		}
	}
	if s.conf == nil {
		s.conf = &dns.ClientConfig{Ndots: 1}
	}
	return s.conf
}

// servers are the name servers, as host:port; without any they are on this machine (resolv.conf(5)).
func (s *system) servers() (list []string) {
	for _, server := range s.read().Servers {
		list = append(list, net.JoinHostPort(server, "53"))
	}
	if len(list) == 0 {
		return []string{"127.0.0.1:53", "[::1]:53"}
	}
	return list
}

// inHosts are the addresses that the machine's hosts file has for a host, which may be none.
func (s *system) inHosts(host string) (list []netip.Addr, err error) {
	text, err := os.ReadFile(s.hosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if !slices.ContainsFunc(words, func(word string) bool { return dns.CanonicalName(word) == dns.CanonicalName(host) }) {
			continue
		}
		if addr, err := netip.ParseAddr(words[0]); err == nil {
			list = append(list, addr.Unmap())
		}
	}
	return list, nil
}

// Local looks up a host that an administrator has named: in the machine's hosts file, then in the
// DNS. A name without a dot is looked for in the search list too. Nothing of a hosts file is Secure.
func (r *Resolver) Local(ctx context.Context, host string) (Addresses, error) {
	if list, err := r.system.inHosts(host); err != nil || len(list) > 0 {
		return Addresses{List: list, Canonical: dns.CanonicalName(host)}, err
	}
	names := []string{dns.Fqdn(host)}
	if dns.CountLabel(host) == 1 && !dns.IsFqdn(host) {
		names = r.system.read().NameList(host)
	}
	var none error
	for _, name := range names {
		addrs, err := r.Addresses(ctx, name)
		if err == nil || !errors.Is(err, ErrNone) {
			return addrs, err
		}
		none = err
	}
	return Addresses{}, none
}

// isNear reports a server on this machine. Docker's at 127.0.0.11 only passes on what it hears
// from others.
func isNear(server string) bool {
	at, err := netip.ParseAddrPort(server)
	return err == nil && at.Addr().IsLoopback() && at.Addr() != netip.AddrFrom4([4]byte{127, 0, 0, 11})
}
