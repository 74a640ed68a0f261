package transport

import (
	"crypto/tls"
	"errors"
	"time"
)

// Level is how much a host must prove.
type Level int

const (
	Opportunistic Level = iota // nothing: TLS where it is offered, with any certificate (RFC 7435)
	Encrypted                  // TLS, with any certificate
	Verified                   // TLS, with a certificate for the host's name from a known authority
	Matched                    // TLS, with a certificate that one of the TLSA records is about
)

// Source says where a policy comes from, in traces, logs and metrics.
type Source string

const (
	SourceNone     Source = "none"     // the domain publishes nothing that counts
	SourceDANE     Source = "dane"     // RFC 7672
	SourceSTS      Source = "mta-sts"  // RFC 8461
	SourceTesting  Source = "testing"  // an MTA-STS policy that is not enforced
	SourceOverride Source = "override" // an admin's
	SourceOptional Source = "optional" // the message's: TLS-Required: No (RFC 8689)
)

// Policy is what one mail host must prove. The zero value demands nothing.
type Policy struct {
	Level  Level
	Source Source
	Base   string // of Matched: the name to ask for (SNI)

	records []TLSA   // of Matched: those that can be used
	names   []string // of Matched: what a certificate by usage 2 may be for
}

// Facts are what a policy follows from.
type Facts struct {
	Override *Override // nil: none
	STS      *STS      // nil: the domain has none
	Domain   string    // of the recipients
	Host     string    // as the MX record has it
	MXSecure bool      // the MX records were validated, or that there are none
	Base     string    // where the TLSA records are
	TLSA     []TLSA    // that were validated
}

// ErrNotAllowed is the refusal of a host that an enforced MTA-STS policy does not name.
var ErrNotAllowed = errors.New("the domain's MTA-STS policy does not name it")

// Decide gives the policy of one mail host: an admin's override, else DANE where there are
// validated TLSA records (RFC 7672), else MTA-STS where it is enforced (RFC 8461), else what there
// is. Where the MX records are not validated, DANE says nothing about whose host it is: an enforced
// MTA-STS policy must name it too. The error is ErrNotAllowed.
func Decide(f Facts) (Policy, error) {
	if f.Override != nil {
		return Policy{Level: f.Override.Level, Source: SourceOverride}, nil
	}
	enforced := f.STS != nil && f.STS.Mode == Enforce
	usable := usableTLSA(f.TLSA)
	if enforced && !f.STS.Allows(f.Host) && (len(usable) == 0 || !f.MXSecure) {
		return Policy{Source: SourceSTS}, ErrNotAllowed
	}
	switch {
	case len(usable) > 0:
		names := []string{f.Base}
		if f.MXSecure && f.Domain != f.Base {
			names = append(names, f.Domain) // RFC 7672 section 3.2.2
		}
		return Policy{Level: Matched, Source: SourceDANE, Base: f.Base, records: usable, names: names}, nil
	case enforced:
		return Policy{Level: Verified, Source: SourceSTS}, nil
	case len(f.TLSA) > 0: // RFC 7672 section 2.2
		return Policy{Level: Encrypted, Source: SourceDANE}, nil
	case f.STS != nil && f.STS.Mode == Testing:
		return Policy{Source: SourceTesting}, nil
	}
	return Policy{Source: SourceNone}, nil
}

// Match verifies a session by the TLSA records of a policy that is Matched.
func (p *Policy) Match(state tls.ConnectionState) error {
	_, err := matchTLSA(p.records, p.names, state.PeerCertificates, time.Now())
	return err
}

// Demands says in words what a host must prove.
func (p Policy) Demands() string {
	words := [...]string{"TLS if it is offered, else in clear", "TLS, with any certificate", "TLS, with a certificate for its name from a known authority", "TLS, with a certificate of its TLSA records: "}
	text := words[p.Level]
	for i, r := range p.records {
		if i > 0 {
			text += ", "
		}
		text += r.String()
	}
	return text
}
