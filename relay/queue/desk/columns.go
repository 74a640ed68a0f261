package desk

import "postern/relay/smtp"

// addressColumns is a stored address on its way to its text form.
type addressColumns struct{ local, domain string }

func (a addressColumns) String() string {
	return smtp.Address{Local: a.local, Domain: a.domain}.String()
}

// replyColumns is a stored reply on its way to its text form. A text of the queue
// itself has no code.
type replyColumns struct {
	code           int
	enhanced, text string
}

func (r replyColumns) String() string {
	if r.code == 0 {
		return r.text
	}
	return smtp.Reply{Code: r.code, Enhanced: smtp.ParseEnhancedCode(r.enhanced), Text: r.text}.String()
}
