package certificate

import (
	"crypto/tls"
	"time"
)

// Status is what is known of one certificate. It is a copy; times that are not known
// are zero.
type Status struct {
	Name   string   // the first name of the certificate, or the one that is ordered
	Names  []string // all names of the certificate
	Source string   // "file PATH", "acme AUTHORITY" or "self-signed"
	Issuer string   // who has signed it

	NotBefore, NotAfter time.Time
	// StandIn says that clients get a self-signed certificate because none has been
	// issued yet.
	StandIn bool

	Error        string // of the last attempt to load, get or renew it; "": it worked
	FailingSince time.Time
	LastSuccess  time.Time // when it was last found in order
	NextAttempt  time.Time // while failing
}

// trouble is the memory of attempts.
type trouble struct {
	last        error
	since       time.Time
	next        time.Time
	succeededAt time.Time
}

func (t *trouble) success(now time.Time) { *t = trouble{succeededAt: now} }

func (t *trouble) failure(now time.Time, err error, next time.Time) {
	if t.last == nil {
		t.since = now
	}
	t.last, t.next = err, next
}

func statusOf(cert *tls.Certificate, t trouble) Status {
	s := Status{FailingSince: t.since, LastSuccess: t.succeededAt, NextAttempt: t.next}
	if t.last != nil {
		s.Error = t.last.Error()
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
