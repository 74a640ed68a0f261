package policy

import (
	"strings"

	"postern/auth"
	"postern/relay/smtp"
)

// Sender judges the envelope sender. The null path is allowed to nobody yet.
//
// A user may send as what the patterns say (see auth.CanonicalPattern) or, without
// any, as the user's own name when that is an address. Domains are compared in
// canonical form, as A-labels in lower case. In local parts ASCII letters
// are compared without regard to case, for no provider tells Alice from alice, and
// every other octet exactly.
func Sender(id auth.Identity, from smtp.Address) Verdict {
	if from.IsNull() {
		return refuse("sender null path", smtp.Permanent(550, 7, 1,
			"The null sender <> is for bounces; give the address of the sender"))
	}
	patterns := id.Senders
	if len(patterns) == 0 && !strings.HasPrefix(id.Name, "*") { // a name is no wildcard
		patterns = []string{id.Name}
	}
	local, domain := lowerASCII(from.Local), from.DomainKey()
	for _, pattern := range patterns {
		if matches(pattern, local, domain) {
			return allow("sender " + pattern)
		}
	}
	// RFC 6409 section 6.1: 550 5.7.1 for a submitter who may not use this address.
	return refuse("sender none", smtp.Permanent(550, 7, 1, refusedSender(id, from)))
}

func refusedSender(id auth.Identity, from smtp.Address) string {
	who, as := id.Name, from.String()
	if !isASCII(who) || !isASCII(as) || len(who)+len(as) > 300 {
		// Replies are ASCII unless the command asked for UTF-8 (RFC 6531 section 3.7.4.2)
		// and have at most 512 octets (RFC 5321 section 4.5.3.1.5).
		return "You may not send as this address; choose another sender, or ask the administrator to allow it"
	}
	return "User " + who + " may not send as <" + as + ">; choose another sender, or ask the administrator to allow it"
}

// matches compares a canonical pattern with an address whose local part is in
// lower case and whose domain is canonical. What is no pattern matches nothing.
func matches(pattern, local, domain string) bool {
	wantLocal, wantDomain, ok := strings.Cut(pattern, "@")
	if !ok || domain == "" {
		return false
	}
	if parent, below := strings.CutPrefix(wantDomain, "*."); below {
		rest, isBelow := strings.CutSuffix(domain, "."+parent)
		return wantLocal == "*" && isBelow && rest != ""
	}
	if domain != wantDomain {
		return false
	}
	return wantLocal == "*" || local == lowerASCII(wantLocal)
}

func lowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			return lowerEach(s)
		}
	}
	return s
}

func lowerEach(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
