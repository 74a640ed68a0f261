package submission

import (
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"postern/auth"
	"postern/policy"
	"postern/policy/quota"
	"postern/relay/maillog"
	"postern/relay/queue/reserve"
	"postern/relay/smtp"
)

// auth is AUTH (RFC 4954). In clear the argument is ignored: it may be a password, and the
// client must learn not to send it. A transaction is never open here, for MAIL needs AUTH.
func (s *session) auth(args string) smtp.Reply {
	switch {
	case s.secured == "":
		return smtp.Permanent(538, 7, 11, "Encryption required for requested authentication mechanism")
	case !s.esmtp:
		return smtp.Permanent(503, 5, 1, "Send EHLO first")
	case s.identity != nil:
		return smtp.Permanent(503, 5, 1, "Already authenticated")
	case args == "":
		return smtp.Permanent(501, 5, 4, "AUTH needs a mechanism")
	case s.unnamed:
		// Without an address there is nobody to throttle, and no network to check.
		s.waits++
		return smtp.Temporary(454, 7, 0, "The load balancer does not pass on your address")
	}
	mech, initial, given := strings.Cut(args, " ")
	mech = strings.ToUpper(mech)
	// The context ends with the server's patience, not with the client's connection.
	peer := auth.Peer{Addr: s.peer.addr.Addr(), TLS: s.secured}
	exchange, identity, err := auth.NewExchange(s.server.cutting, mech, peer, s.server.cfg.Verifier)
	if err != nil {
		return smtp.Permanent(504, 5, 4, "Unrecognized authentication mechanism")
	}
	response, ok := initialResponse(initial, given)
	if !ok {
		return badBase64
	}
	// A remembered password needs no database, but nothing could be accepted: the client
	// would only be refused at MAIL. MAIL explains a full disk better.
	if err := s.server.cfg.Queue.Available(); err != nil && !errors.Is(err, reserve.ErrFull) {
		return s.authEnded(mech, "", err)
	}
	mark := s.server.logins.mark()
	err = s.converse(exchange, response)
	if s.ended != "" {
		return smtp.Reply{}
	}
	if err == nil {
		err = s.admit(identity(), mark)
	}
	return s.authEnded(mech, identity().Name, err)
}

// LoginRefused is what a client is told whose login is refused, whatever the reason.
func LoginRefused() smtp.Reply {
	return smtp.Permanent(535, 7, 8, "Authentication credentials invalid")
}

// tooMany refuses a login because of the sessions that are open.
type tooMany struct{ policy.Verdict }

func (e *tooMany) Error() string { return "too many sessions" }

// admit makes id the session's if it may have one more, and known to Recheck.
func (s *session) admit(id auth.Identity, mark uint64) error {
	if sessions := s.server.cfg.Sessions; sessions != nil {
		leave, over, err := sessions.Enter(s.server.cutting, quota.Session{User: id.UserID, Credential: id.CredentialID, Domain: id.Domain()}, id.Limits)
		if err != nil {
			return err
		}
		if over != nil {
			return &tooMany{policy.OverLimit(over, time.Now())}
		}
		s.release = leave
	}
	s.identity = &id
	s.holders = holders{userOf(id.UserID), s.peer.network}
	s.sharing.Store(&s.holders)
	s.wire.known.Store(true)
	s.server.peers.know(s.peer.network)
	s.server.logins.enter(s, access{id.UserID, id.CredentialID, s.peer.addr.Addr()}, mark, id.Expires)
	return nil
}

var (
	badBase64    = smtp.Permanent(501, 5, 2, "Cannot decode the response")
	errBase64    = errors.New("response is not base64")
	errCancelled = errors.New("client cancelled the exchange")
)

// maxRounds bounds a SASL exchange; the mechanisms offered need two.
const maxRounds = 8

// converse runs the exchange to its end. If the connection fails, the session has ended and
// the error means nothing.
func (s *session) converse(exchange sasl.Server, response []byte) error {
	for range maxRounds {
		challenge, done, err := exchange.Next(response)
		if done || err != nil {
			return err
		}
		// A challenge is base64 alone, without an enhanced code (RFC 4954 section 4).
		s.wire.reply(smtp.Intermediate(334, base64.StdEncoding.EncodeToString(challenge)))
		s.await(true)
		line, err := s.reader.Line(smtp.MaxAuthLine)
		var refusal *smtp.Error
		switch {
		case errors.As(err, &refusal):
			return errBase64
		case err != nil:
			s.lineFailed(err)
			return err
		case string(line) == "*":
			return errCancelled
		}
		if response, err = decode64(string(line)); err != nil {
			return errBase64
		}
	}
	return auth.ErrMalformed
}

// authEnded logs and counts the end of an exchange and returns its reply. Only a
// wrong password is 535; trouble of ours is 454, whatever it is. user is the name that
// logged in or was tried, as far as the client gave one.
func (s *session) authEnded(mech, user string, err error) smtp.Reply {
	e := maillog.AuthEvent{
		User: user, Client: s.peer.addr, Listener: s.listener.Name,
		Mechanism: mech, TLS: s.secured, OK: err == nil,
	}
	var r smtp.Reply
	var over *tooMany
	switch {
	case err == nil:
		r = smtp.OK(235, 7, 0, "Authentication succeeded")
	case errors.Is(err, auth.ErrCredentials):
		r, e.Reason = LoginRefused(), "credentials"
	case errors.Is(err, errCancelled):
		r, e.Reason = smtp.Permanent(501, 7, 0, "Authentication cancelled"), "cancelled"
	case errors.Is(err, errBase64):
		r, e.Reason = badBase64, "malformed"
	case errors.Is(err, auth.ErrMalformed):
		r, e.Reason = smtp.Permanent(501, 5, 2, "Malformed authentication exchange"), "malformed"
	case errors.As(err, &over):
		r, e.Reason, e.Rule = over.Reply, "sessions", over.Rule
		s.server.counts.refusedSessions.Add(1)
	case errors.Is(err, auth.ErrBusy):
		r, e.Reason = smtp.Temporary(454, 7, 0, "Authentication is busy, try again later"), "busy"
	default:
		r, e.Reason, e.Err = smtp.Temporary(454, 7, 0, "Temporary authentication failure"), "unavailable", err
	}
	s.server.mail.Auth(e)
	switch {
	case err == nil:
		s.server.counts.authSucceeded.Add(1)
	case r.Code == 535:
		s.failures++
		s.server.counts.authFailed.Add(1)
	case r.IsTemporary():
		s.waits++
	}
	return r
}

// initialResponse decodes the argument behind the mechanism: nil when there is
// none, empty for "=" (RFC 4954 section 4).
func initialResponse(arg string, given bool) (response []byte, ok bool) {
	switch {
	case !given:
		return nil, true
	case arg == "=":
		return []byte{}, true
	case arg == "":
		return nil, false
	}
	response, err := decode64(arg)
	return response, err == nil
}

// decode64 is strict: padding is needed, and no other octets are skipped, though
// the standard decoder passes over CR and LF, which a line cannot hold here.
func decode64(s string) ([]byte, error) {
	out, err := base64.StdEncoding.Strict().DecodeString(s)
	if out == nil {
		out = []byte{}
	}
	return out, err
}
