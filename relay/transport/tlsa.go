package transport

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// The values of TLSA records that are used for mail (RFC 6698 section 2.1, RFC 7672 section 3.1).
const (
	usageTA = 2 // an authority of the server's own
	usageEE = 3 // the server's certificate itself

	selectsCert = 0
	selectsKey  = 1

	matchesWhole  = 0
	matchesSHA256 = 1
	matchesSHA512 = 2
)

// TLSA is one TLSA record.
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// String gives the record's first three fields and the beginning of its data, as in "3 1 1 9d0a2c1e…".
func (r TLSA) String() string {
	return fmt.Sprintf("%d %d %d %s…", r.Usage, r.Selector, r.Matching, hex.EncodeToString(r.Data[:min(len(r.Data), 4)]))
}

// newTLSA reads a record of DNS. One whose data is not hexadecimal cannot be used, and is not left out.
func newTLSA(rr *dns.TLSA) TLSA {
	data, _ := hex.DecodeString(rr.Certificate)
	return TLSA{rr.Usage, rr.Selector, rr.MatchingType, data}
}

// usable reports a record that can be compared with a certificate. Usages 0 and 1 are not for mail
// (RFC 7672 section 3.1.3).
func (r TLSA) usable() bool {
	if r.Usage != usageTA && r.Usage != usageEE || r.Selector > selectsKey {
		return false
	}
	switch r.Matching {
	case matchesSHA256:
		return len(r.Data) == sha256.Size
	case matchesSHA512:
		return len(r.Data) == sha512.Size
	case matchesWhole:
		if r.Selector == selectsKey {
			_, err := x509.ParsePKIXPublicKey(r.Data)
			return err == nil
		}
		_, err := x509.ParseCertificate(r.Data)
		return err == nil
	}
	return false
}

// mostTLSA is how many records of a host are compared with its certificates: each comparison hashes
// whole certificates, and both numbers are the host's to choose.
const mostTLSA = 64

// usableTLSA are the records that count, of the first mostTLSA that can be compared: beside a SHA-512
// digest one by SHA-256 of the same usage and selector is ignored (RFC 7671 section 9).
func usableTLSA(records []TLSA) []TLSA {
	list := slices.DeleteFunc(slices.Clone(records), func(r TLSA) bool { return !r.usable() })
	list = list[:min(len(list), mostTLSA)]
	return slices.DeleteFunc(slices.Clone(list), func(r TLSA) bool {
		return r.Matching == matchesSHA256 && slices.ContainsFunc(list, func(s TLSA) bool {
			return s.Matching == matchesSHA512 && s.Usage == r.Usage && s.Selector == r.Selector
		})
	})
}

// matches reports that a record is about a certificate, or its key.
func (r TLSA) matches(c *x509.Certificate) bool {
	whole := c.Raw
	if r.Selector == selectsKey {
		whole = c.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case matchesSHA256:
		sum := sha256.Sum256(whole)
		return bytes.Equal(sum[:], r.Data)
	case matchesSHA512:
		sum := sha512.Sum512(whole)
		return bytes.Equal(sum[:], r.Data)
	}
	return bytes.Equal(whole, r.Data)
}

// Why a certificate does not satisfy TLSA records.
var (
	ErrNoMatch   = errors.New("its certificate matches none of the domain's TLSA records")
	ErrOtherName = errors.New("its certificate is by an authority of the TLSA records, and for another name")
)

// matchTLSA compares the certificates that a server showed, its own first, with usable records,
// and returns the record that one of them matches. By usage 3 the name and the time of the
// certificate do not count (RFC 7672 section 3.1.1); by usage 2 the certificate must have one of
// names and be certified by the authority (section 3.1.2), which the server has to show.
func matchTLSA(records []TLSA, names []string, shown []*x509.Certificate, now time.Time) (TLSA, error) {
	if len(shown) == 0 {
		return TLSA{}, ErrNoMatch
	}
	for _, r := range records {
		if r.Usage == usageEE && r.matches(shown[0]) {
			return r, nil
		}
	}
	err := ErrNoMatch
	for _, r := range records {
		if r.Usage != usageTA {
			continue
		}
		failed := matchAuthority(r, names, shown, now)
		if failed == nil {
			return r, nil
		}
		if !errors.Is(failed, ErrNoMatch) {
			err = failed
		}
	}
	return TLSA{}, err
}

// matchAuthority verifies the certificate that was shown first, up to an authority that r is about.
func matchAuthority(r TLSA, names []string, shown []*x509.Certificate, now time.Time) error {
	authorities, others, any := x509.NewCertPool(), x509.NewCertPool(), false
	for _, c := range shown {
		if r.matches(c) {
			authorities.AddCert(c)
			any = true
		} else {
			others.AddCert(c)
		}
	}
	if !any {
		whole, err := x509.ParseCertificate(r.Data)
		if err != nil || r.Matching != matchesWhole {
			return ErrNoMatch
		}
		authorities.AddCert(whole) // which need not be shown, as the record has it
	}
	if _, err := shown[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: others, CurrentTime: now}); err != nil {
		return fmt.Errorf("by TLSA record %s: %w", r, err)
	}
	if !slices.ContainsFunc(names, func(name string) bool { return shown[0].VerifyHostname(name) == nil }) {
		return ErrOtherName
	}
	return nil
}
