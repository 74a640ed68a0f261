package smtp

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

var (
	errDomainEmpty   = errors.New("domain is empty or has an empty label")
	errDomainLong    = errors.New("domain or one of its labels is too long")
	errDomainOctet   = errors.New("domain has a character that is not allowed")
	errDomainHyphen  = errors.New("domain has a label that begins or ends with a hyphen")
	errDomainNumeric = errors.New("domain is a number; an IP address is written in brackets")
	errDomainIDN     = errors.New("domain is not a valid internationalised name")
	errLiteral       = errors.New("address literal is not an IP address")
)

// ValidDomain reports a domain name or an address literal as EHLO and mailboxes
// have them (RFC 5321 sections 4.1.2 and 4.1.3), U-labels included.
func ValidDomain(s string) bool {
	_, err := domainASCII(s)
	return err == nil
}

// DomainSpellings returns the domain as it is written and, when they differ from that, in
// A-labels and in U-labels (RFC 5890 section 2.3.2.1). A string that is not a
// domain has itself only.
func DomainSpellings(s string) []string {
	list := []string{s}
	ascii, err := domainASCII(s)
	if err != nil || strings.HasPrefix(s, "[") {
		return list
	}
	if ascii != s {
		list = append(list, ascii)
	}
	if unicode, err := idnaProfile.ToUnicode(ascii); err == nil && unicode != ascii && unicode != s {
		list = append(list, unicode)
	}
	return list
}

// idnaProfile maps as UTS 46 does for a lookup. checkHostname decides
// what is valid in ASCII.
var idnaProfile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
)

// domainASCII checks a domain and returns it in A-labels, or as an address literal
// in one form. The case of ASCII letters stays.
func domainASCII(s string) (string, error) {
	switch {
	case strings.HasPrefix(s, "["):
		return literal(s)
	case IsASCII(s):
		return s, checkHostname(s)
	case len(s) > maxMailbox:
		return "", errDomainLong
	case !utf8.ValidString(s):
		return "", errDomainOctet
	}
	ascii, err := idnaProfile.ToASCII(s)
	if err != nil {
		return "", errDomainIDN
	}
	// Ideographic full stops are mapped to dots; between labels in mail there are
	// dots only (RFC 6531 section 3.3).
	if strings.Count(ascii, ".") != strings.Count(s, ".") {
		return "", errDomainIDN
	}
	return ascii, checkHostname(ascii)
}

// checkHostname checks an ASCII domain. Underscores are let through: hosts have
// them, against RFC 952, and DNS does not mind. Names whose last label is a number
// are no names, and resolvers take them for addresses.
func checkHostname(s string) error {
	if len(s) > maxDomain {
		return errDomainLong
	}
	for rest, more := s, true; more; {
		var label string
		label, rest, more = strings.Cut(rest, ".")
		if err := checkLabel(label); err != nil {
			return err
		}
		if !more && strings.Trim(label, "0123456789") == "" {
			return errDomainNumeric
		}
	}
	return nil
}

func checkLabel(s string) error {
	switch {
	case s == "":
		return errDomainEmpty
	case len(s) > maxLabel:
		return errDomainLong
	}
	for i := range len(s) {
		c := s[i] | 0x20 // letters in lower case
		if ('a' > c || c > 'z') && !isDigit(s[i]) && s[i] != '-' && s[i] != '_' {
			return errDomainOctet
		}
	}
	if s[0] == '-' || s[len(s)-1] == '-' {
		return errDomainHyphen
	}
	return nil
}

// literal checks an address literal (RFC 5321 section 4.1.3) and returns the one
// form of its address. There are no general literals, for no tag but IPv6 was ever
// registered.
func literal(s string) (string, error) {
	inner, ok := strings.CutSuffix(s[1:], "]")
	if !ok {
		return "", errLiteral
	}
	const tag = "IPv6:"
	if len(inner) > len(tag) && strings.EqualFold(inner[:len(tag)], tag) {
		ip, err := netip.ParseAddr(inner[len(tag):])
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return "", errLiteral
		}
		return "[" + tag + ip.String() + "]", nil
	}
	ip, err := netip.ParseAddr(inner)
	if err != nil || !ip.Is4() {
		return "", errLiteral
	}
	return s, nil
}

// safeDomain returns s without the octets by which a value that was never parsed
// could leave its brackets.
func safeDomain(s string) string {
	unsafe := func(r rune) bool { return r <= ' ' || r == 0x7F || strings.ContainsRune(`<>"\@`, r) }
	if !strings.ContainsFunc(s, unsafe) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unsafe(r) {
			return '?'
		}
		return r
	}, s)
}
