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
	// Redirector is who resent the message last: all mailboxes of the Resent-From and
	// Resent-Sender that belong to it (RFC 5322 section 3.6.6), where that is clear.
	Redirector []smtp.Address
}

// RuleHeader is the rule by which a header is allowed that is the user's own in all.
const RuleHeader = "header"

// Header judges the fields that tell the recipient whose a message is. Each of
// their mailboxes must be one that Sender would allow; but whoever may resend as each
// mailbox of Redirector may pass on what is another's.
func Header(id auth.Identity, h HeaderIdentity) Verdict {
	v := ownHeader(id, h)
	if v.Allowed {
		return v
	}
	if pattern, ok := mayResend(id, h.Redirector); ok {
		return allow("resend " + pattern)
	}
	return v
}

// mayResend finds the pattern by which id may resend as the first of these mailboxes;
// there must be one for each.
func mayResend(id auth.Identity, redirector []smtp.Address) (pattern string, ok bool) {
	for i, a := range redirector {
		p, found := FindSender(id.Resend, a)
		if !found {
			return "", false
		}
		if i == 0 {
			pattern = p
		}
	}
	return pattern, pattern != ""
}

// ownHeader judges a message as the user's own.
func ownHeader(id auth.Identity, h HeaderIdentity) Verdict {
	for _, field := range [...]struct {
		name  string
		addrs []smtp.Address
	}{{"From", h.From}, {"Sender", h.Sender}, {"Resent-From", h.ResentFrom}, {"Resent-Sender", h.ResentSender}} {
		for _, a := range field.addrs {
			if _, ok := mayWrite(id, a); !ok {
				what := "write the " + field.name + " field as"
				if len(h.Redirector) > 0 && isOwn(id, h.Redirector) {
					what = "resend mail of"
				}
				return refuse("header "+field.name, smtp.Permanent(550, 7, 1, refusedAddress(id, a, what)))
			}
		}
	}
	return allow(RuleHeader)
}

// isOwn reports that id may write all of these.
func isOwn(id auth.Identity, list []smtp.Address) bool {
	for _, a := range list {
		if _, ok := mayWrite(id, a); !ok {
			return false
		}
	}
	return true
}

// mayWrite finds the pattern by which id may write an address.
func mayWrite(id auth.Identity, a smtp.Address) (pattern string, ok bool) {
	if pattern, ok = FindSender(id.Senders, a); ok {
		return pattern, true
	}
	for _, pattern := range id.Senders {
		if pattern != auth.NullSender {
			return "", false
		}
	}
	if strings.HasPrefix(id.Name, "*") { // a name is no wildcard
		return "", false
	}
	return FindSender([]string{id.Name}, a)
}

// FindSender finds the first pattern (auth.CanonicalPattern) that an address matches.
func FindSender(patterns []string, a smtp.Address) (pattern string, ok bool) {
	local, domain := lowerASCII(a.Local), a.DomainKey()
	for _, pattern := range patterns {
		if matches(pattern, local, domain) {
			return pattern, true
		}
	}
	return "", false
}

func refusedAddress(id auth.Identity, a smtp.Address, what string) string {
	const advice = "; choose another sender, or ask the administrator to allow it"
	who, as := id.Name, a.String()
	if !smtp.IsASCII(who) || !smtp.IsASCII(as) || len(who)+len(as) > 300 {
		// Replies are ASCII unless the command asked for UTF-8 (RFC 6531 section 3.7.4.2)
		// and have at most 512 octets (RFC 5321 section 4.5.3.1.5).
		return "You may not " + what + " this address" + advice
	}
	return "User " + who + " may not " + what + " <" + as + ">" + advice
}

// matches compares a canonical pattern with an address whose local part is in
// lower case and whose domain is canonical. A text that is not a pattern matches nothing.
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
