package acme

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// updateTime bounds one exchange with the name server.
const updateTime = 15 * time.Second

// RFC2136 writes the records of DNS-01 by dynamic updates (RFC 2136) that are signed
// with a TSIG key (RFC 8945). It is a libdns provider for TXT records.
type RFC2136 struct {
	Server       string // host:port of the zone's primary
	Zone         string // "": the one that certmagic finds
	KeyName      string
	KeyAlgorithm string // "hmac-sha256", "hmac-sha384", "hmac-sha512" or "hmac-sha224"
	KeySecret    string // base64
	// Resolver is host:port of the DNS server that is asked for the zone, and whether
	// the record is there. "": the system's, and then the zone's own name servers.
	Resolver string
}

var (
	_ libdns.RecordAppender = (*RFC2136)(nil)
	_ libdns.RecordDeleter  = (*RFC2136)(nil)
)

// TSIGAlgorithms are the names of the algorithms that a key may be for.
var TSIGAlgorithms = []string{"hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"}

// ValidTSIGSecret reports what is wrong with a key's text.
func ValidTSIGSecret(secret string) error {
	key, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		return errors.New("it is not base64: of what tsig-keygen prints, the file has the word behind secret only, without quotes")
	}
	if len(key) < 16 {
		return fmt.Errorf("its %d octets are too few: a key of tsig-keygen has 32", len(key))
	}
	return nil
}

// AppendRecords implements libdns.RecordAppender.
func (p *RFC2136) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	rrs, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	update := p.update(zone)
	update.Insert(rrs)
	if err := p.exchange(ctx, update); err != nil {
		return nil, fmt.Errorf("add records to %s: %w", zone, err)
	}
	return records, nil
}

// DeleteRecords implements libdns.RecordDeleter. Other records of the name stay.
func (p *RFC2136) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	rrs, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	update := p.update(zone)
	update.Remove(rrs)
	if err := p.exchange(ctx, update); err != nil {
		return nil, fmt.Errorf("delete records from %s: %w", zone, err)
	}
	return records, nil
}

func (p *RFC2136) update(zone string) *dns.Msg {
	if p.Zone != "" {
		zone = p.Zone
	}
	return new(dns.Msg).SetUpdate(dns.Fqdn(zone))
}

// texts are the records as TXT of absolute names. A string in it holds 255 octets.
func texts(zone string, records []libdns.Record) ([]dns.RR, error) {
	var rrs []dns.RR
	for _, record := range records {
		rr := record.RR()
		if rr.Type != "TXT" {
			return nil, fmt.Errorf("a record of type %s: only TXT is written", rr.Type)
		}
		var parts []string
		for rest := rr.Data; ; {
			n := min(len(rest), 255)
			parts, rest = append(parts, rest[:n]), rest[n:]
			if rest == "" {
				break
			}
		}
		rrs = append(rrs, &dns.TXT{
			Hdr: dns.RR_Header{
				Name: dns.Fqdn(libdns.AbsoluteName(rr.Name, zone)), Rrtype: dns.TypeTXT, Class: dns.ClassINET,
				Ttl: uint32(max(rr.TTL, 30*time.Second) / time.Second),
			},
			Txt: parts,
		})
	}
	return rrs, nil
}

// exchange sends an update over TCP and wants a signed NOERROR: an answer without a
// signature may be anybody's.
func (p *RFC2136) exchange(ctx context.Context, update *dns.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, updateTime)
	defer cancel()
	key := dns.CanonicalName(p.KeyName)
	update.SetTsig(key, dns.Fqdn(p.KeyAlgorithm), 300, time.Now().Unix())
	client := &dns.Client{Net: "tcp", Timeout: updateTime, TsigSecret: map[string]string{key: p.KeySecret}}
	reply, _, err := client.ExchangeContext(ctx, update, p.Server)
	if reply != nil && reply.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("name server %s refused the update: %s%s", p.Server, dns.RcodeToString[reply.Rcode], hint(reply))
	}
	if err != nil {
		return fmt.Errorf("name server %s: %w", p.Server, err)
	}
	if reply.IsTsig() == nil {
		return fmt.Errorf("name server %s did not sign its answer", p.Server)
	}
	return nil
}

// hint says what the usual refusals are about.
func hint(reply *dns.Msg) string {
	tsig := reply.IsTsig()
	switch {
	case tsig != nil && tsig.Error != 0:
		return " (" + strings.TrimPrefix(dns.RcodeToString[int(tsig.Error)], "RCODE") + "): it wants another key_name, key_algorithm, secret or time"
	case reply.Rcode == dns.RcodeNotAuth:
		return ": it wants another key, or has no such zone"
	case reply.Rcode == dns.RcodeRefused:
		return ": the key may not update this zone"
	case reply.Rcode == dns.RcodeNotZone:
		return ": the name is not in the zone"
	}
	return ""
}
