package resolver

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// udpSize is the longest answer over UDP that is asked for: it is not fragmented anywhere
// (dnsflagday.net/2020).
const udpSize = 1232

// exchange asks over UDP, and over TCP when the answer does not fit.
func exchange(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
	reply, err := send(ctx, "udp", server, query)
	if err == nil && reply.Truncated {
		reply, err = send(ctx, "tcp", server, query)
	}
	return reply, err
}

func send(ctx context.Context, network, server string, query *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: tryTime}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	query.Id = dns.Id()
	reply, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	return reply, err
}

// isWithoutEDNS reports the answer of a server that does not know EDNS (RFC 6891 section 7).
func isWithoutEDNS(reply *dns.Msg) bool {
	return (reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented) && reply.IsEdns0() == nil
}

// found is an answer with what is kept about it. Secure is the AD bit of server.
type found struct {
	Answer
	err    error // ErrNone or ErrElsewhere
	server string
	ttl    time.Duration // 0: not to be kept
	size   int           // octets of memory, at most
}

// maxAliases bounds a chain of aliases; real ones have two or three.
const maxAliases = 8

// read takes from a reply what it says about a question.
func (r *Resolver) read(reply *dns.Msg, q question) (found, error) {
	if !reply.Response || len(reply.Question) != 1 || dns.CanonicalName(reply.Question[0].Name) != q.name || reply.Question[0].Qtype != q.kind {
		return found{}, refusal{reply.Rcode, "the answer is to another question"}
	}
	if reply.Truncated { // over TCP, where there is no room for more
		return found{}, refusal{reply.Rcode, "the answer is cut off"}
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return found{}, refused(reply)
	}
	f := found{size: entrySize + reply.Len(), Answer: Answer{Canonical: q.name, Secure: reply.AuthenticatedData && !r.direct}}
	ttl := maxTTL
	for range maxAliases + 1 {
		alias := ""
		for _, record := range reply.Answer {
			head := record.Header()
			if head.Class != dns.ClassINET || dns.CanonicalName(head.Name) != f.Canonical {
				continue
			}
			cname, isAlias := record.(*dns.CNAME)
			switch {
			case head.Rrtype == q.kind:
				f.Records = append(f.Records, record)
				f.size += recordSize
				if txt, ok := record.(*dns.TXT); ok {
					f.size += pieceSize * len(txt.Txt)
				}
			case isAlias:
				alias = dns.CanonicalName(cname.Target)
			default:
				continue
			}
			ttl = min(ttl, time.Duration(head.Ttl)*time.Second)
		}
		if len(f.Records) > 0 {
			f.ttl = ttl
			return f, nil
		}
		if alias == "" {
			return r.readNone(reply, q, f, ttl)
		}
		f.Canonical = alias
	}
	return found{}, ErrAliases
}

// readNone reads the rest of a reply without a record of the type.
func (r *Resolver) readNone(reply *dns.Msg, q question, f found, ttl time.Duration) (found, error) {
	switch {
	case r.direct && f.Canonical != q.name:
		f.err = ErrElsewhere
		return f, nil
	case r.direct && !reply.Authoritative:
		return found{}, refusal{reply.Rcode, "it is not authoritative for " + q.name}
	case !reply.RecursionAvailable && !reply.Authoritative:
		return found{}, refusal{reply.Rcode, "it does not ask others for us"}
	}
	f.err = ErrNone
	for _, record := range reply.Ns { // RFC 2308 section 5; without a SOA it is not to be kept
		if soa, ok := record.(*dns.SOA); ok {
			f.ttl = min(ttl, maxNoneTTL, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return f, nil
}

// maxWhy bounds a server's own words about a failure, in octets: they may be as long as the reply.
const maxWhy = 200

// refused is the error of a reply that is neither an answer nor a definite no.
func refused(reply *dns.Msg) error {
	text := dns.RcodeToString[reply.Rcode]
	if opt := reply.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if why, ok := option.(*dns.EDNS0_EDE); ok { // RFC 8914
				words := []string{dns.ExtendedErrorCodeToString[why.InfoCode], why.ExtraText[:min(len(why.ExtraText), maxWhy)]}
				text += " (" + strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), ": ") + ")"
			}
		}
	}
	return refusal{reply.Rcode, text}
}
