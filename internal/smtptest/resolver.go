package smtptest

import (
	"context"
	"net"
	"strings"
	"sync"
)

// Resolver answers MX and address queries from tables. The zero value knows no
// name. It is safe for concurrent use; names are compared without case and without
// the final dot. Errors are *net.DNSError, as those of net.Resolver.
type Resolver struct {
	mu      sync.Mutex
	mx      map[string][]*net.MX
	addrs   map[string][]net.IPAddr
	faults  map[string]fault
	queries map[string]int
}

type fault int

const (
	faultServFail fault = iota + 1
	faultTimeout
	faultStall
)

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

// AddHost adds addresses (A or AAAA, in this order) of a host.
func (r *Resolver) AddHost(host string, addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.addrs == nil {
		r.addrs = map[string][]net.IPAddr{}
	}
	key := queryName(host)
	for _, addr := range addrs {
		r.addrs[key] = append(r.addrs[key], net.IPAddr{IP: net.ParseIP(addr)})
	}
}

// ServFail makes every query for name fail temporarily.
func (r *Resolver) ServFail(name string) { r.setFault(name, faultServFail) }

// TimeOut makes every query for name fail at once as one that timed out.
func (r *Resolver) TimeOut(name string) { r.setFault(name, faultTimeout) }

// Stall keeps every query for name until its context ends.
func (r *Resolver) Stall(name string) { r.setFault(name, faultStall) }

// Mend takes ServFail, TimeOut or Stall back.
func (r *Resolver) Mend(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.faults, queryName(name))
}

// Forget removes all records of name.
func (r *Resolver) Forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mx, queryName(name))
	delete(r.addrs, queryName(name))
}

// Queries returns how many queries of kind "MX" or "A" (addresses of either
// family) came for name.
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
	records := r.mx[queryName(name)]
	if len(records) == 0 {
		return nil, notFound(name)
	}
	out := make([]*net.MX, len(records))
	for i, record := range records {
		c := *record
		out[i] = &c
	}
	return out, nil
}

// LookupIPAddr returns the addresses of host in the order they were added.
func (r *Resolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	if err := r.begin(ctx, "A", host); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	addrs := r.addrs[queryName(host)]
	if len(addrs) == 0 {
		return nil, notFound(host)
	}
	return append([]net.IPAddr(nil), addrs...), nil
}

// begin counts the query and acts out the fault that is set for name.
func (r *Resolver) begin(ctx context.Context, kind, name string) error {
	r.mu.Lock()
	if r.queries == nil {
		r.queries = map[string]int{}
	}
	r.queries[kind+" "+queryName(name)]++
	f := r.faults[queryName(name)]
	r.mu.Unlock()
	switch f {
	case faultServFail:
		return &net.DNSError{Err: "server misbehaving", Name: name, IsTemporary: true}
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

func (r *Resolver) setFault(name string, f fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults == nil {
		r.faults = map[string]fault{}
	}
	r.faults[queryName(name)] = f
}

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func timedOut(name string) error {
	return &net.DNSError{Err: "i/o timeout", Name: name, IsTimeout: true, IsTemporary: true}
}

func queryName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
