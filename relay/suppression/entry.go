package suppression

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// The sources of entries.
const (
	Bounce = "bounce"
	Admin  = "admin"
)

// Entry is an address that gets no mail.
type Entry struct {
	UserID    int64      `json:"-"` // 0: of all users
	User      string     `json:"user,omitempty"`
	Address   string     `json:"address"` // as Key gives it; of all users also a pattern *@domain or *@*.domain
	Source    string     `json:"source"`  // Bounce or Admin
	Reason    string     `json:"reason,omitempty"`
	Reply     string     `json:"reply,omitempty"`      // of the last bounce
	MessageID *uuid.UUID `json:"message_id,omitempty"` // that bounced last
	AddedAt   time.Time  `json:"added_at"`
	ExpiresAt *time.Time `json:"expires_at"` // nil: never
	Hits      int64      `json:"hits"`       // recipients that were refused
	LastHitAt *time.Time `json:"last_hit_at"`
}

// Key is the form in which addresses are compared: the local part as it is, the domain folded.
func Key(a smtp.Address) string { return keyAt(a.Local, a.DomainKey()) }

func keyAt(local, domain string) string {
	key := smtp.Address{Local: local, Domain: domain}.String()
	if local == "*" { // a mailbox, not a pattern
		return `"*"` + key[1:]
	}
	return key
}

// keys are the key of an address and the patterns that match it.
func keys(a smtp.Address) []string {
	domain := a.DomainKey()
	list := append(make([]string, 0, 8), keyAt(a.Local, domain), "*@"+domain)
	if strings.HasPrefix(domain, "[") {
		return list
	}
	for _, rest, below := strings.Cut(domain, "."); below; _, rest, below = strings.Cut(rest, ".") {
		list = append(list, "*@*."+rest)
	}
	return list
}

// ParseKey reads the address of an entry, or of an entry of all users a pattern too. Errors:
// refusal.ErrInvalid.
func ParseKey(text string, global bool) (string, error) {
	domain, pattern := strings.CutPrefix(text, "*@")
	if !pattern {
		a, err := smtp.ParseRecipient(text)
		if err != nil {
			return "", refusal.Invalid("%q is not an address: %v", text, err)
		}
		return Key(a), nil
	}
	if !global {
		return "", refusal.Invalid("%q: patterns are for --global; 'postern recipient deny' is for those of a user", text)
	}
	below := ""
	if rest, is := strings.CutPrefix(domain, "*."); is {
		below, domain = "*.", rest
	}
	a, err := smtp.ParseRecipient("x@" + domain)
	if err != nil {
		return "", refusal.Invalid("%q is not a pattern such as *@example.com or *@*.example.com: %v", text, err)
	}
	return "*@" + below + a.DomainKey(), nil
}

// IsPattern reports whether the entry blocks a domain.
func (e *Entry) IsPattern() bool { return strings.HasPrefix(e.Address, "*@") }

// Rule names the entry, for the log and for explain.
func (e *Entry) Rule() string {
	if e.UserID == 0 {
		return "suppression global " + e.Address
	}
	return "suppression user " + e.Address
}

// Refusal is the reply to RCPT. Of an entry of all users it says neither why nor since when.
func (e *Entry) Refusal() smtp.Reply {
	switch {
	case e.IsPattern():
		return smtp.Permanent(550, 7, 1, "Mail to this domain is blocked by the administrator")
	case e.UserID == 0:
		return smtp.Permanent(550, 1, 1, "This address is suppressed by the administrator")
	}
	who, until, why := e.Address, "", ", by an administrator"
	if len(who) > 100 || !smtp.IsASCII(who) { // as of policy's replies
		who = "This address"
	}
	if e.ExpiresAt != nil {
		until = " until " + e.ExpiresAt.UTC().Format(time.DateOnly)
	}
	switch {
	case e.Source == Bounce:
		why = ", mail to it bounced: " + plain(e.Reply)
	case e.Reason != "":
		why += ": " + plain(e.Reason)
	}
	return smtp.Permanent(550, 1, 1, fmt.Sprintf("%s is suppressed since %s%s%s; an administrator can lift this with 'postern suppression remove'",
		who, e.AddedAt.UTC().Format(time.DateOnly), until, why))
}

// plain is text for a reply: on one line, in ASCII and short.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(text), " "))
	const most = 160
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}
