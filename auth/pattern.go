package auth

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrPattern is a sender pattern that cannot be one.
var ErrPattern = errors.New("not a valid sender pattern")

// NullSender is the sender pattern that allows the null path in MAIL.
const NullSender = "<>"

// CanonicalPattern returns the form in which a sender pattern is stored:
//
//	a@b     this address
//	*@b     every address of the domain b
//	*@*.b   every address of every domain below b, but not of b
//	<>      the null sender, in MAIL only
//
// The domain becomes A-labels in lower case; ASCII letters of the local part
// become lower case.
func CanonicalPattern(pattern string) (string, error) {
	if pattern == NullSender {
		return pattern, nil
	}
	local, domain, ok := strings.Cut(pattern, "@")
	if !ok {
		return "", fmt.Errorf("%w: %q has no @; use an address, *@domain, *@*.domain or <>", ErrPattern, pattern)
	}
	if err := checkPatternLocal(local); err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrPattern, pattern, err)
	}
	below := ""
	if rest, ok := strings.CutPrefix(domain, "*."); ok {
		if local != "*" {
			return "", fmt.Errorf("%w: %q: before @*. only * is possible", ErrPattern, pattern)
		}
		below, domain = "*.", rest
	}
	ascii, err := canonicalDomain(domain)
	if err != nil || !utf8.ValidString(domain) {
		return "", fmt.Errorf("%w: %q: %q is not a domain", ErrPattern, pattern, domain)
	}
	canonical := lowerASCII(local) + "@" + below + ascii
	if len(canonical) > 320 {
		return "", fmt.Errorf("%w: longer than 320 octets", ErrPattern)
	}
	return canonical, nil
}

// resendPattern is CanonicalPattern for resending others' mail: Resent-From holds a mailbox.
func resendPattern(pattern string) (string, error) {
	if pattern == NullSender {
		return "", fmt.Errorf("%w: %q is for MAIL alone, nobody resends mail as that", ErrPattern, pattern)
	}
	return CanonicalPattern(pattern)
}

// checkPatternLocal takes "*" or an unquoted local part.
func checkPatternLocal(local string) error {
	if local == "*" {
		return nil
	}
	odd := func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune(`*"\()<>[],;:`, r)
	}
	if local == "" || !utf8.ValidString(local) || strings.ContainsFunc(local, odd) {
		return fmt.Errorf("%q is neither * nor a plain local part", local)
	}
	return nil
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
