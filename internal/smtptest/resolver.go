package smtptest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Resolver answers MX, A, AAAA and CNAME questions from tables, with the errors of
// net.Resolver: TestResolverIsTrue compares both. The zero value knows no name. It is
// safe for concurrent use; names are compared without case and without the final dot.
type Resolver struct {
	mu      sync.Mutex
	mx      map[string][]*net.MX
	addrs   map[string][]netip.Addr
	aliases map[string]string
	faults  map[string]fault // by kind and name
	queries map[string]int   // likewise
}

type fault int

const (
	faultServFail fault = iota + 1
	faultRefuse
	faultTimeout
	faultStall
)

// everyKind is what a fault is set for when no kind is named.
var everyKind = []string{"MX", "A", "AAAA", "CNAME"}

// AddMX adds one MX record. A host of "." is the null MX (RFC 7505).
func (r *Resolver) AddMX(domain string, preference uint16, host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mx == nil {
		r.mx = map[string][]*net.MX{}
	}
	key := queryName(domain)
	r.mx[key] = append(r.mx[key], &net.MX{Host: host, Pref: preference})
}

// AddHost adds addresses (A or AAAA) of a host.
func (r *Resolver) AddHost(host string, addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.addrs == nil {
		r.addrs = map[string][]netip.Addr{}
	}
	key := queryName(host)
	for _, addr := range addrs {
		r.addrs[key] = append(r.addrs[key], netip.MustParseAddr(addr))
	}
}

// AddCNAME makes name an alias.
func (r *Resolver) AddCNAME(name, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.aliases == nil {
		r.aliases = map[string]string{}
	}
	r.aliases[queryName(name)] = queryName(target)
}

// ServFail has questions about name fail as by a server in trouble: those of the kinds
// "MX", "A", "AAAA" and "CNAME" that are named, or all.
func (r *Resolver) ServFail(name string, kinds ...string) { r.setFault(name, kinds, faultServFail) }

// Refuse has them refused (REFUSED).
func (r *Resolver) Refuse(name string, kinds ...string) { r.setFault(name, kinds, faultRefuse) }

// TimeOut has them fail immediately as ones that timed out.
func (r *Resolver) TimeOut(name string, kinds ...string) { r.setFault(name, kinds, faultTimeout) }

// Stall keeps them until their context ends.
func (r *Resolver) Stall(name string, kinds ...string) { r.setFault(name, kinds, faultStall) }

// Mend takes ServFail, Refuse, TimeOut or Stall back.
func (r *Resolver) Mend(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kind := range everyKind {
		delete(r.faults, kind+" "+queryName(name))
	}
}

// Forget removes all records of name.
func (r *Resolver) Forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mx, queryName(name))
	delete(r.addrs, queryName(name))
	delete(r.aliases, queryName(name))
}

// Queries returns how many questions of a kind came for name.
func (r *Resolver) Queries(kind, name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queries[kind+" "+queryName(name)]
}

// LookupMX returns the MX records of name in the order they were added, which is
// not sorted by preference.
func (r *Resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	if err := r.begin(ctx, "MX", name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, end := r.follow(name)
	if len(r.mx[end]) == 0 {
		return nil, notFound(name)
	}
	out := make([]*net.MX, len(r.mx[end]))
	for i, record := range r.mx[end] {
		c := *record
		out[i] = &c
	}
	return out, nil
}

// LookupNetIP returns the addresses of host in one family, "ip4" or "ip6", in the
// order they were added. As of net.Resolver, an IPv4 address in an AAAA record
// (::ffff:192.0.2.1) is one of neither.
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	kind := map[string]string{"ip4": "A", "ip6": "AAAA"}[network]
	if err := r.begin(ctx, kind, host); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, end := r.follow(host)
	all := r.family(kind, end)
	list := slices.DeleteFunc(slices.Clone(all), netip.Addr.Is4In6)
	switch {
	case len(all) == 0:
		return nil, notFound(host)
	case len(list) == 0:
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	return list, nil
}

// LookupCNAME returns what name is an alias of, or name itself where it has addresses.
func (r *Resolver) LookupCNAME(ctx context.Context, name string) (string, error) {
	if err := r.begin(ctx, "CNAME", name); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := queryName(name)
	if target, ok := r.aliases[key]; ok {
		return target + ".", nil
	}
	if len(r.addrs[key]) > 0 {
		return key + ".", nil
	}
	return "", notFound(name)
}

// family lists the records of one kind. mu is held.
func (r *Resolver) family(kind, key string) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(r.addrs[key]), func(a netip.Addr) bool { return a.Is4() != (kind == "A") })
}

// follow returns the aliases on the way from name, and where they end: nowhere, in a
// circle. mu is held.
func (r *Resolver) follow(name string) (aliases []string, end string) {
	key := queryName(name)
	for {
		target, ok := r.aliases[key]
		if !ok {
			return aliases, key
		}
		if slices.Contains(aliases, key) {
			return aliases, ""
		}
		aliases = append(aliases, key)
		key = target
	}
}

// begin counts the question and acts out the fault that is set for it.
func (r *Resolver) begin(ctx context.Context, kind, name string) error {
	r.mu.Lock()
	if r.queries == nil {
		r.queries = map[string]int{}
	}
	r.queries[kind+" "+queryName(name)]++
	f := r.fault(kind, name)
	r.mu.Unlock()
	switch f {
	case faultServFail:
		return &net.DNSError{Err: "server misbehaving", Name: name, Server: fakeServer, IsTemporary: true}
	case faultRefuse:
		return &net.DNSError{Err: "server misbehaving", Name: name, Server: fakeServer}
	case faultTimeout:
		return timedOut(name)
	case faultStall:
		<-ctx.Done()
		return timedOut(name)
	}
	if ctx.Err() != nil {
		return timedOut(name)
	}
	return nil
}

// fault is the one that is set for a question. mu is held.
func (r *Resolver) fault(kind, name string) fault { return r.faults[kind+" "+queryName(name)] }

func (r *Resolver) setFault(name string, kinds []string, f fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults == nil {
		r.faults = map[string]fault{}
	}
	if len(kinds) == 0 {
		kinds = everyKind
	}
	for _, kind := range kinds {
		r.faults[kind+" "+queryName(name)] = f
	}
}

// fakeServer is who said it. net.Resolver names no server for what it found out
// without one.
const fakeServer = "127.0.0.1:53"

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, Server: fakeServer, IsNotFound: true}
}

func timedOut(name string) error {
	return &net.DNSError{Err: "i/o timeout", Name: name, Server: fakeServer, IsTimeout: true, IsTemporary: true}
}

func queryName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
