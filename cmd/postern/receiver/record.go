package receiver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"blitiri.com.ar/go/spf"

	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
)

// checkSPF judges mail of a domain that comes from an address. The error explains the result.
func (r Receiver) checkSPF(ctx context.Context, domain string, addr netip.Addr) (spf.Result, error) {
	return spf.CheckHostWithSender(net.IP(addr.AsSlice()), r.Hello, "postmaster@"+domain,
		spf.WithContext(ctx), spf.WithResolver(spfResolver{r.DNS}))
}

// allowing is the SPF record of a domain, as a line of a zone file, with these addresses allowed; ""
// if it has several, or one that is not known now.
func (r Receiver) allowing(ctx context.Context, domain string, addrs []netip.Addr) string {
	records, err := r.Records(ctx, domain, "v=spf1")
	if err != nil || len(records) > 1 {
		return ""
	}
	terms := []string{"v=spf1", "~all"}
	if len(records) == 1 {
		terms = strings.Fields(records[0])
	} else if mx, _, _ := r.DNS.MX(ctx, domain); len(mx) > 0 && mx[0].Mx != "." {
		terms = []string{"v=spf1", "mx", "~all"}
	}
	end := slices.IndexFunc(terms, func(term string) bool {
		term = strings.ToLower(strings.TrimLeft(term, "+-~?"))
		return term == "all" || strings.HasPrefix(term, "redirect=")
	})
	if end < 0 {
		end = len(terms)
	}
	for _, addr := range addrs {
		term := Term(addr)
		if !slices.Contains(terms, term) {
			terms = slices.Insert(terms, end, term)
			end++
		}
	}
	return keys.ZoneLine(domain, strings.Join(terms, " "))
}

// Term is the term of an SPF record that allows an address.
func Term(addr netip.Addr) string {
	if addr.Is6() {
		return "ip6:" + addr.String()
	}
	return "ip4:" + addr.String()
}

// Cause is an error about a name that is known, in words without that name.
func Cause(err error) string {
	var library *net.DNSError
	if errors.As(err, &library) && library.UnwrapErr != nil {
		err = library.UnwrapErr
	}
	var question *resolver.Error
	if errors.As(err, &question) {
		err = question.Err
	}
	switch text := err.Error(); text {
	case "matched all":
		return `it matches only "all"`
	case "invalid ipX value":
		return "an ip4 or ip6 term has no valid address"
	default:
		return text
	}
}

// Records are the TXT records of a name that begin with a version; to find none is not an error.
func (r Receiver) Records(ctx context.Context, name, version string) (list []string, err error) {
	texts, err := r.DNS.TXT(ctx, name)
	for _, text := range texts {
		if len(text) >= len(version) && strings.EqualFold(text[:len(version)], version) {
			list = append(list, text)
		}
	}
	if errors.Is(err, resolver.ErrNone) {
		err = nil
	}
	return list, err
}

// policy is what a domain says about mail that DMARC finds wrong.
type policy struct {
	record                string // "": it says nothing
	wants                 string // none, quarantine or reject
	strictDKIM, strictSPF bool   // only this very domain is aligned
}

// policy is that of the domain or, when it has none, of its organisational domain (RFC 7489 section
// 6.6.3).
func (r Receiver) policy(ctx context.Context, domain string) (p policy, err error) {
	asked := []string{domain}
	if org := dkim.Organisation(domain); org != domain {
		asked = append(asked, org)
	}
	for _, name := range asked {
		records, err := r.Records(ctx, "_dmarc."+name, "v=DMARC1")
		if err != nil {
			return p, err
		}
		if len(records) != 1 { // several count as none
			continue
		}
		tags := map[string]string{}
		for tag := range strings.SplitSeq(records[0], ";") {
			key, value, _ := strings.Cut(tag, "=")
			tags[strings.ToLower(strings.TrimSpace(key))] = strings.ToLower(strings.TrimSpace(value))
		}
		p = policy{record: records[0], wants: tags["p"], strictDKIM: tags["adkim"] == "s", strictSPF: tags["aspf"] == "s"}
		if name != domain && tags["sp"] != "" {
			p.wants = tags["sp"]
		}
		break
	}
	return p, nil
}

// aligned reports that a domain counts for the author's (RFC 7489 section 3.1).
func aligned(domain, author string, strict bool) bool {
	return domain == author || !strict && dkim.Organisation(domain) == dkim.Organisation(author)
}

// spfResolver asks for the library that judges.
type spfResolver struct{ dns *resolver.Resolver }

func (s spfResolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	list, err := s.dns.TXT(ctx, name)
	return list, judged(err)
}

func (s spfResolver) LookupMX(ctx context.Context, name string) (list []*net.MX, err error) {
	records, _, err := s.dns.MX(ctx, name)
	for _, mx := range records {
		list = append(list, &net.MX{Host: mx.Mx, Pref: mx.Preference})
	}
	return list, judged(err)
}

func (s spfResolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := s.dns.Addresses(ctx, host)
	list := make([]net.IPAddr, len(addrs.List))
	for i, a := range addrs.List {
		list[i] = net.IPAddr{IP: a.AsSlice()}
	}
	return list, judged(err)
}

func (s spfResolver) LookupAddr(ctx context.Context, text string) ([]string, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, err
	}
	list, err := s.dns.Names(ctx, addr)
	return list, judged(err)
}

// judged is an error as the library wants it. It takes one that is not marked as temporary for a
// defect of the record.
func judged(err error) error {
	if err == nil {
		return nil
	}
	none := errors.Is(err, resolver.ErrNone)
	return &net.DNSError{Err: err.Error(), UnwrapErr: err, IsNotFound: none, IsTemporary: !none}
}
