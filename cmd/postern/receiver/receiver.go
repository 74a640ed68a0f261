package receiver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"blitiri.com.ar/go/spf"
	"github.com/miekg/dns"

	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
)

// Receiver judges mail that is sent by a server.
type Receiver struct {
	DNS   *resolver.Resolver
	Hello string // the server's name
}

// Mail is what a receiver goes by.
type Mail struct {
	Author     string       // domain of From
	Sender     string       // domain of the envelope's sender; "": the null sender
	Signatures []dkim.Key   // that it has
	Addrs      []netip.Addr // that it may come from; none: not known
	Upstream   bool         // it comes from an upstream, which SPF and PTR are about
}

// Finding is what a receiver finds.
type Finding struct {
	Check   string `json:"check"`             // SPF, DKIM, DMARC or PTR
	Of      string `json:"of"`                // a domain or an address
	Result  string `json:"result"`            // pass, none, or why not: by SPF as RFC 7208 has it; else fail, or temperror without an answer
	Aligned bool   `json:"aligned,omitempty"` // SPF and DKIM: it counts for DMARC
	Why     string `json:"why,omitempty"`
	Publish string `json:"publish,omitempty"` // the record that helps, as a line of a zone file
	Record  string `json:"-"`                 // DMARC: the domain's, "" if there is none
}

// Results that are not SPF's alone.
const (
	Pass      = "pass"
	Fail      = "fail"
	None      = "none"
	TempError = "temperror"
)

// Judge judges mail.
func (r Receiver) Judge(ctx context.Context, m Mail) (list []Finding) {
	policy, policyErr := r.policy(ctx, m.Author)
	var by, not []string // what DMARC passes by, or why not
	for _, k := range m.Signatures {
		f := Finding{Check: "DKIM", Of: k.Domain, Result: Pass, Aligned: aligned(k.Domain, m.Author, policy.strictDKIM), Why: fmt.Sprintf("selector %s, %s", k.Selector, k.Algorithm)}
		if f.Aligned {
			by = append(by, "DKIM of "+k.Domain)
		} else {
			not = append(not, fmt.Sprintf("DKIM of %s is not aligned with %s", k.Domain, m.Author))
		}
		list = append(list, f)
	}
	if len(m.Signatures) == 0 {
		list = append(list, Finding{Check: "DKIM", Of: m.Author, Result: None, Why: "it is not signed"})
		not = append(not, "it is not signed")
	}
	if !m.Upstream {
		findings, passes, why := r.spf(ctx, m, policy.strictSPF)
		list = append(list, findings...)
		if passes {
			by = append(by, "SPF")
		} else {
			not = append(not, why)
		}
	}
	list = append(list, dmarc(m, policy, policyErr, by, not))
	for _, addr := range m.Addrs {
		if !m.Upstream {
			list = append(list, r.ptr(ctx, addr))
		}
	}
	return list
}

// spf judges each address. passes: all of them may send, in a domain that is aligned; else why says
// what is in the way.
func (r Receiver) spf(ctx context.Context, m Mail, strict bool) (list []Finding, passes bool, why string) {
	domain := m.Sender
	if domain == "" {
		domain = r.Hello // RFC 7208 section 2.4
	}
	if len(m.Addrs) == 0 {
		return nil, false, "the address that mail leaves from is not known"
	}
	near := aligned(domain, m.Author, strict)
	passes, why = near, fmt.Sprintf("SPF is about %s, which is not aligned with %s", domain, m.Author)
	for _, addr := range m.Addrs {
		result, err := r.checkSPF(ctx, domain, addr)
		f := Finding{Check: "SPF", Of: addr.String(), Result: string(result), Aligned: near, Why: domain}
		if result != spf.Pass {
			f.Why, f.Aligned = fmt.Sprintf("%s: %v", domain, err), false
			if result != spf.TempError {
				f.Publish = r.allowing(ctx, domain, m.Addrs)
			}
			if near {
				why = fmt.Sprintf("SPF of %s: %s", domain, result)
			}
			passes = false
		}
		list = append(list, f)
		if result == spf.None {
			break // and so for all of them
		}
	}
	return list, passes, why
}

func dmarc(m Mail, p policy, err error, by, not []string) Finding {
	f := Finding{Check: "DMARC", Of: m.Author, Record: p.record}
	if len(by) > 0 {
		f.Result, f.Why = Pass, "by "+strings.Join(by, ", ")
	} else {
		f.Result, f.Why = Fail, strings.Join(not, "; ")
		if m.Upstream {
			f.Result, f.Why = None, f.Why+"; the upstream may sign, or be in the domain's SPF record"
		}
	}
	switch {
	case err != nil:
		f.Result, f.Why = TempError, err.Error()
	case p.record == "":
		f.Result, f.Why = None, "no record at _dmarc."+m.Author+"; it would "+map[bool]string{true: "pass ", false: "fail: "}[len(by) > 0]+f.Why
		f.Publish = keys.ZoneLine("_dmarc."+m.Author, "v=DMARC1; p=none; rua=mailto:postmaster@"+m.Author)
	default:
		f.Why += "; policy " + p.wants
	}
	return f
}

func (r Receiver) ptr(ctx context.Context, addr netip.Addr) Finding {
	f := Finding{Check: "PTR", Of: addr.String(), Result: Pass}
	name, names, err := r.Name(ctx, addr)
	switch {
	case err != nil:
		f.Result, f.Why = TempError, err.Error()
	case name != "":
		f.Why = name
	case len(names) == 0:
		f.Result, f.Why, f.Publish = None, "no PTR record", r.Reverse(addr)
	default:
		f.Result, f.Why, f.Publish = Fail, strings.Join(names, ", ")+" does not lead back to it", r.Reverse(addr)
	}
	return f
}

// Reverse is the PTR record that an address should have, as a line of a zone file.
func (r Receiver) Reverse(addr netip.Addr) string {
	name, _ := dns.ReverseAddr(addr.String()) // of an address there is one
	return name + " IN PTR " + r.Hello + "."
}

// mostNames is how many names of one address are looked up.
const mostNames = 5

// Name is the first name of an address that leads back to it, as receivers want it, "" if none does.
// names are all.
func (r Receiver) Name(ctx context.Context, addr netip.Addr) (name string, names []string, err error) {
	names, err = r.DNS.Names(ctx, addr)
	if errors.Is(err, resolver.ErrNone) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("asked for its name: %w", err)
	}
	for _, name := range names[:min(len(names), mostNames)] {
		forward, err := r.DNS.Addresses(ctx, name)
		if err != nil && !errors.Is(err, resolver.ErrNone) {
			return "", names, fmt.Errorf("asked for %s: %w", name, err)
		}
		if slices.Contains(forward.List, addr) {
			return strings.TrimSuffix(name, "."), names, nil
		}
	}
	return "", names, nil
}

// Addresses are the public ones of the server's name; to find none is not an error.
func (r Receiver) Addresses(ctx context.Context) (public []netip.Addr, err error) {
	all, err := r.DNS.Addresses(ctx, r.Hello)
	if r.Hello == "" || errors.Is(err, resolver.ErrNone) {
		return nil, nil
	}
	for _, addr := range all.List {
		if addr.IsGlobalUnicast() && !addr.IsPrivate() {
			public = append(public, addr)
		}
	}
	return public, err
}
