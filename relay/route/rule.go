package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// Rule is one routing rule. Zero match fields match everything; without any it
// is the default route, which comes after all others.
type Rule struct {
	ID              int64     `json:"id"`
	Position        int       `json:"position"` // in the order in which they are tried, from 1
	UserID          int64     `json:"user_id,omitempty"`
	SenderDomain    string    `json:"sender_domain,omitempty"` // *.b: the domains below b, but not b
	RecipientDomain string    `json:"recipient_domain,omitempty"`
	Via             []string  `json:"via"` // names of upstreams in the order in which they are to be tried, then perhaps MX
	CreatedAt       time.Time `json:"created_at"`
}

// MX reports a rule by which mail may go to the recipient's MX.
func (r Rule) MX() bool { return slices.Contains(r.Via, MX) }

// IsDefault reports the default route.
func (r Rule) IsDefault() bool {
	return r.UserID == 0 && r.SenderDomain == "" && r.RecipientDomain == ""
}

// Mismatch names what of a message is not as the rule has it: the user, the sender domain or
// the recipient domain; "" if the rule matches. The null sender has no domain.
func (r *Rule) Mismatch(userID int64, sender, recipient smtp.Address) string {
	switch {
	case r.UserID != 0 && r.UserID != userID:
		return "user"
	case r.SenderDomain != "" && !Within(sender.DomainKey(), r.SenderDomain):
		return "sender domain"
	case r.RecipientDomain != "" && !Within(recipient.DomainKey(), r.RecipientDomain):
		return "recipient domain"
	}
	return ""
}

// Within reports that a domain is what a rule has for domains, or one of *.b. A domain may be
// such a pattern itself.
func Within(domain, pattern string) bool {
	if parent, below := strings.CutPrefix(pattern, "*."); below {
		return strings.HasSuffix(domain, "."+parent)
	}
	return domain == pattern
}

// covers reports that r matches all that other does.
func (r *Rule) covers(other *Rule) bool {
	return (r.UserID == 0 || r.UserID == other.UserID) &&
		(r.SenderDomain == "" || Within(other.SenderDomain, r.SenderDomain)) &&
		(r.RecipientDomain == "" || Within(other.RecipientDomain, r.RecipientDomain))
}

// HiddenBy returns the first rule before the rule at i of a list that takes all of its mail,
// nil if there is none.
func HiddenBy(list []Rule, i int) *Rule {
	for n := range i {
		if list[n].covers(&list[i]) {
			return &list[n]
		}
	}
	return nil
}

// Normalise checks the rule and puts its domains into the form of their keys, as Add does.
// Errors: refusal.ErrInvalid.
func (r *Rule) Normalise() error {
	if r.UserID < 0 {
		return refusal.Invalid("user id %d is negative", r.UserID)
	}
	for _, domain := range []*string{&r.SenderDomain, &r.RecipientDomain} {
		if *domain == "" {
			continue
		}
		name, below := strings.CutPrefix(*domain, "*.")
		address, err := smtp.ParseAddress("postmaster@" + name)
		if strings.Contains(name, "@") {
			err = errors.New("it has an @")
		}
		if err != nil {
			return refusal.Invalid("domain %q: %v; write a domain, or *.domain for all domains below it", *domain, err)
		}
		if *domain = address.DomainKey(); below {
			*domain = "*." + *domain
		}
	}
	if len(r.Via) == 0 {
		return refusal.Invalid("a route needs one way or more: names of upstreams, %s, or upstreams and then %s", MX, MX)
	}
	for i, name := range r.Via {
		switch {
		case slices.Contains(r.Via[:i], name):
			return refusal.Invalid("%q is named twice", name)
		case name == MX && i+1 < len(r.Via):
			return refusal.Invalid("%s stands before %q: it can only be the last way", MX, r.Via[i+1])
		}
	}
	return nil
}

// upstreams are the ways without MX.
func (r *Rule) upstreams() []string {
	if last := len(r.Via) - 1; r.Via[last] == MX {
		return r.Via[:last]
	}
	return r.Via
}

// String describes the rule, for the audit.
func (r Rule) String() string { return r.match() + " via " + strings.Join(r.Via, ", ") }

// match says in words what the rule matches.
func (r *Rule) match() string {
	var parts []string
	if r.UserID != 0 {
		parts = append(parts, fmt.Sprintf("user %d", r.UserID))
	}
	if r.SenderDomain != "" {
		parts = append(parts, "sender domain "+r.SenderDomain)
	}
	if r.RecipientDomain != "" {
		parts = append(parts, "recipient domain "+r.RecipientDomain)
	}
	if parts == nil {
		return "all mail (the default route)"
	}
	return strings.Join(parts, ", ")
}
