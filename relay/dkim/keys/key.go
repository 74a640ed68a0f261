package keys

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/relay/dkim"
	"postern/relay/seal"
)

// State is where a key is in its life.
type State string

// The states of a key.
const (
	Pending  State = "pending"
	Active   State = "active"
	Retiring State = "retiring"
	Retired  State = "retired"
)

// States are all, in the order of a key's life.
func States() []State { return []State{Pending, Active, Retiring, Retired} }

// Key is a key without its private half.
type Key struct {
	Domain    string         `json:"domain"`   // in A-labels and small letters
	Selector  string         `json:"selector"` // likewise
	Algorithm dkim.Algorithm `json:"algorithm"`
	State     State          `json:"state"`
	Since     time.Time      `json:"since"` // that it is in this state
	CreatedAt time.Time      `json:"created_at"`
	EveryDays int            `json:"every_days,omitempty"` // after which the domain's keys are rotated; 0: by an admin
	Gone      bool           `json:"gone,omitempty"`       // its record is no longer there, so it signs nothing
	LookedAt  time.Time      `json:"looked_at,omitzero"`   // at its record, the last time
	Found     string         `json:"found,omitempty"`      // what was wrong then

	Public []byte `json:"-"` // as the record has it
	looks  int    // in a row, that have found the record at all servers; negative: at none
}

// Name is where the record belongs.
func (k *Key) Name() string { return k.Selector + "._domainkey." + k.Domain }

// Record is the text of the record (RFC 6376 section 3.6.1), as web panels take it.
func (k *Key) Record() string {
	return fmt.Sprintf("v=DKIM1; k=%s; p=%s", k.Algorithm, base64.StdEncoding.EncodeToString(k.Public))
}

// mostString is how many octets a string of a TXT record has at most.
const mostString = 255

// Zone is the record as a line of a zone file.
func (k *Key) Zone() string { return ZoneLine(k.Name(), k.Record()) }

// ZoneLine is a TXT record as a line of a zone file, its text in strings of at most 255 octets.
func ZoneLine(name, text string) string {
	var parts []string
	for len(text) > mostString {
		parts, text = append(parts, `"`+text[:mostString]+`"`), text[mostString:]
	}
	return name + ". IN TXT ( " + strings.Join(append(parts, `"`+text+`"`), " ") + " )"
}

// rsaBits is the size of RSA keys: a longer one does not fit into 512 octets of DNS over UDP.
const rsaBits = 2048

// generate makes a key pair: the private half in PKCS #8, the public one as a record has it.
func generate(a dkim.Algorithm) (private, public []byte, err error) {
	var signer crypto.Signer
	if a == dkim.RSA {
		signer, err = rsa.GenerateKey(rand.Reader, rsaBits)
	} else {
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, nil, err
	}
	if private, err = x509.MarshalPKCS8PrivateKey(signer); err != nil {
		return nil, nil, err
	}
	if raw, ok := signer.Public().(ed25519.PublicKey); ok { // RFC 8463 section 4
		return private, raw, nil
	}
	public, err = x509.MarshalPKIXPublicKey(signer.Public())
	return private, public, err
}

// place is what a private half is sealed for.
func place(domain, selector string) string { return "dkim\x00" + domain + "\x00" + selector }

// Sealed describes the private halves, with their places.
func Sealed() seal.Column {
	return seal.Column{
		Read: `
select array['dkim', domain, selector], sealed
from dkim_key where sealed is not null and ($1::bytea is null or substr(sealed, 1, length($1)) <> $1)`,
		Write: `update dkim_key set sealed = $3 where domain = ($1::text[])[2] and selector = ($1::text[])[3] and sealed = $2`,
	}
}

// open gives back the private half of a key.
func open(s *seal.Sealer, domain, selector string, sealed []byte) (crypto.Signer, error) {
	private, err := s.Open(place(domain, selector), sealed)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T signs nothing", key)
	}
	return signer, nil
}

// made is a new key with its sealed private half.
type made struct {
	Key
	sealed []byte
}

// used are the selectors of a domain's keys, and of those that an admin has removed lately: receivers
// may keep the record of one, and verify mail that it has signed.
func used(ctx context.Context, db pg.DB, domain string, list []Key) ([]string, error) {
	selectors, err := audit.Listed(ctx, db, domain, "selectors", 2*day)
	for _, k := range list {
		selectors = append(selectors, k.Selector)
	}
	return selectors, err
}

// newKey makes a pending key whose selector is not among those that are taken.
func newKey(s *seal.Sealer, domain string, a dkim.Algorithm, now time.Time, taken []string) (m made, err error) {
	m.Key = Key{Domain: domain, Algorithm: a, State: Pending, Since: now, CreatedAt: now}
	selector := "p" + now.UTC().Format("20060102") + "-" + string(a)
	m.Selector = selector
	for n := 2; slices.Contains(taken, m.Selector); n++ {
		m.Selector = fmt.Sprintf("%s-%d", selector, n)
	}
	private, public, err := generate(a)
	if err != nil {
		return m, fmt.Errorf("make a key: %w", err)
	}
	m.Public = public
	m.sealed, err = s.Seal(place(domain, m.Selector), private)
	return m, err
}

// Signers are the keys that sign, by domain.
type Signers map[string][]dkim.Key

// Keys implements dkim.Keys.
func (s Signers) Keys(domain string) []dkim.Key { return s[domain] }

// SignersOf returns those of a list that sign, without their private halves.
func SignersOf(list []Key) Signers {
	all := Signers{}
	for from := 0; from < len(list); {
		to, domain := from, list[from].Domain
		for to < len(list) && list[to].Domain == domain {
			to++
		}
		for _, a := range dkim.Algorithms() {
			if k := signs(list[from:to], a); k != nil {
				all[domain] = append(all[domain], dkim.Key{Domain: domain, Selector: k.Selector, Algorithm: a})
			}
		}
		from = to
	}
	return all
}

// List reads the keys of a domain, "" for all, in the order of their domains and of their age.
func List(ctx context.Context, db pg.DB, domain string) ([]Key, error) {
	rows, _ := db.Query(ctx, sqlKeys, domain)
	list := []Key{}
	var k Key
	var looked *time.Time
	_, err := pgx.ForEachRow(rows, []any{&k.Domain, &k.Selector, &k.Algorithm, &k.State, &k.Since, &k.CreatedAt, &k.EveryDays,
		&k.Gone, &looked, &k.Found, &k.Public, &k.looks}, func() error {
		if k.LookedAt = (time.Time{}); looked != nil {
			k.LookedAt = *looked
		}
		list = append(list, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the DKIM keys: %w", err)
	}
	return list, nil
}
