package route

import (
	"fmt"
	"strings"
	"time"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// Rule is one routing rule. Zero match fields match everything; without any it
// is the default route, which comes after all others. Upstreams in the order in
// which they are to be tried; none: to MX.
type Rule struct {
	ID              int64     `json:"id"`
	Position        int       `json:"position"`
	UserID          int64     `json:"user_id,omitempty"`
	SenderDomain    string    `json:"sender_domain,omitempty"`
	RecipientDomain string    `json:"recipient_domain,omitempty"`
	Upstreams       []string  `json:"upstreams"`
	CreatedAt       time.Time `json:"created_at"`
}

// MX reports a rule that sends to the recipient's MX.
func (r Rule) MX() bool { return len(r.Upstreams) == 0 }

// normalise checks the rule and puts its domains into the form of their keys.
func (r *Rule) normalise() error {
	if r.Position < 0 {
		return refusal.Invalid("position %d is negative", r.Position)
	}
	if r.UserID < 0 {
		return refusal.Invalid("user id %d is negative", r.UserID)
	}
	for _, domain := range []*string{&r.SenderDomain, &r.RecipientDomain} {
		if *domain == "" {
			continue
		}
		address, err := smtp.ParseAddress("postmaster@" + *domain)
		if err != nil {
			return refusal.Invalid("domain %q: %v", *domain, err)
		}
		*domain = address.DomainKey()
	}
	for i, name := range r.Upstreams {
		for _, earlier := range r.Upstreams[:i] {
			if name == earlier {
				return refusal.Invalid("upstream %q is named twice", name)
			}
		}
	}
	return nil
}

// String describes the rule, for the audit.
func (r Rule) String() string {
	if r.MX() {
		return r.match() + " via mx"
	}
	return r.match() + " via " + strings.Join(r.Upstreams, ", ")
}

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
