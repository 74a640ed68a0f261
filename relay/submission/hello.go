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
	s.greet(args)
	s.esmtp = true
	// No enhanced codes here (RFC 2034 section 4).
	return smtp.Reply{Code: 250, Text: s.capabilities()}
}

// helo is HELO. Without EHLO there is neither AUTH nor STARTTLS, so mail needs
// EHLO as well.
func (s *session) helo(args string) smtp.Reply {
	s.greet(args)
	s.esmtp = false
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
		// Never in clear: clients would use it there.
		lines = append(lines, "REQUIRETLS", "AUTH "+strings.Join(auth.Mechanisms(), " "))
	}
	return strings.Join(lines, "\n")
}

// maxSize is the largest message allowed for this client, as far as it is known.
func (s *session) maxSize() int64 {
	if s.identity == nil {
		return s.limits.MessageSize
	}
	return policy.MaxSize(*s.identity, s.limits.MessageSize)
}

// greet notes the client's name. No name is refused: submission clients
// often do not know a proper one (RFC 6409 section 4.2), devices send none at all, and
// computers are named in whatever charset their system has. The name decides nothing.
func (s *session) greet(name string) {
	s.endTransaction()
	s.greeted, s.hello, s.putOff = true, printableHello(name), false
}

// maxHello bounds the client's name in octets, as domains are.
const maxHello = 255

// printableHello is a name as logs and traces show it: at most maxHello octets of UTF-8
// on one line. Octets that are not UTF-8 are written as \xNN, characters that cannot be
// printed as \u{NNNN}. Received has its own, stricter rule: see package message.
func printableHello(name string) string {
	isText := utf8.ValidString(name)
	var b strings.Builder
	for len(name) > 0 {
		r, n := utf8.DecodeRuneInString(name)
		piece := name[:n]
		switch {
		case !isText && name[0] >= utf8.RuneSelf:
			n, piece = 1, fmt.Sprintf(`\x%02x`, name[0])
		case !unicode.IsPrint(r):
			piece = fmt.Sprintf(`\u{%x}`, r)
		}
		if b.Len()+len(piece) > maxHello {
			break
		}
		b.WriteString(piece)
		name = name[n:]
	}
	return b.String()
}

// vrfy is VRFY, which reveals nothing (RFC 5321 section 7.3).
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
