package policy

import (
	"strings"

	"postern/auth"
	"postern/relay/smtp"
)

// Sender judges the envelope sender.
//
// A user may send as what the patterns say (see auth.CanonicalPattern) or, without
// one for addresses, as the user's own name when that is an address. The null path
// needs the pattern auth.NullSender. Domains are compared in canonical form, as
// A-labels in lower case. In local parts ASCII letters are compared without regard
// to case, for no provider tells Alice from alice, and every other octet exactly.
func Sender(id auth.Identity, from smtp.Address) Verdict {
	if from.IsNull() {
		return nullSender(id)
	}
	if pattern, ok := mayWrite(id, from); ok {
		return allow("sender " + pattern)
	}
	// RFC 6409 section 6.1: 550 5.7.1 for a submitter who may not use this address.
	return refuse("sender none", smtp.Permanent(550, 7, 1, refusedAddress(id, from, "send as")))
}

func nullSender(id auth.Identity) Verdict {
	for _, pattern := range id.Senders {
		if pattern == auth.NullSender {
			return allow("sender " + pattern)
		}
	}
	return refuse("sender null path", smtp.Permanent(550, 7, 1,
		"The null sender <> is for bounces; give the address of the sender"))
}

// HeaderIdentity is whose the header of a message says it is: the mailboxes of these
// fields.
type HeaderIdentity struct {
	From, Sender, ResentFrom, ResentSender []smtp.Address
}

// Header judges the fields that tell the recipient whose a message is. Each of
// their mailboxes must be one that Sender would allow.
func Header(id auth.Identity, h HeaderIdentity) Verdict {
	for _, field := range [...]struct {
		name  string
		addrs []smtp.Address
	}{{"From", h.From}, {"Sender", h.Sender}, {"Resent-From", h.ResentFrom}, {"Resent-Sender", h.ResentSender}} {
		for _, a := range field.addrs {
			if _, ok := mayWrite(id, a); !ok {
				return refuse("header "+field.name, smtp.Permanent(550, 7, 1,
					refusedAddress(id, a, "write the "+field.name+" field as")))
			}
		}
	}
	return allow("header")
}

// mayWrite finds the pattern by which id may write an address.
func mayWrite(id auth.Identity, a smtp.Address) (pattern string, ok bool) {
	local, domain := lowerASCII(a.Local), a.DomainKey()
	addresses := 0
	for _, pattern := range id.Senders {
		if matches(pattern, local, domain) {
			return pattern, true
		}
		if pattern != auth.NullSender {
			addresses++
		}
	}
	if addresses == 0 && !strings.HasPrefix(id.Name, "*") && matches(id.Name, local, domain) { // a name is no wildcard
		return id.Name, true
	}
	return "", false
}

func refusedAddress(id auth.Identity, a smtp.Address, what string) string {
	const advice = "; choose another sender, or ask the administrator to allow it"
	who, as := id.Name, a.String()
	if !isASCII(who) || !isASCII(as) || len(who)+len(as) > 300 {
		// Replies are ASCII unless the command asked for UTF-8 (RFC 6531 section 3.7.4.2)
		// and have at most 512 octets (RFC 5321 section 4.5.3.1.5).
		return "You may not " + what + " this address" + advice
	}
	return "User " + who + " may not " + what + " <" + as + ">" + advice
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
