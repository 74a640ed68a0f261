package upstream

import (
	"errors"
	"strings"

	"postern/auth"
	"postern/internal/refusal"
	"postern/policy"
	"postern/relay/smtp"
)

// SenderError says that an upstream may not send as the sender of a message.
type SenderError struct {
	Upstream string
	Sender   smtp.Address
}

func (e *SenderError) Error() string {
	return "upstream " + e.Upstream + " may not send as " + e.Sender.String()
}

// IsSender reports a SenderError.
func IsSender(err error) bool {
	_, is := errors.AsType[*SenderError](err)
	return is
}

// MaySend reports that the account may send as a sender. Notices and other mail of the null
// sender, which is nobody's address, go by every upstream.
func (a *Account) MaySend(sender smtp.Address) bool {
	if a.Senders == "" || sender.IsNull() {
		return true
	}
	_, may := policy.FindSender(strings.Fields(a.Senders), sender)
	return may
}

// mostSenders bounds the patterns of an account, each of which is compared for each recipient.
const mostSenders = 100

// ParseSenders returns patterns as an account has them: in canonical form, with spaces between
// them. They are those of auth.CanonicalPattern, without the null sender; a domain alone
// stands for all of its addresses. Errors: refusal.ErrInvalid.
func ParseSenders(patterns []string) (string, error) {
	var list []string
	for _, p := range patterns {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if p == auth.NullSender {
			return "", refusal.Invalid("the null sender <> is allowed to every upstream; leave it out")
		}
		if !strings.Contains(p, "@") {
			p = "*@" + p
		}
		canonical, err := auth.CanonicalPattern(p)
		if err != nil {
			return "", refusal.Invalid("%v", err)
		}
		list = append(list, canonical)
	}
	if len(list) > mostSenders {
		return "", refusal.Invalid("%d sender patterns: not more than %d", len(list), mostSenders)
	}
	return strings.Join(list, " "), nil
}

// sendsAs parses RewriteSender. All mail has it, so no server may have to offer SMTPUTF8.
func (a *Account) sendsAs() (mailbox smtp.Address, err error) {
	if a.RewriteSender == "" {
		return mailbox, nil
	}
	mailbox, err = smtp.ParseAddress(a.RewriteSender)
	switch {
	case err != nil:
		return mailbox, refusal.Invalid("sender %q is not an address: %v", a.RewriteSender, err)
	case mailbox.NeedsUTF8():
		return mailbox, refusal.Invalid("sender %q is not ASCII; not every server would take it", a.RewriteSender)
	}
	return mailbox, nil
}
