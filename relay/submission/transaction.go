package submission

import (
	"net/netip"
	"strings"
	"time"

	"postern/auth"
	"postern/policy"
	"postern/policy/quota"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// mailFrom is MAIL (RFC 5321 section 4.1.1.2). It refuses early, where it can: the size, the
// sender, mail over a limit that was reached a moment ago, and mail without room or
// database.
func (s *session) mailFrom(args string) smtp.Reply {
	switch {
	case !s.greeted:
		return smtp.Permanent(503, 5, 1, "Send EHLO first")
	case s.tx != nil:
		return smtp.Permanent(503, 5, 1, "Sender already given, RSET or finish first")
	}
	s.putOff = false
	mail, err := smtp.ParseMail(s.path(args))
	if err != nil {
		return s.refuse(smtp.StageMail, smtp.Address{}, syntaxError(err), "", nil)
	}
	if mail.RequireTLS && s.secured == "" {
		return smtp.Permanent(555, 5, 4, "REQUIRETLS needs TLS")
	}
	if !s.esmtp && hasParameters(mail) {
		return smtp.Permanent(555, 5, 4, "Parameters need EHLO")
	}
	tx := &transaction{mail: mail}
	if r, rule, cause := s.judgeMail(tx); !r.IsZero() {
		s.putOff = r.IsTemporary()
		s.tx = tx // for the log
		defer s.endTransaction()
		return s.refuse(smtp.StageMail, smtp.Address{}, r, rule, cause)
	}
	s.tx = tx
	return smtp.OK(250, 1, 0, "Ok")
}

// needMail is the reply to a command that needs a transaction when there is none. A client
// that pipelines sends RCPT and DATA before it reads that MAIL was refused for now: those
// are not its faults, and our trouble is never 5yz.
func (s *session) needMail() smtp.Reply {
	if s.putOff {
		return smtp.Temporary(451, 5, 1, "Mail was refused temporarily, try again later")
	}
	return smtp.Permanent(503, 5, 1, "Need MAIL first")
}

// judgeMail returns the reply that refuses a transaction, or none.
func (s *session) judgeMail(tx *transaction) (r smtp.Reply, rule string, cause error) {
	if v := policy.Size(*s.identity, tx.mail.Size, s.limits.MessageSize); !v.Allowed {
		return v.Reply, v.Rule, nil
	}
	v := policy.Sender(*s.identity, tx.mail.From)
	if !v.Allowed {
		return v.Reply, v.Rule, nil
	}
	tx.rule = v.Rule
	if v := policy.Messages(*s.identity, time.Now()); !v.Allowed {
		return v.Reply, v.Rule, nil
	}
	if v := s.overLimit(quota.Messages, 1); !v.Allowed {
		return v.Reply, v.Rule, nil
	}
	if v := s.overLimit(quota.Bytes, tx.mail.Size); !v.Allowed {
		return v.Reply, v.Rule, nil
	}
	if err := s.server.cfg.Queue.Available(); err != nil {
		return queueRefusal(err), "", err
	}
	if !s.server.spool.room(tx.mail.Size, s.holders) {
		return errFull.Reply, "", errFull
	}
	return smtp.Reply{}, "", nil
}

// hasParameters reports anything that is not part of MAIL in RFC 821.
func hasParameters(m smtp.MailCommand) bool {
	m.From = smtp.Address{}
	return m != smtp.MailCommand{}
}

// rcptTo is RCPT (RFC 5321 section 4.1.1.3).
func (s *session) rcptTo(args string) smtp.Reply {
	if s.tx == nil {
		return s.needMail()
	}
	tx := s.tx
	rcpt, err := smtp.ParseRcpt(s.path(args), tx.mail.UTF8)
	if err != nil {
		s.refused++
		return s.refuseRcpt(smtp.Address{}, syntaxError(err), "")
	}
	to := s.qualify(rcpt.To)
	key := smtp.Address{Local: to.Local, Domain: to.DomainKey()}
	if _, twice := tx.known[key]; twice {
		return smtp.OK(250, 1, 5, "Ok") // one copy for each recipient
	}
	if v := policy.Recipient(*s.identity, to); !v.Allowed {
		return s.refuseRcpt(to, v.Reply, v.Rule)
	}
	if v := policy.Recipients(*s.identity, len(tx.rcpts)+1, s.limits.Recipients); !v.Allowed {
		// The address is not wrong, and the client may have pipelined many more before it
		// reads this: it does not count towards RefusedRecipients.
		return s.refuseRcpt(to, v.Reply, v.Rule)
	}
	if v := s.overLimit(quota.Recipients, int64(len(tx.rcpts)+1)); !v.Allowed {
		return s.refuseRcpt(to, v.Reply, v.Rule)
	}
	suppressed, refusal, rule := s.suppressed(to)
	if !refusal.IsZero() {
		return s.refuseRcpt(to, refusal, rule)
	}
	if !s.take(recipientTakes(to, &rcpt)) {
		return s.refuseRcpt(to, errFull.Reply, "")
	}
	if tx.known == nil {
		tx.known = make(map[smtp.Address]struct{})
	}
	tx.known[key] = struct{}{}
	tx.rcpts = append(tx.rcpts, queue.Recipient{
		N: len(tx.rcpts), Address: to,
		Notify: rcpt.Notify, ORcptType: rcpt.ORcptType, ORcpt: rcpt.ORcpt,
		Suppressed: suppressed,
	})
	s.commands-- // bounded by the limit of recipients
	return smtp.OK(250, 1, 5, "Ok")
}

// suppressed looks for an entry of the suppression list: it is accepted, to fail, or refused by a rule.
func (s *session) suppressed(to smtp.Address) (accepted bool, refusal smtp.Reply, rule string) {
	list := s.server.cfg.Suppression
	if list == nil {
		return false, smtp.Reply{}, ""
	}
	user := s.identity.UserID
	if s.identity.Suppressed == auth.IgnoreSuppressed {
		user = 0
	}
	e, err := list.Find(s.server.cutting, user, to)
	switch {
	case err != nil:
		if s.server.mail.Allow("suppression", netip.AddrPort{}) {
			s.server.log.Warn("cannot look for suppressed recipients", "error", err)
		}
		return false, smtp.Temporary(451, 3, 0, "Recipients cannot be checked now, try again later"), ""
	case e == nil:
		return false, smtp.Reply{}, ""
	}
	list.Refused(e)
	s.server.counts.suppressed.Add(1)
	if s.identity.Suppressed == auth.AcceptSuppressed && !e.IsPattern() {
		return true, smtp.Reply{}, ""
	}
	return false, e.Refusal(), e.Rule()
}

// path is the arguments of MAIL or RCPT as the grammar has them, where the listener
// tolerates others.
func (s *session) path(args string) string {
	if s.brackets {
		return smtp.Bracketed(args)
	}
	return args
}

// qualify gives "postmaster" without a domain ours (RFC 5321 section 4.1.1.3).
func (s *session) qualify(a smtp.Address) smtp.Address {
	if a.Domain == "" && strings.EqualFold(a.Local, "postmaster") {
		a.Domain = s.server.cfg.Hostname
	}
	return a
}

// rset is RSET (RFC 5321 section 4.1.1.5).
func (s *session) rset(args string) smtp.Reply {
	if args != "" {
		return smtp.Permanent(501, 5, 4, "RSET takes no arguments")
	}
	s.endTransaction()
	s.putOff = false
	return smtp.OK(250, 0, 0, "Ok")
}

func (s *session) refuseRcpt(to smtp.Address, r smtp.Reply, rule string) smtp.Reply {
	s.tx.refused++
	s.tx.putOff = s.tx.putOff || r.IsTemporary()
	s.server.counts.refusedRecipients.Add(1)
	if tell := s.server.cfg.Refused; tell != nil && r.IsPermanent() && to != (smtp.Address{}) {
		tell(s.identity.UserID, to, r)
	}
	return s.refuse(smtp.StageRcpt, to, r, rule, nil)
}

// refuse logs a refusal of mail and returns its reply.
func (s *session) refuse(stage smtp.Stage, to smtp.Address, r smtp.Reply, rule string, cause error) smtp.Reply {
	e := maillog.Refusal{User: s.user(), Recipient: to, Client: s.peer.addr, Stage: stage, Reply: r, Rule: rule, Err: cause}
	if s.tx != nil {
		e.Sender = s.tx.mail.From
	}
	s.server.mail.Refused(e)
	return r
}

// syntaxError is the reply to arguments that could not be parsed.
func syntaxError(err error) smtp.Reply {
	if refusal, ok := asRefusal(err); ok {
		return refusal.Reply
	}
	return smtp.Permanent(501, 5, 4, "Syntax error in arguments")
}
