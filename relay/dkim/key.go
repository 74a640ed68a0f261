package dkim

import "crypto"

// Algorithm is that of a key, by its name in the k= tag of a key record (RFC 6376 section 3.6.1, RFC
// 8463 section 4).
type Algorithm string

// The algorithms. The a= tag of a signature is the algorithm with "-sha256" behind it.
const (
	RSA     Algorithm = "rsa"
	Ed25519 Algorithm = "ed25519"
)

// Key signs for a domain. Its public half is in the TXT record of Selector._domainkey.Domain.
type Key struct {
	Domain    string // in A-labels and small letters
	Selector  string // likewise
	Algorithm Algorithm
	Signer    crypto.Signer // an *rsa.PrivateKey or an ed25519.PrivateKey
}

// Keys gives the keys that may sign for exactly this domain now, in A-labels and small letters: at
// most one of each algorithm.
type Keys interface {
	Keys(domain string) []Key
}
