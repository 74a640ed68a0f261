package certificate

import (
	"crypto/tls"
	"time"
)

// Status is the known state of one certificate. It is a copy; unknown times are zero.
type Status struct {
	Name   string   // the first name of the certificate, or the one that is ordered
	Names  []string // all names of the certificate
	Source string   // "file PATH", "acme AUTHORITY" or "self-signed"
	Issuer string   // who has signed it

	NotBefore, NotAfter time.Time
	// StandIn says that clients get a self-signed certificate because none has been
	// issued yet.
	StandIn bool

	Error        string // of the last failure to load, get or renew it; "": it worked
	FailingSince time.Time
	LastSuccess  time.Time // when it was last found in order
	NextTry      time.Time // while failing
}

// Trouble records the failures to load or get a certificate.
type Trouble struct {
	Last        error // nil: the last time it worked
	Since, Next time.Time
	succeeded   time.Time
}

// Success ends the trouble.
func (t *Trouble) Success(now time.Time) { *t = Trouble{succeeded: now} }

// Failure begins the trouble, or prolongs it until next, when it is tried again.
func (t *Trouble) Failure(now time.Time, err error, next time.Time) {
	if t.Last == nil {
		t.Since = now
	}
	t.Last, t.Next = err, next
}

// Status is that of cert, which may be nil.
func (t Trouble) Status(cert *tls.Certificate) Status {
	s := Status{FailingSince: t.Since, LastSuccess: t.succeeded, NextTry: t.Next}
	if t.Last != nil {
		s.Error = t.Last.Error()
	}
	if cert == nil {
		return s
	}
	s.Names = names(cert)
	if len(s.Names) > 0 {
		s.Name = s.Names[0]
	}
	s.Issuer = cert.Leaf.Issuer.CommonName
	s.NotBefore, s.NotAfter = cert.Leaf.NotBefore, cert.Leaf.NotAfter
	return s
}
