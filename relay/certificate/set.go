package certificate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
)

// Config says where a Set's certificates come from.
type Config struct {
	Hostname   string // what a client without SNI means
	Pairs      []Pair
	SelfSigned bool         // one for Hostname, made now
	Log        *slog.Logger // nil: nowhere
}

// Keeper gets certificates and renews them.
type Keeper interface {
	Shown() []*tls.Certificate // in the order of preference; from memory
	Status() []Status
	LookNow() // for an admin, who does not wait for it
}

// Set is the certificates of a node's listeners. It is safe for concurrent use.
type Set struct {
	hostname string
	files    []*files
	self     *tls.Certificate // nil: none
	keeper   atomic.Pointer[Keeper]
}

// Open loads the files. Each must be usable now; one that becomes unusable later is
// logged, and the certificate before it stays.
func Open(cfg Config) (*Set, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{hostname: cfg.Hostname}
	for _, pair := range cfg.Pairs {
		f, err := loadFiles(pair, cfg.Log)
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, f)
	}
	if cfg.SelfSigned {
		var err error
		if s.self, err = SelfSign(cfg.Hostname); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Use adds a keeper's certificates. Files go before them where both have a name.
func (s *Set) Use(k Keeper) { s.keeper.Store(&k) }

// GetCertificate is for tls.Config. The order is: the name asked for, the hostname,
// any; among those, one that the client can use and that is not a stand-in.
func (s *Set) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := s.all()
	for _, name := range []string{hello.ServerName, s.hostname} {
		if cert := choose(all, name, hello); cert != nil {
			return cert, nil
		}
	}
	if len(all) > 0 {
		return all[0], nil
	}
	return nil, errors.New("no certificate")
}

// all are the certificates in the order of preference.
func (s *Set) all() []*tls.Certificate {
	var list []*tls.Certificate
	for _, f := range s.files {
		list = append(list, f.shown())
	}
	if k := s.keeper.Load(); k != nil {
		list = append(list, (*k).Shown()...)
	}
	if s.self != nil {
		list = append(list, s.self)
	}
	return list
}

// choose returns the first certificate for name that the client can use, else the
// first for name, else nil.
func choose(all []*tls.Certificate, name string, hello *tls.ClientHelloInfo) *tls.Certificate {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" {
		return nil
	}
	var first *tls.Certificate
	for _, cert := range all {
		if !covers(cert, name) {
			continue
		}
		if hello.SupportsCertificate(cert) == nil {
			return cert
		}
		if first == nil {
			first = cert
		}
	}
	return first
}

// covers matches as RFC 6125 does: a wildcard stands for the first label.
func covers(cert *tls.Certificate, name string) bool {
	_, parent, _ := strings.Cut(name, ".")
	for _, own := range names(cert) {
		if strings.EqualFold(own, name) || parent != "" && strings.EqualFold(own, "*."+parent) {
			return true
		}
	}
	return false
}

// names are those of the certificate; only an ancient one has none but its subject's.
func names(cert *tls.Certificate) []string {
	if len(cert.Leaf.DNSNames) == 0 && cert.Leaf.Subject.CommonName != "" {
		return []string{cert.Leaf.Subject.CommonName}
	}
	return cert.Leaf.DNSNames
}

// Reload reads the files now, for an admin who has changed them. Unusable ones are an
// error, and the former ones stay. It asks the keeper to look, without waiting for it.
func (s *Set) Reload() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.reload())
	}
	if k := s.keeper.Load(); k != nil {
		(*k).LookNow()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reload certificates: %w", err)
	}
	return nil
}

// Status returns the status of each certificate, those of files first.
func (s *Set) Status() []Status {
	var list []Status
	for _, f := range s.files {
		list = append(list, f.status())
	}
	if k := s.keeper.Load(); k != nil {
		list = append(list, (*k).Status()...)
	}
	if s.self != nil {
		status := Trouble{}.Status(s.self)
		status.Source = "self-signed"
		list = append(list, status)
	}
	return slices.Clip(list)
}
