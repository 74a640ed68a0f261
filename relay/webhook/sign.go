package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The headers of a request, by Standard Webhooks 1.0.0.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

// secretSize is the length of a secret in octets.
const secretSize = 32

// tolerance is how far a timestamp may be from a receiver's clock.
const tolerance = 5 * time.Minute

// Secret signs requests.
type Secret []byte

func newSecret() Secret {
	s := make(Secret, secretSize)
	rand.Read(s) // never fails: crypto/rand ends the program instead
	return s
}

// String is the secret as receivers are given it.
func (s Secret) String() string { return "whsec_" + base64.StdEncoding.EncodeToString(s) }

// sign is the signature of a request.
func (s Secret) sign(id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, s)
	fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Headers are those that sign a request, by each secret.
func Headers(secrets []Secret, id string, at time.Time, body []byte) map[string]string {
	var signatures []string
	for _, s := range secrets {
		signatures = append(signatures, s.sign(id, at, body))
	}
	return map[string]string{HeaderID: id, HeaderTimestamp: strconv.FormatInt(at.Unix(), 10), HeaderSignature: strings.Join(signatures, " ")}
}

// Verify looks at a request as a receiver with these secrets would. The error says what is wrong.
func Verify(secrets []Secret, header func(name string) string, body []byte, now time.Time) error {
	id, stamp := header(HeaderID), header(HeaderTimestamp)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	switch at := time.Unix(seconds, 0); {
	case id == "":
		return errors.New(HeaderID + " is missing")
	case err != nil:
		return fmt.Errorf("%s is not a number of seconds since 1970: %q", HeaderTimestamp, stamp)
	case !signed(secrets, id, at, body, header(HeaderSignature)):
		return errors.New(HeaderSignature + " has no signature of this webhook's secrets over this id, timestamp and body: another secret, or the body was changed on the way")
	case now.Sub(at) > tolerance:
		return fmt.Errorf("the signature is right, but older than 5 minutes: %s", at.UTC().Format(time.RFC3339))
	case at.Sub(now) > tolerance:
		return fmt.Errorf("the signature is right, but of the future: %s", at.UTC().Format(time.RFC3339))
	}
	return nil
}

func signed(secrets []Secret, id string, at time.Time, body []byte, header string) bool {
	for signature := range strings.FieldsSeq(header) {
		for _, s := range secrets {
			if hmac.Equal([]byte(signature), []byte(s.sign(id, at, body))) {
				return true
			}
		}
	}
	return false
}
