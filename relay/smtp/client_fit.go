package smtp

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// fit answers for the server where it cannot take the message as it is, and leaves
// out of MAIL what it does not offer.
func (s *sending) fit() {
	mail := &s.tx.Mail
	if limit, ok := s.c.sizeLimit(); !ok {
		mail.Size = 0
	} else if mail.Size = s.tx.Size; limit > 0 && mail.Size > limit {
		// RFC 1870 section 6.1: there is no use in trying.
		s.answer(StageHello, Permanent(552, 3, 4, "Message of "+strconv.FormatInt(mail.Size, 10)+
			" octets is over the limit of the next server, "+strconv.FormatInt(limit, 10)))
	}
	if !s.c.offers("8BITMIME") {
		if mail.Body == Body8BitMIME { // RFC 6152 section 3: convert, or return it
			s.answer(StageHello, Permanent(554, 6, 3, "Next server does not offer 8BITMIME, which this message needs"))
		}
		mail.Body = ""
	}
	if !s.c.offers("DSN") {
		mail.Ret, mail.EnvID = "", ""
	}
	if !s.c.authenticated {
		mail.Auth = ""
	}
	s.fitUTF8()
}

// fitUTF8 finds out who needs SMTPUTF8 (RFC 6531 section 3.2): everybody, when the
// message or its sender does, else the recipients whose addresses do.
func (s *sending) fitUTF8() {
	offered := s.c.offers("SMTPUTF8")
	refusal := Permanent(553, 6, 7, "Next server does not offer SMTPUTF8, which this address or message needs")
	mail := &s.tx.Mail
	s.utf8 = mail.UTF8 || mail.From.NeedsUTF8()
	if s.utf8 && !offered {
		s.answer(StageHello, refusal)
	}
	for i := range s.tx.Rcpts {
		if !s.tx.Rcpts[i].To.NeedsUTF8() {
			continue
		}
		if offered {
			s.utf8 = true
		} else if s.replies[i].IsZero() {
			s.replies[i], s.stages[i] = refusal, StageHello
		}
	}
	mail.UTF8 = s.utf8
	if !s.utf8 {
		mail.From = asciiDomain(mail.From)
	}
}

// sizeLimit returns what the server says of the largest message it takes, 0 for no
// limit, and whether it offers SIZE.
func (c *Client) sizeLimit() (limit int64, ok bool) {
	params, ok := c.extensions["SIZE"]
	if !ok {
		return 0, false
	}
	word, _, _ := strings.Cut(params, " ")
	limit, err := strconv.ParseInt(word, 10, 64)
	if err != nil || limit < 0 {
		return 0, true
	}
	return limit, true
}

// rcpt returns the RCPT command of a recipient as this server is to get it.
func (s *sending) rcpt(i int) RcptCommand {
	r := s.tx.Rcpts[i]
	if !s.c.offers("DSN") {
		r.Notify, r.ORcptType, r.ORcpt = 0, "", ""
	}
	if !s.utf8 {
		r.To = asciiDomain(r.To)
	}
	return r
}

// asciiDomain writes a domain of U-labels in A-labels, so that the address can go
// without SMTPUTF8.
func asciiDomain(a Address) Address {
	for i := range len(a.Domain) {
		if a.Domain[i] >= utf8.RuneSelf {
			a.Domain = a.DomainKey()
			break
		}
	}
	return a
}
