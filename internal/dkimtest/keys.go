package dkimtest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"

	"postern/relay/dkim"
)

// Keys are those of domains.
type Keys map[string][]dkim.Key

// Keys implements dkim.Keys.
func (k Keys) Keys(domain string) []dkim.Key { return k[domain] }

// New returns an RSA key with selector "r" and an Ed25519 key with selector "e" for each domain.
func New(domains ...string) Keys {
	all := Keys{}
	for _, domain := range domains {
		all[domain] = []dkim.Key{
			{Domain: domain, Selector: "e", Algorithm: dkim.Ed25519, Signer: ed25519.NewKeyFromSeed(seed)},
			{Domain: domain, Selector: "r", Algorithm: dkim.RSA, Signer: rsaKey()},
		}
	}
	return all
}

var seed = []byte("only for tests, of thirty-two oc")

// Records are the TXT records of keys, by their names.
type Records map[string]string

// Records are those of all keys.
func (k Keys) Records() Records {
	records := Records{}
	for domain, keys := range k {
		for _, key := range keys {
			records[key.Selector+"._domainkey."+domain] = fmt.Sprintf("v=DKIM1; k=%s; p=%s", key.Algorithm, public(key.Signer.Public()))
		}
	}
	return records
}

func public(key crypto.PublicKey) string {
	if ed, ok := key.(ed25519.PublicKey); ok {
		return base64.StdEncoding.EncodeToString(ed)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

// LookupTXT answers as net.LookupTXT does.
func (r Records) LookupTXT(name string) ([]string, error) {
	if record, ok := r[strings.TrimSuffix(name, ".")]; ok {
		return []string{record}, nil
	}
	return nil, fmt.Errorf("dkimtest: no record %s", name)
}

// rsaKey is of 2048 bits, as most are.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
