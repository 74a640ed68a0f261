package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"testing"
	"time"
)

// chain is a server's certificate with its issuers.
type chain struct{ leaf, intermediate, root *x509.Certificate }

// issue makes a certificate; without an issuer it signs itself.
func issue(t *testing.T, template, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if issuer == nil {
		issuer, issuerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
}

func newChain(t *testing.T, names ...string) (c chain) {
	t.Helper()
	var key *ecdsa.PrivateKey
	c.root, key = issue(t, authority("root"), nil, nil)
	c.intermediate, key = issue(t, authority("intermediate"), c.root, key)
	c.leaf, _ = issue(t, &x509.Certificate{DNSNames: names}, c.intermediate, key)
	return c
}

// digest is the record about a certificate.
func digest(usage, selector, matching uint8, c *x509.Certificate) TLSA {
	whole := c.Raw
	if selector == selectsKey {
		whole = c.RawSubjectPublicKeyInfo
	}
	switch matching {
	case matchesSHA256:
		sum := sha256.Sum256(whole)
		whole = sum[:]
	case matchesSHA512:
		sum := sha512.Sum512(whole)
		whole = sum[:]
	}
	return TLSA{usage, selector, matching, whole}
}

func TestMatchTLSA(t *testing.T) {
	t.Parallel()
	good, other := newChain(t, "mx.example.org"), newChain(t, "mx.example.org")
	wrongName := newChain(t, "elsewhere.test")
	stale, _ := issue(t, &x509.Certificate{DNSNames: []string{"mx.example.org"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, nil, nil)
	all := func(c chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.intermediate, c.root} }
	noRoot := func(c chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.intermediate} }
	tests := []struct {
		name    string
		records []TLSA
		shown   []*x509.Certificate
		ok      bool
	}{
		{"3 1 1", []TLSA{digest(3, 1, 1, good.leaf)}, all(good), true},
		{"3 1 2", []TLSA{digest(3, 1, 2, good.leaf)}, all(good), true},
		{"3 1 0", []TLSA{digest(3, 1, 0, good.leaf)}, all(good), true},
		{"3 0 1", []TLSA{digest(3, 0, 1, good.leaf)}, all(good), true},
		{"3 0 2", []TLSA{digest(3, 0, 2, good.leaf)}, all(good), true},
		{"3 0 0", []TLSA{digest(3, 0, 0, good.leaf)}, all(good), true},
		{"3 1 1 of another key", []TLSA{digest(3, 1, 1, other.leaf)}, all(good), false},
		{"3 1 1 of the issuer", []TLSA{digest(3, 1, 1, good.intermediate)}, all(good), false},
		{"3 1 1 for another name", []TLSA{digest(3, 1, 1, wrongName.leaf)}, all(wrongName), true},
		{"3 1 1 expired", []TLSA{digest(3, 1, 1, stale)}, []*x509.Certificate{stale}, true},
		{"one of two", []TLSA{digest(3, 1, 1, other.leaf), digest(3, 1, 1, good.leaf)}, all(good), true},
		{"2 1 1", []TLSA{digest(2, 1, 1, good.root)}, all(good), true},
		{"2 0 1", []TLSA{digest(2, 0, 1, good.root)}, all(good), true},
		{"2 1 2", []TLSA{digest(2, 1, 2, good.root)}, all(good), true},
		{"2 1 1 of an intermediate", []TLSA{digest(2, 1, 1, good.intermediate)}, noRoot(good), true},
		{"2 1 1, not shown", []TLSA{digest(2, 1, 1, good.root)}, noRoot(good), false},
		{"2 0 0, not shown", []TLSA{digest(2, 0, 0, good.root)}, noRoot(good), true},
		{"2 1 1 for another name", []TLSA{digest(2, 1, 1, wrongName.root)}, all(wrongName), false},
		{"2 1 1 of another authority", []TLSA{digest(2, 1, 1, other.root)}, all(good), false},
		{"2 1 1 shown, which did not certify it", []TLSA{digest(2, 1, 1, other.root)}, append(all(good), other.root), false},
		{"2 1 1 expired", []TLSA{digest(2, 1, 1, stale)}, []*x509.Certificate{stale}, false},
		{"2 1 1 fails and 3 1 1 does not", []TLSA{digest(2, 1, 1, other.root), digest(3, 1, 1, good.leaf)}, all(good), true},
		{"nothing shown", []TLSA{digest(3, 1, 1, good.leaf)}, nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if len(usableTLSA(test.records)) != len(test.records) {
				t.Fatal("not usable")
			}
			if _, err := matchTLSA(test.records, []string{"mx.example.org", "example.org"}, test.shown, time.Now()); (err == nil) != test.ok {
				t.Error(err)
			}
		})
	}
}

// The name of the domain does for usage 2 too.
func TestMatchTLSAByTheDomain(t *testing.T) {
	t.Parallel()
	c := newChain(t, "example.org")
	shown := []*x509.Certificate{c.leaf, c.intermediate, c.root}
	record := []TLSA{digest(2, 1, 1, c.root)}
	for _, mxSecure := range []bool{true, false} {
		p, err := Decide(Facts{TLSA: record, Base: "mx.example.org", Host: "mx.example.org", Domain: "example.org", MXSecure: mxSecure})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := matchTLSA(p.records, p.names, shown, time.Now()); (err == nil) != mxSecure {
			t.Errorf("MX validated %v: %v", mxSecure, err)
		}
	}
}

func TestUsableTLSA(t *testing.T) {
	t.Parallel()
	c := newChain(t, "mx.example.org").leaf
	for name, test := range map[string]struct {
		records []TLSA
		usable  int
	}{
		"0 and 1 are not for mail":           {[]TLSA{digest(0, 0, 1, c), digest(1, 1, 1, c)}, 0},
		"unknown usage":                      {[]TLSA{digest(4, 1, 1, c), digest(255, 1, 1, c)}, 0},
		"unknown selector":                   {[]TLSA{{3, 2, 1, make([]byte, 32)}}, 0},
		"unknown matching":                   {[]TLSA{{3, 1, 3, make([]byte, 32)}}, 0},
		"digest too short":                   {[]TLSA{{3, 1, 1, make([]byte, 31)}, {3, 1, 2, make([]byte, 32)}, {3, 1, 1, nil}}, 0},
		"no certificate":                     {[]TLSA{{3, 0, 0, []byte("x")}, {3, 1, 0, []byte("x")}}, 0},
		"the stronger digest":                {[]TLSA{digest(3, 1, 1, c), digest(3, 1, 2, c)}, 1},
		"a stronger one of another usage":    {[]TLSA{digest(3, 1, 1, c), digest(2, 1, 2, c)}, 2},
		"a stronger one of another selector": {[]TLSA{digest(3, 1, 1, c), digest(3, 0, 2, c)}, 2},
		"a stronger one that cannot be used": {[]TLSA{digest(3, 1, 1, c), {3, 1, 2, []byte("x")}}, 1},
		"a whole one beside a digest":        {[]TLSA{digest(3, 1, 0, c), digest(3, 1, 2, c)}, 2},
		"none":                               {nil, 0},
		"a thousand":                         {slices.Repeat([]TLSA{digest(3, 1, 1, c)}, 1000), mostTLSA},
		"the last of them can be used":       {append(slices.Repeat([]TLSA{{3, 1, 3, nil}}, 1000), digest(3, 1, 1, c)), 1},
	} {
		if got := usableTLSA(test.records); len(got) != test.usable {
			t.Errorf("%s: %v", name, got)
		}
	}
}
