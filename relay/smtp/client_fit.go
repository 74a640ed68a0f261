package smtp

import (
	"strconv"
	"strings"
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
	s.fitBody()
	if !s.c.offers("DSN") {
		mail.Ret, mail.EnvID = "", ""
	}
	if !s.c.authenticated {
		mail.Auth = ""
	}
	s.fitUTF8()
	s.fitTLS()
	s.fitLimits()
}

// fitTLS keeps mail that needs TLS at each hop (RFC 8689 section 4.2.1) from a server that has not
// proved who it is, or would hand it on without.
func (s *sending) fitTLS() {
	switch {
	case !s.tx.Mail.RequireTLS || s.tx.Proved && s.c.TLS() != nil && s.c.offers("REQUIRETLS"):
	case s.tx.Unsure:
		s.answer(StageHello, Temporary(451, 7, 30, "No server that offers REQUIRETLS over verified TLS, which this message needs, can be found now"))
	default:
		s.answer(StageHello, Permanent(550, 7, 30, "Next server does not offer REQUIRETLS over verified TLS, which this message needs"))
	}
}

// fitBody says BODY=8BITMIME of text that has octets beyond ASCII, and BODY of nothing
// else. Where it is not offered, only text that was declared cannot go: it is to be
// converted or returned (RFC 6152 section 3). Other such text goes as it always did.
func (s *sending) fitBody() {
	mail := &s.tx.Mail
	switch {
	case !s.c.offers("8BITMIME"):
		if mail.Body == Body8BitMIME {
			s.answer(StageHello, Permanent(554, 6, 3, "Next server does not offer 8BITMIME, which this message needs"))
		}
		mail.Body = ""
	case s.tx.EightBit:
		mail.Body = Body8BitMIME
	case mail.Body != Body8BitMIME:
		mail.Body = ""
	}
}

// fitUTF8 finds out who needs SMTPUTF8 (RFC 6531 sections 3.2 and 3.4): everybody, when
// the message or its sender does, else the recipients whose addresses do. It is said for
// nobody else.
func (s *sending) fitUTF8() {
	offered := s.c.offers("SMTPUTF8")
	refusal := Permanent(553, 6, 7, "Next server does not offer SMTPUTF8, which this address or message needs")
	mail := &s.tx.Mail
	mail.UTF8 = mail.UTF8 || mail.From.NeedsUTF8()
	if mail.UTF8 && !offered {
		s.answer(StageHello, refusal)
	}
	for i := range s.tx.Rcpts {
		if !s.tx.Rcpts[i].To.NeedsUTF8() {
			continue
		}
		if offered {
			mail.UTF8 = true
		} else if s.replies[i].IsZero() {
			s.replies[i], s.stages[i] = refusal, StageHello
		}
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
	return r
}
