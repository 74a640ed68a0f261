package policy

import (
	"postern/auth"
	"postern/relay/smtp"
)

// Recipient judges whether id may write to an address. No credential allows
// more than its user has; patterns are compared as those of senders.
func Recipient(id auth.Identity, to smtp.Address) Verdict {
	rule := ""
	for start := 0; start < len(id.Recipients); {
		end, credential := start, id.Recipients[start].Credential
		for end < len(id.Recipients) && id.Recipients[end].Credential == credential {
			end++
		}
		v := recipientOf(id, to, id.Recipients[start:end])
		if !v.Allowed {
			return v
		}
		rule, start = v.Rule, end
	}
	return allow(rule)
}

// recipientOf judges by the patterns of the user, or of the credential, at least one.
func recipientOf(id auth.Identity, to smtp.Address, patterns []auth.RecipientPattern) Verdict {
	of := " user"
	if patterns[0].Credential != 0 {
		of = " credential"
	}
	allowing, allowed := false, ""
	for _, p := range patterns {
		_, match := FindSender([]string{p.Pattern}, to)
		switch {
		case match && !p.Allow:
			return refuse("recipient deny "+p.Pattern+of, smtp.Permanent(550, 7, 1, refusedRecipient(id, to)))
		case match && allowed == "":
			allowed = p.Pattern
		}
		allowing = allowing || p.Allow
	}
	switch {
	case allowed != "":
		return allow("recipient " + allowed + of)
	case allowing:
		return refuse("recipient none"+of, smtp.Permanent(550, 7, 1, refusedRecipient(id, to)))
	}
	return allow("")
}

func refusedRecipient(id auth.Identity, to smtp.Address) string {
	const advice = "; ask the administrator to allow it"
	who, as := id.Name, to.String()
	if !smtp.IsASCII(who) || !smtp.IsASCII(as) || len(who)+len(as) > 300 { // see refusedAddress
		return "You may not send to this address" + advice
	}
	return "User " + who + " may not send to <" + as + ">" + advice
}
