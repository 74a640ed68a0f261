package health

import (
	"time"
)

// Certificate is one certificate of the listeners.
type Certificate struct {
	Name                string // as configured: not from a client
	NotBefore, NotAfter time.Time
	FailingSince        time.Time // its renewal; zero when that is well
	Error               string    // why it fails
}

// The kinds of what is wrong with a certificate.
var (
	CertificateNone     = Kind{"tls.none", Failed, "There are listeners and no certificate.", "set certificate and key in [tls], or names in [acme]"}
	certificateOK       = Kind{"tls.ok", OK, "", ""}
	certificateExpired  = Kind{"tls.expired", Failed, "The certificate has expired.", "renew it; a running server takes the new file by itself"}
	certificateNotYet   = Kind{"tls.not-yet", Failed, "The certificate is not valid yet.", "correct this machine's clock, or use the earlier certificate"}
	certificateEnding   = Kind{"tls.ending", Failed, "The certificate expires within the hour.", "renew it now; a running server takes the new file by itself"}
	certificateExpiring = Kind{"tls.expiring", Warning, "The certificate expires soon.", "renew it, and find out why that did not happen by itself"}
	certificateRenewal  = Kind{"acme.renewal", Warning, "The certificate is good, but its renewal fails.",
		"act on the CA's answer; docs/certificates.md has the usual causes"}
	certificateOver = Kind{"acme.expired", Failed, "The certificate has expired, and its renewal fails.",
		"act on the CA's answer, then 'postern certificate renew NAME'"}
	certificateFailing = Kind{"acme.failing", Failed, "The CA does not issue the certificate; clients get a self-signed one.",
		"act on the CA's answer; docs/certificates.md has the usual causes"}
)

// CertificateKinds are those of Certificate.Judge.
func CertificateKinds() []Kind {
	return []Kind{certificateOK, CertificateNone, certificateExpired, certificateNotYet, certificateEnding, certificateExpiring}
}

// RenewalKinds are those of Certificate.Judge that only an authority's certificates have.
func RenewalKinds() []Kind { return []Kind{certificateFailing, certificateOver, certificateRenewal} }

// Bounds of what is left of a certificate.
const (
	tooLate   = time.Hour          // then clients are to be sent elsewhere
	soonAtAll = 7 * 24 * time.Hour // a warning, or a fifth of its life if that is less
)

// Judge says how long the certificate can be used. A renewal that fails is a warning as
// long as there is a certificate to show.
func (c Certificate) Judge(now time.Time) Finding {
	const subject = "certificate"
	left := c.NotAfter.Sub(now)
	until := c.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case c.NotAfter.IsZero():
		return certificateFailing.Found(subject, "%s: there is no certificate: %s", c.Name, c.Error)
	case left <= 0 && !c.FailingSince.IsZero():
		return certificateOver.Found(subject, "%s expired at %s; renewal fails since %s: %s", c.Name, until, c.FailingSince.UTC().Format(time.RFC3339), c.Error)
	case left <= 0:
		return certificateExpired.Found(subject, "%s expired at %s", c.Name, until)
	case now.Before(c.NotBefore):
		return certificateNotYet.Found(subject, "%s is not valid before %s", c.Name, c.NotBefore.UTC().Format(time.RFC3339))
	case left < tooLate:
		return certificateEnding.Found(subject, "%s expires within the hour, at %s", c.Name, until)
	case !c.FailingSince.IsZero():
		return certificateRenewal.Found(subject, "%s: renewal fails since %s: %s; the certificate is valid until %s",
			c.Name, c.FailingSince.UTC().Format(time.RFC3339), c.Error, until)
	case left < min(soonAtAll, c.NotAfter.Sub(c.NotBefore)/5):
		return certificateExpiring.Found(subject, "%s expires at %s", c.Name, until)
	}
	return certificateOK.Found(subject, "%s: valid until %s", c.Name, until)
}
