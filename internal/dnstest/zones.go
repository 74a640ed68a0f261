// Package dnstest is the DNS of tests: records and faults in tables, asked in memory or by a
// name server on loopback. It does not sign: the AD bit is set for the zones that a test names.
// For DNSSEC as it is, see internal/peers.
package dnstest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/miekg/dns"

	"postern/relay/resolver"
)

// Zones answers as a recursive name server does. The zero value knows no name. It is safe for
// concurrent use. Records that are not added as text have a TTL of 0, so nobody keeps them.
type Zones struct {
	mu      sync.Mutex
	records map[string][]dns.RR // by name
	faults  map[string]fault    // by kind and name
	queries map[string]int      // likewise
	signed  []string            // zones
}

type fault int

const (
	faultServFail fault = iota + 1
	faultRefuse
	faultTimeOut
	faultStall
)

// Add adds records in the form of zone files, as "mx.one.test. 60 IN A 127.0.0.1".
func (z *Zones) Add(records ...string) {
	for _, text := range records {
		record, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		z.add(record)
	}
}

func (z *Zones) add(record dns.RR) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.records == nil {
		z.records = map[string][]dns.RR{}
	}
	name := dns.CanonicalName(record.Header().Name)
	z.records[name] = append(z.records[name], record)
}

// Set has name know these records and no others, each in the form "MX 10 mx.one.test.".
func (z *Zones) Set(name string, records ...string) {
	z.Forget(name)
	for _, record := range records {
		z.Add(dns.Fqdn(name) + " 0 IN " + record)
	}
}

func head(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: dns.Fqdn(name), Rrtype: kind, Class: dns.ClassINET}
}

// AddMX adds one MX record. A host of "." is the null MX (RFC 7505).
func (z *Zones) AddMX(domain string, preference uint16, host string) {
	z.add(&dns.MX{Hdr: head(domain, dns.TypeMX), Preference: preference, Mx: dns.Fqdn(host)})
}

// AddHost adds addresses (A or AAAA) of a host.
func (z *Zones) AddHost(host string, addrs ...string) {
	for _, text := range addrs {
		if addr := netip.MustParseAddr(text); addr.Is4() {
			z.add(&dns.A{Hdr: head(host, dns.TypeA), A: addr.AsSlice()})
		} else {
			z.add(&dns.AAAA{Hdr: head(host, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
}

// AddCNAME makes name an alias.
func (z *Zones) AddCNAME(name, target string) {
	z.add(&dns.CNAME{Hdr: head(name, dns.TypeCNAME), Target: dns.Fqdn(target)})
}

// AddTXT adds one TXT record.
func (z *Zones) AddTXT(name string, pieces ...string) {
	z.add(&dns.TXT{Hdr: head(name, dns.TypeTXT), Txt: pieces})
}

// Sign has the answers about names in these zones, and no others, come with the AD bit, as from a
// server that validates: it also has the proof of that which resolvers ask for. Without zones it
// does not validate.
func (z *Zones) Sign(zones ...string) {
	z.Set(".", "NS a.root-servers.net.")
	z.mu.Lock()
	defer z.mu.Unlock()
	z.signed = zones
}

// Blind lets it set the AD bit without proof: a bogus name has an answer.
func (z *Zones) Blind() { z.AddHost(resolver.Bogus, "192.0.2.1") }

// ServFail has questions about name fail as by a server in trouble: those of the kinds that are
// named ("MX", "A"), or all.
func (z *Zones) ServFail(name string, kinds ...string) { z.setFault(name, kinds, faultServFail) }

// Refuse has them refused (REFUSED).
func (z *Zones) Refuse(name string, kinds ...string) { z.setFault(name, kinds, faultRefuse) }

// TimeOut has them fail immediately as ones that timed out; a server gives no answer.
func (z *Zones) TimeOut(name string, kinds ...string) { z.setFault(name, kinds, faultTimeOut) }

// Stall keeps them until their context ends; a server gives no answer.
func (z *Zones) Stall(name string, kinds ...string) { z.setFault(name, kinds, faultStall) }

// every is the kind of a fault for all of them.
const every = "*"

func (z *Zones) setFault(name string, kinds []string, f fault) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.faults == nil {
		z.faults = map[string]fault{}
	}
	if len(kinds) == 0 {
		kinds = []string{every}
	}
	for _, kind := range kinds {
		z.faults[key(kind, name)] = f
	}
}

// Mend takes ServFail, Refuse, TimeOut and Stall back.
func (z *Zones) Mend(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for kind := range dns.StringToType {
		delete(z.faults, key(kind, name))
	}
	delete(z.faults, key(every, name))
}

// Forget removes all records of name.
func (z *Zones) Forget(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.records, dns.CanonicalName(name))
}

// Queries is how many questions of a kind came for name.
func (z *Zones) Queries(kind, name string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.queries[key(kind, name)]
}

func key(kind, name string) string { return kind + " " + dns.CanonicalName(name) }

// Exchange answers a query in memory, whatever the server: it is a resolver's Config.Exchange.
func (z *Zones) Exchange(ctx context.Context, _ string, query *dns.Msg) (*dns.Msg, error) {
	if len(query.Question) != 1 {
		return nil, fmt.Errorf("a query with %d questions", len(query.Question))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reply, fault := z.answer(query)
	switch fault {
	case faultTimeOut:
		return nil, fmt.Errorf("%s: %w", query.Question[0].Name, os.ErrDeadlineExceeded)
	case faultStall:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return reply, nil
}

func (z *Zones) answer(query *dns.Msg) (*dns.Msg, fault) {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := query.Question[0]
	kind, name := dns.TypeToString[q.Qtype], dns.CanonicalName(q.Name)
	if z.queries == nil {
		z.queries = map[string]int{}
	}
	z.queries[key(kind, name)]++
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	if edns := query.IsEdns0(); edns != nil {
		reply.SetEdns0(4096, edns.Do())
	}
	fault := z.faults[key(kind, name)]
	if fault == 0 {
		fault = z.faults[key(every, name)]
	}
	switch {
	case fault == faultServFail || name == resolver.Bogus && len(z.signed) > 0 && len(z.records[name]) == 0:
		reply.Rcode = dns.RcodeServerFailure
		return reply, 0
	case fault == faultRefuse:
		reply.Rcode = dns.RcodeRefused
		return reply, 0
	case fault != 0:
		return nil, fault
	}
	z.fill(reply, name, q.Qtype)
	return reply, 0
}

// fill follows aliases as a recursive server does, and answers a circle of them as some do:
// NOERROR, with nothing but the circle. mu is held.
func (z *Zones) fill(reply *dns.Msg, name string, kind uint16) {
	secure, been := true, []string{}
	for !slices.Contains(been, name) {
		been = append(been, name)
		secure = secure && z.isSigned(name)
		alias := ""
		for _, record := range z.records[name] {
			cname, isAlias := record.(*dns.CNAME)
			if record.Header().Rrtype == kind || isAlias {
				reply.Answer = append(reply.Answer, dns.Copy(record))
			}
			if isAlias && kind != dns.TypeCNAME {
				alias = dns.CanonicalName(cname.Target)
			}
		}
		if alias == "" {
			z.fillNone(reply, name, kind)
			break
		}
		name = alias
	}
	reply.AuthenticatedData = secure
}

// fillNone completes an answer that has no records of its kind. mu is held.
func (z *Zones) fillNone(reply *dns.Msg, name string, kind uint16) {
	if slices.ContainsFunc(reply.Answer, func(r dns.RR) bool { return r.Header().Rrtype == kind }) {
		return
	}
	exists := false
	for other := range z.records {
		exists = exists || dns.IsSubDomain(name, other)
	}
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	for zone := name; ; {
		for _, record := range z.records[zone] {
			if record.Header().Rrtype == dns.TypeSOA {
				reply.Ns = append(reply.Ns, dns.Copy(record))
				return
			}
		}
		next, end := dns.NextLabel(zone, 0)
		if end {
			return
		}
		zone = zone[next:]
	}
}

// isSigned reports a name in one of the zones of Sign, or the root of them. mu is held.
func (z *Zones) isSigned(name string) bool {
	return name == "." && len(z.signed) > 0 || slices.ContainsFunc(z.signed, func(zone string) bool { return dns.IsSubDomain(dns.Fqdn(zone), name) })
}

// Resolver asks z in memory, as a name server on this machine that nobody else can answer for.
func (z *Zones) Resolver() *resolver.Resolver { return By(z.Exchange) }

// By is a Resolver that asks a function for the answer to a query.
func By(exchange func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error)) *resolver.Resolver {
	return resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53"}, Exchange: exchange})
}

// At is a Resolver that asks a server, host:port.
func At(server string) *resolver.Resolver {
	return resolver.New(resolver.Config{Servers: []string{server}})
}
