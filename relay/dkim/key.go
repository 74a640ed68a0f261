package dkim

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Algorithm is that of a key, by its name in the k= tag of a key record (RFC 6376 section 3.6.1, RFC
// 8463 section 4).
type Algorithm string

// The algorithms. The a= tag of a signature is the algorithm with "-sha256" behind it.
const (
	RSA     Algorithm = "rsa"
	Ed25519 Algorithm = "ed25519"
)

// Algorithms are all. RSA comes first: some verifiers look at the first signature only.
func Algorithms() []Algorithm { return []Algorithm{RSA, Ed25519} }

// ParseAlgorithms gives the algorithms with these names, at least one.
func ParseAlgorithms(names []string) (list []Algorithm, err error) {
	for _, name := range names {
		if !slices.Contains(Algorithms(), Algorithm(name)) {
			return nil, fmt.Errorf("there is no algorithm %q: use rsa,ed25519", name)
		}
		list = append(list, Algorithm(name))
	}
	if list == nil {
		return nil, errors.New("use rsa,ed25519")
	}
	return list, nil
}

// Key signs for a domain. Its public half is in the TXT record of Selector._domainkey.Domain.
type Key struct {
	Domain    string // in A-labels and small letters
	Selector  string // likewise
	Algorithm Algorithm
	Signer    crypto.Signer // an *rsa.PrivateKey or an ed25519.PrivateKey; nil: another node has it
}

// Keys gives the keys that may sign for exactly this domain now, in A-labels and small letters: at
// most one of each algorithm.
type Keys interface {
	Keys(domain string) []Key
}

// Find returns the keys that sign mail whose author is at a domain, in A-labels and small letters:
// its own or, if it has none, those of the nearest domain above it. That may be the organisational
// domain, but none above that: receivers would not take it for the author's (RFC 7489 section
// 3.1.1). keys may be nil.
func Find(keys Keys, author string) []Key {
	if keys == nil {
		return nil
	}
	for domain := author; ; {
		if found := keys.Keys(domain); len(found) > 0 {
			if domain != author && Organisation(domain) != Organisation(author) {
				return nil
			}
			return found
		}
		_, above, ok := strings.Cut(domain, ".")
		if !ok {
			return nil
		}
		domain = above
	}
}

// Organisation returns a domain's organisational domain, or the domain itself if it has none.
func Organisation(domain string) string {
	if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return org
	}
	return domain
}

// Registry reports a domain below which anybody can register one, such as com or co.uk.
func Registry(domain string) bool {
	suffix, icann := publicsuffix.PublicSuffix(domain)
	return icann && suffix == domain
}

// Mode says which keys sign the mail of a way.
type Mode string

// The modes. Some receivers know no Ed25519, and some providers take only one signature.
const (
	Off     Mode = "off"
	OnlyRSA Mode = "rsa"
	Both    Mode = "both" // as far as the domain has both
)

// Valid reports one of the modes.
func (m Mode) Valid() bool { return m == Off || m == OnlyRSA || m == Both }

// Of chooses among the keys of a domain, in the order of Algorithms.
func (m Mode) Of(keys []Key) (chosen []Key) {
	for _, want := range Algorithms() {
		for _, k := range keys {
			if k.Algorithm == want && (m == Both || m == OnlyRSA && want == RSA) {
				chosen = append(chosen, k)
			}
		}
	}
	return chosen
}
