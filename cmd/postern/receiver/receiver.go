package receiver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"blitiri.com.ar/go/spf"
	"github.com/miekg/dns"

	"postern/internal/panics"
	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
)

// Receiver judges mail that is sent by a server.
type Receiver struct {
	DNS   *resolver.Resolver
	Hello string // the server's name
	Looks *Looks // at keys so far; nil: none is shared
}

// Looks are what was found of the records of keys. They are safe for concurrent use.
type Looks struct{ byName sync.Map }

// Published is that of package keys, which asks all name servers of a domain; it is asked once for
// each key of Looks.
func (r Receiver) Published(ctx context.Context, k keys.Key) (wrong string, err error) {
	look := func() (string, error) { return keys.Published(ctx, r.DNS, k) }
	if r.Looks == nil {
		return look()
	}
	first, _ := r.Looks.byName.LoadOrStore(k.Name(), sync.OnceValues(look))
	return first.(func() (string, error))()
}

// Mail is what a receiver goes by.
type Mail struct {
	Author     string       // domain of From
	Sender     string       // domain of the envelope's sender; "": the null sender
	Signatures []keys.Key   // whose signatures it has
	Addrs      []netip.Addr // that it may come from; none: not known
	Upstream   bool         // it comes from an upstream, which SPF and PTR are about
}

// Signatures are the keys of a list that sign mail of an author's domain.
func Signatures(list []keys.Key, author string, mode dkim.Mode) (chosen []keys.Key) {
	for _, s := range mode.Of(dkim.Find(keys.SignersOf(list), author)) {
		i := slices.IndexFunc(list, func(k keys.Key) bool { return k.Domain == s.Domain && k.Selector == s.Selector })
		chosen = append(chosen, list[i])
	}
	return chosen
}

// Finding is what a receiver finds.
type Finding struct {
	Check   string `json:"check"`             // SPF, DKIM, DMARC or PTR
	Of      string `json:"of"`                // a domain or an address
	Result  string `json:"result"`            // pass, none, or why not: by SPF as RFC 7208 has it; else fail, or temperror without an answer
	Aligned bool   `json:"aligned,omitempty"` // SPF and DKIM: it counts for DMARC
	Why     string `json:"why,omitempty"`
	Cause   string `json:"-"`                 // SPF: Why without the domain
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

// Judge judges mail by SPF, DKIM and DMARC.
func (r Receiver) Judge(ctx context.Context, m Mail) (list []Finding) {
	list = make([]Finding, len(m.Signatures))
	var all panics.Group
	for i, k := range m.Signatures {
		all.Go(func() { list[i] = r.dkim(ctx, k) })
	}
	policy, policyErr := r.policy(ctx, m.Author)
	var spf reasons
	var findings []Finding
	if !m.Upstream {
		findings = r.spf(ctx, m, policy.strictSPF, &spf)
	}
	all.Wait()
	var why reasons
	for i, k := range m.Signatures {
		f := &list[i]
		near := aligned(k.Domain, m.Author, policy.strictDKIM)
		switch f.Aligned = near && f.Result == Pass; {
		case f.Aligned:
			why.by = append(why.by, string(k.Algorithm))
		case !near:
			why.not = append(why.not, fmt.Sprintf("DKIM of %s is not aligned with %s", k.Domain, m.Author))
		default:
			why.unknown = why.unknown || f.Result == TempError
			why.not = append(why.not, fmt.Sprintf("DKIM of %s (%s): %s", k.Domain, k.Algorithm, f.Result))
		}
	}
	if len(why.by) > 0 {
		why.by = []string{"DKIM (" + strings.Join(why.by, ", ") + ")"}
	}
	if len(m.Signatures) == 0 {
		list = append(list, Finding{Check: "DKIM", Of: m.Author, Result: None, Why: "mail is not signed"})
		why.not = append(why.not, "mail is not signed")
	}
	why.by, why.not, why.unknown = append(why.by, spf.by...), append(why.not, spf.not...), why.unknown || spf.unknown
	return append(append(list, findings...), dmarc(m, policy, policyErr, why))
}

// reasons are what DMARC passes by, or why not.
type reasons struct {
	by, not []string
	unknown bool // DNS has not answered about what it might pass by
}

// dkim judges the signatures of a key by the record that its name servers have.
func (r Receiver) dkim(ctx context.Context, k keys.Key) Finding {
	f := Finding{Check: "DKIM", Of: k.Domain, Result: Pass, Why: fmt.Sprintf("selector %s, %s", k.Selector, k.Algorithm)}
	switch wrong, err := r.Published(ctx, k); {
	case err != nil:
		f.Result, f.Why = TempError, fmt.Sprintf("selector %s: %v", k.Selector, err)
	case wrong != "":
		f.Result, f.Why, f.Publish = Fail, fmt.Sprintf("selector %s: %s", k.Selector, wrong), k.Zone()
	}
	return f
}

// spf judges each address. DMARC passes by it if all of them may send, in a domain that is aligned.
func (r Receiver) spf(ctx context.Context, m Mail, strict bool, dmarc *reasons) (list []Finding) {
	domain := m.Sender
	if domain == "" {
		domain = r.Hello // RFC 7208 section 2.4
	}
	if len(m.Addrs) == 0 {
		dmarc.not = []string{"the address that mail leaves from is not known"}
		return nil
	}
	near := aligned(domain, m.Author, strict)
	var bad spf.Result
	for _, addr := range m.Addrs {
		result, err := r.checkSPF(ctx, domain, addr)
		f := Finding{Check: "SPF", Of: addr.String(), Result: string(result), Aligned: near, Why: domain}
		if result != spf.Pass {
			f.Cause, f.Aligned, bad = Cause(err), false, result
			f.Why = domain + ": " + f.Cause
			if result != spf.TempError && result != spf.PermError { // no term helps a record that is invalid
				f.Publish = r.allowing(ctx, domain, m.Addrs)
			}
		}
		list = append(list, f)
		if result == spf.None {
			break // and so for all of them
		}
	}
	switch {
	case !near:
		dmarc.not = []string{fmt.Sprintf("SPF is about %s, which is not aligned with %s", domain, m.Author)}
	case bad != "":
		dmarc.not, dmarc.unknown = []string{fmt.Sprintf("SPF of %s: %s", domain, bad)}, bad == spf.TempError
	default:
		dmarc.by = []string{"SPF"}
	}
	return list
}

func dmarc(m Mail, p policy, err error, why reasons) Finding {
	f := Finding{Check: "DMARC", Of: m.Author, Record: p.record}
	switch {
	case len(why.by) > 0:
		f.Result, f.Why = Pass, "by "+strings.Join(why.by, " and ")
	case why.unknown:
		f.Result, f.Why = TempError, strings.Join(why.not, "; ")
	case m.Upstream:
		f.Result, f.Why = None, strings.Join(why.not, "; ")+"; the upstream may sign, or be in the domain's SPF record"
	default:
		f.Result, f.Why = Fail, strings.Join(why.not, "; ")
	}
	switch {
	case err != nil:
		f.Result, f.Why = TempError, Cause(err)
	case p.record == "":
		said := map[string]string{Pass: "it would pass ", Fail: "it would fail: "}[f.Result]
		f.Result, f.Why = None, "no record at _dmarc."+m.Author+"; "+said+f.Why
		f.Publish = keys.ZoneLine("_dmarc."+m.Author, "v=DMARC1; p=none; rua=mailto:postmaster@"+m.Author)
	default:
		f.Why += "; its policy is " + p.wants
	}
	return f
}

// PTR judges the name of an address.
func (r Receiver) PTR(ctx context.Context, addr netip.Addr) Finding {
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
		return "", nil, fmt.Errorf("asked for its name: %s", Cause(err))
	}
	for _, name := range names[:min(len(names), mostNames)] {
		forward, err := r.DNS.Addresses(ctx, name)
		if err != nil && !errors.Is(err, resolver.ErrNone) {
			return "", names, fmt.Errorf("asked for %s: %s", name, Cause(err))
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
