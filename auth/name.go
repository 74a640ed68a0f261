package auth

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/secure/precis"
)

// ErrName is a user name that cannot be one.
var ErrName = errors.New("not a valid user name")

// CanonicalName returns the one form of a user name that is stored and compared
// byte by byte, so that no two spellings of a name are two users.
//
// A name is an address or a word without "@". The word, or the local part, is
// compared by PRECIS UsernameCaseMapped (RFC 8265 section 3.3); the domain becomes
// A-labels in lower case without a final dot. Characters that PRECIS or IDNA do
// not allow (spaces, controls, compatibility characters, …) give ErrName. It is idempotent.
func CanonicalName(name string) (string, error) {
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("%w: empty or longer than %d octets", ErrName, maxName)
	}
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("%w: not UTF-8", ErrName)
	}
	local, domain, isAddress := strings.Cut(name, "@")
	local, err := canonicalWord(local)
	if err != nil {
		return "", err
	}
	if !isAddress {
		return local, nil
	}
	domain, err = canonicalDomain(domain)
	if err != nil {
		return "", err
	}
	if canonical := local + "@" + domain; len(canonical) <= maxName {
		return canonical, nil
	}
	return "", fmt.Errorf("%w: longer than %d octets", ErrName, maxName)
}

// SameName reports that two spellings name one user.
func SameName(a, b string) bool {
	if a == b {
		return true
	}
	ca, errA := CanonicalName(a)
	cb, errB := CanonicalName(b)
	return errA == nil && errB == nil && ca == cb
}

func canonicalWord(word string) (string, error) {
	if word == "" {
		return "", fmt.Errorf("%w: nothing before the @", ErrName)
	}
	if isGraphicASCII(word) {
		return strings.ToLower(word), nil // all that PRECIS does to it
	}
	once, err := precis.UsernameCaseMapped.String(word)
	if err != nil { // its error text needs knowledge of RFC 8265
		return "", fmt.Errorf("%w: %q has a character that names cannot have, such as a space", ErrName, word)
	}
	// The mapping is not idempotent for every string, and a name that changes when
	// it is typed as it is shown would be a second user.
	twice, err := precis.UsernameCaseMapped.String(once)
	if err != nil || once != twice || strings.Contains(once, "@") {
		return "", fmt.Errorf("%w: it has no stable form", ErrName)
	}
	return once, nil
}

// hostnames is IDNA2008 as a resolver takes it, with the length of labels checked.
var hostnames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

func canonicalDomain(domain string) (string, error) {
	ascii, err := hostnames.ToASCII(strings.TrimSuffix(domain, "."))
	if err != nil {
		return "", fmt.Errorf("%w: domain: %w", ErrName, err)
	}
	ascii = strings.ToLower(ascii)
	// As above: the mapping has to be stable.
	if again, err := hostnames.ToASCII(ascii); err != nil || again != ascii ||
		!isGraphicASCII(ascii) || strings.HasSuffix(ascii, ".") {
		return "", fmt.Errorf("%w: domain %q has no stable form", ErrName, domain)
	}
	return ascii, nil
}

func isGraphicASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
