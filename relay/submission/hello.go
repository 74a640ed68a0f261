package submission

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"postern/auth"
	"postern/policy"
	"postern/relay/smtp"
)

// ehlo is EHLO (RFC 5321 section 4.1.1.1). It also ends a transaction (4.1.4).
func (s *session) ehlo(args string) smtp.Reply {
	if !isHello(args) {
		return smtp.Permanent(501, 5, 4, "EHLO needs the name of your host")
	}
	s.hello, s.esmtp, s.tx, s.putOff = args, true, nil, false
	// No enhanced codes here (RFC 2034 section 4).
	return smtp.Reply{Code: 250, Text: s.capabilities()}
}

// helo is HELO. Without EHLO there is neither AUTH nor STARTTLS, so mail needs
// EHLO as well.
func (s *session) helo(args string) smtp.Reply {
	if !isHello(args) {
		return smtp.Permanent(501, 5, 4, "HELO needs the name of your host")
	}
	s.hello, s.esmtp, s.tx, s.putOff = args, false, nil, false
	return smtp.Reply{Code: 250, Text: s.server.cfg.Hostname}
}

// capabilities are the lines of the reply to EHLO: our name and the extensions.
func (s *session) capabilities() string {
	lines := []string{
		s.server.cfg.Hostname,
		"PIPELINING",
		fmt.Sprintf("SIZE %d", s.maxSize()),
		"8BITMIME",
		"SMTPUTF8",
		"ENHANCEDSTATUSCODES",
		"DSN",
		"HELP",
	}
	if s.secured == "" {
		lines = append(lines, "STARTTLS")
	} else {
		// Never in clear: what is offered there is used there.
		lines = append(lines, "AUTH "+strings.Join(auth.Mechanisms(), " "))
	}
	return strings.Join(lines, "\n")
}

// maxSize is how large a message may be for this client, as far as it is known.
func (s *session) maxSize() int64 {
	if s.identity == nil {
		return s.limits.MessageSize
	}
	return policy.MaxSize(*s.identity, s.limits.MessageSize)
}

// isHello is lenient: many clients do not know a proper name of their host, and
// RFC 6409 section 4.2 wants them served. What is not fit for a Received field is
// left out of it; what is no text at all is refused.
func isHello(name string) bool {
	return name != "" && len(name) <= 255 && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) })
}

// vrfy is VRFY, which tells nothing (RFC 5321 section 7.3).
func vrfy(args string) smtp.Reply {
	if args == "" {
		return smtp.Permanent(501, 5, 4, "VRFY needs an address")
	}
	return smtp.OK(252, 0, 0, "Cannot verify, but will take a message and try to deliver it")
}

// quit is QUIT (RFC 5321 section 4.1.1.10).
func (s *session) quit(args string) smtp.Reply {
	if args != "" {
		return smtp.Permanent(501, 5, 4, "QUIT takes no arguments")
	}
	s.end("quit")
	return smtp.OK(221, 0, 0, "Bye")
}
