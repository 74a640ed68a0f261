package submission

import (
	"postern/auth"
	"postern/policy"
	"postern/relay/smtp"
)

// judgeSize refuses what is larger than the user or the server allows.
func judgeSize(id *auth.Identity, size, serverMax int64) policy.Verdict {
	if id.MaxSize > 0 {
		serverMax = min(serverMax, id.MaxSize)
	}
	if size > serverMax {
		return policy.Verdict{Rule: "size", Reply: errTooLarge.Reply}
	}
	return policy.Verdict{Allowed: true}
}

// judgeRecipients refuses one recipient too many.
func judgeRecipients(id *auth.Identity, n, serverMax int) policy.Verdict {
	if id.MaxRcpts > 0 {
		serverMax = id.MaxRcpts
	}
	if n > serverMax {
		return policy.Verdict{Rule: "recipients", Reply: smtp.Temporary(452, 5, 3, "Too many recipients")}
	}
	return policy.Verdict{Allowed: true}
}
