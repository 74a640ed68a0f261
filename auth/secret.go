package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// A generated secret is ps_ID_RANDOM: the credential's id, which finds it without trying each
// of the user's credentials, and 160 random bits, for which a fast hash is enough: nobody
// can guess them.
const (
	secretPrefix = "ps_"
	randomLetter = "abcdefghijkmnpqrstuvwxyz23456789" // 32 of them: 5 bits each, hard to confuse
	randomLength = 32
)

// GeneratePassword returns a password of 160 random bits for a program or for a
// person to paste: 32 letters and digits that are hard to confuse.
func GeneratePassword() string {
	b := make([]byte, randomLength)
	rand.Read(b) // never fails (crypto/rand)
	for i := range b {
		b[i] = randomLetter[b[i]%32]
	}
	return string(b)
}

func secretOf(credential int64, random string) string {
	return secretPrefix + strconv.FormatInt(credential, 10) + "_" + random
}

// parseSecret splits a secret; ok reports that password has the form of one.
func parseSecret(password string) (credential int64, random string, ok bool) {
	rest, ok := strings.CutPrefix(password, secretPrefix)
	id, random, cut := strings.Cut(rest, "_")
	if !ok || !cut || len(random) != randomLength || strings.Trim(random, randomLetter) != "" {
		return 0, "", false
	}
	credential, err := strconv.ParseInt(id, 10, 64)
	if err != nil || credential <= 0 || strconv.FormatInt(credential, 10) != id {
		return 0, "", false
	}
	return credential, random, true
}

func isSecret(password string) bool {
	_, _, ok := parseSecret(password)
	return ok
}

// secretHash is a secret as stored, $hmac-sha256$salt$sum: an HMAC of the random part
// under the salt.
type secretHash struct {
	salt []byte
	sum  []byte
}

const secretScheme = "$hmac-sha256$"

func newSecretHash(random string) secretHash {
	h := secretHash{salt: make([]byte, 16)}
	rand.Read(h.salt)
	h.sum = h.of(random)
	return h
}

// secretDecoy costs as much as a stored hash, and nothing matches it.
func secretDecoy() secretHash {
	h := secretHash{salt: make([]byte, 16), sum: make([]byte, sha256.Size)}
	rand.Read(h.salt)
	rand.Read(h.sum)
	return h
}

func (h secretHash) String() string {
	return secretScheme + phcEncoding.EncodeToString(h.salt) + "$" + phcEncoding.EncodeToString(h.sum)
}

func parseSecretHash(s string) (secretHash, error) {
	rest, ok := strings.CutPrefix(s, secretScheme)
	salt, sum, cut := strings.Cut(rest, "$")
	if !ok || !cut {
		return secretHash{}, fmt.Errorf("%w: not %s", errHash, secretScheme)
	}
	var h secretHash
	var err error
	if h.salt, err = decodeExactly(salt, 16); err != nil {
		return secretHash{}, err
	}
	if h.sum, err = decodeExactly(sum, sha256.Size); err != nil {
		return secretHash{}, err
	}
	return h, nil
}

func decodeExactly(s string, octets int) ([]byte, error) {
	if len(s) != base64.RawStdEncoding.EncodedLen(octets) {
		return nil, fmt.Errorf("%w: length", errHash)
	}
	b, err := phcEncoding.DecodeString(s)
	if err != nil || len(b) != octets {
		return nil, fmt.Errorf("%w: base64", errHash)
	}
	return b, nil
}

func (h secretHash) of(random string) []byte {
	mac := hmac.New(sha256.New, h.salt)
	mac.Write([]byte(random))
	return mac.Sum(nil)
}

// matches takes the whole secret.
func (h secretHash) matches(password string) bool {
	_, random, ok := parseSecret(password)
	return subtle.ConstantTimeCompare(h.of(random), h.sum) == 1 && ok
}
