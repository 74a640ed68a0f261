package smtp

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of addresses in octets. RFC 5321 section 4.5.3.1 asks every server to
// take 64 for a local part, 255 for a domain and 256 for a path with its brackets.
// Local parts of up to twice that are taken, for services put signed tokens into
// them that are longer; the path is the bound that others hold to. A domain name
// has 253 at most, for DNS has no room for more (RFC 1035 section 2.3.4).
const (
	maxLocal   = 128
	maxMailbox = 254
	maxDomain  = 253
	maxLabel   = 63
)

// Address is a mailbox (RFC 5321 section 4.1.2, with RFC 6531's UTF-8).
//
// Local is the local part with quoting removed, Domain the domain as it was
// written (A-labels, U-labels or an address literal in brackets). The zero value
// is the null reverse path "<>". The recipient "<postmaster>" has a Local and no
// Domain. Addresses are comparable; mailboxes that differ only in the writing of
// the domain are different values, see DomainKey.
type Address struct {
	Local  string
	Domain string
}

// IsNull reports the null reverse path.
func (a Address) IsNull() bool { return a == Address{} }

// String returns the mailbox as it goes on the wire without angle brackets, the
// local part quoted again where the grammar demands it; "" for the null path. It is
// ASCII unless NeedsUTF8: behind an ASCII local part the domain is written in
// A-labels. An octet that no mailbox can have is written as "?", so whatever the
// value holds, the result is one mailbox and nothing more.
func (a Address) String() string {
	if a.Domain == "" {
		if a.Local == "" {
			return ""
		}
		return quoteLocal(a.Local)
	}
	domain := a.Domain
	if !IsASCII(domain) && IsASCII(a.Local) {
		if ascii, err := domainASCII(domain); err == nil {
			domain = ascii
		}
	}
	return quoteLocal(a.Local) + "@" + safeDomain(domain)
}

// NeedsUTF8 reports that the mailbox can only be sent with SMTPUTF8.
func (a Address) NeedsUTF8() bool {
	if !IsASCII(a.Local) {
		return true
	}
	if IsASCII(a.Domain) {
		return false
	}
	_, err := domainASCII(a.Domain)
	return err != nil
}

// DomainKey returns the domain for comparing and grouping: A-labels in lower
// case without a final dot, or the address literal in one lower-case form.
func (a Address) DomainKey() string {
	if ascii, err := domainASCII(strings.TrimSuffix(a.Domain, ".")); err == nil {
		return strings.ToLower(ascii)
	}
	return strings.ToLower(a.Domain)
}

var (
	errAddressLong  = errors.New("address is too long")
	errAddressEmpty = errors.New("address is empty")
	errNoDomain     = errors.New("address has no @ and domain")
	errSecondAt     = errors.New("address has more than one @")
	errLocalEmpty   = errors.New("local part is empty")
	errLocalLong    = errors.New("local part is too long")
	errLocalDot     = errors.New("local part begins or ends with a dot or has two in a row")
	errLocalOctet   = errors.New("local part has a character that is not allowed")
	errLocalQuote   = errors.New("local part has a quote that is not closed")
)

// ParseAddress parses a mailbox without angle brackets, "local@domain".
// UTF-8 is allowed. Errors say what is wrong in words fit for a user.
func ParseAddress(s string) (Address, error) { return parseAddress(s, checkDotString) }

// ParseRecipient is ParseAddress for an address that mail goes to. It also takes dots
// anywhere in an unquoted local part, "foo..bar@docomo.example", against RFC 5321 section
// 4.1.2: providers gave such addresses out. It is the same Address as
// "\"foo..bar\"@docomo.example", and is written like that.
func ParseRecipient(s string) (Address, error) { return parseAddress(s, checkAtoms) }

// parseAddress parses a mailbox whose local part, when it is not quoted, passes check.
func parseAddress(s string, check func(local string) error) (Address, error) {
	switch {
	case s == "":
		return Address{}, errAddressEmpty
	case len(s) > maxMailbox:
		return Address{}, errAddressLong
	}
	local, rest, err := cutLocal(s, check)
	if err != nil {
		return Address{}, err
	}
	if len(local) > maxLocal {
		return Address{}, errLocalLong
	}
	if !strings.HasPrefix(rest, "@") || len(rest) == 1 {
		return Address{}, errNoDomain
	}
	domain := rest[1:]
	if strings.Contains(domain, "@") {
		return Address{}, errSecondAt
	}
	ascii, err := domainASCII(domain)
	if err != nil {
		return Address{}, err
	}
	if len(quoteLocal(local))+1+len(ascii) > maxMailbox {
		return Address{}, errAddressLong // in A-labels a domain can be longer
	}
	return Address{Local: local, Domain: domain}, nil
}

// cutLocal takes the local part, without its quoting, off s.
func cutLocal(s string, check func(local string) error) (local, rest string, err error) {
	if s[0] == '"' {
		return cutQuoted(s)
	}
	at := strings.IndexByte(s, '@')
	if at < 0 {
		return "", "", errNoDomain
	}
	return s[:at], s[at:], check(s[:at])
}

// checkDotString checks the Dot-string of RFC 5321 section 4.1.2.
func checkDotString(s string) error {
	if s != "" && (s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..")) {
		return errLocalDot
	}
	return checkAtoms(s)
}

// checkAtoms checks the octets of a Dot-string, wherever its dots are.
func checkAtoms(s string) error {
	if s == "" {
		return errLocalEmpty
	}
	for _, r := range s {
		if r != '.' && !isAtext(r) {
			return errLocalOctet
		}
	}
	if !utf8.ValidString(s) {
		return errLocalOctet
	}
	return nil
}

// cutQuoted takes a Quoted-string (RFC 5321 section 4.1.2) off s, which begins with
// its quote. Quoted pairs stand for printable ASCII only: there is no way to quote
// a control (RFC 5321 corrects RFC 2821 in that).
func cutQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch c {
		case '"':
			local = b.String()
			if !utf8.ValidString(local) || strings.ContainsFunc(local, func(r rune) bool { return r >= utf8.RuneSelf && !isUTF8Text(r) }) {
				return "", "", errLocalOctet
			}
			return local, s[i+1:], nil
		case '\\':
			i++
			if i == len(s) {
				return "", "", errLocalQuote
			}
			if c = s[i]; c >= utf8.RuneSelf {
				return "", "", errLocalOctet
			}
		}
		if c < ' ' || c == 0x7F {
			return "", "", errLocalOctet
		}
		b.WriteByte(c)
	}
	return "", "", errLocalQuote
}

// quoteLocal writes a local part as a Dot-string where it is one, else quoted.
func quoteLocal(s string) string {
	if checkDotString(s) == nil {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"), r < ' ', r == 0x7F, r >= utf8.RuneSelf && !isUTF8Text(r):
			b.WriteByte('?')
		case r == '"', r == '\\':
			b.WriteByte('\\')
			fallthrough
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// isAtext reports atext (RFC 5322 section 3.2.3) with UTF8-non-ascii (RFC 6531
// section 3.3).
func isAtext(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return true
	case r >= utf8.RuneSelf:
		return isUTF8Text(r)
	}
	return r > 0 && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}

// isUTF8Text reports a character beyond ASCII that an address may have. The grammar
// of RFC 6531 allows all; controls, spaces, line separators and marks of direction
// are refused, for they serve only to make a mailbox look like another.
func isUTF8Text(r rune) bool {
	return !unicode.IsControl(r) && !unicode.Is(unicode.Z, r) && !unicode.Is(unicode.Bidi_Control, r)
}

// IsASCII reports that s has no octet above 127.
func IsASCII[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
