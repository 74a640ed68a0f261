package upstream

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"

	"postern/internal/refusal"
)

const pinPrefix = "sha256:"

// Pin names the public key of a certificate: "sha256:" and the hash of its
// SubjectPublicKeyInfo in base64, as in RFC 7469 section 2.4.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return pinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

// PinsFrom puts pins in the form of Account.TLSPins; their hashes may be in hexadecimal. Errors:
// refusal.ErrInvalid.
func PinsFrom(list []string) (string, error) {
	var pins []string
	for _, text := range list {
		hash := strings.TrimPrefix(text, pinPrefix)
		sum, err := base64.StdEncoding.DecodeString(hash)
		if len(hash) == hex.EncodedLen(sha256.Size) {
			sum, err = hex.DecodeString(hash)
		}
		if err != nil || len(sum) != sha256.Size || hash == text {
			return "", refusal.Invalid("pin %q is not sha256: and the hash of a public key in base64; 'postern upstream test' shows the server's", text)
		}
		pins = append(pins, pinPrefix+base64.StdEncoding.EncodeToString(sum))
	}
	return strings.Join(pins, ","), nil
}

// Pinned reports that a certificate's key is one of the account's.
func (a *Account) Pinned(c *x509.Certificate) bool {
	return slices.Contains(strings.Split(a.TLSPins, ","), Pin(c))
}
