package smtp

import (
	"bytes"
	"errors"
	"strings"
)

// Command is one command line: Verb in upper case, Args as sent, without the
// space that separates them and without trailing white space.
type Command struct {
	Verb string
	Args string
}

// BodyType is the BODY parameter of MAIL (RFC 6152). The zero value says nothing.
type BodyType string

const (
	Body7Bit     BodyType = "7BIT"
	Body8BitMIME BodyType = "8BITMIME"
)

// Return is the RET parameter of MAIL (RFC 3461 section 4.3).
type Return string

const (
	ReturnFull    Return = "FULL"
	ReturnHeaders Return = "HDRS"
)

// Notify is the set of the NOTIFY parameter of RCPT (RFC 3461 section 4.1).
// The zero value means that none was given: failure and, by custom, delay.
type Notify uint8

const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// TLSNeed is what a message wants of TLS on its way (RFC 8689); "" leaves it to the hosts.
type TLSNeed string

// The needs of TLS.
const (
	TLSRequired TLSNeed = "required" // REQUIRETLS: verified TLS at each hop, else no delivery
	TLSOptional TLSNeed = "optional" // TLS-Required: No: delivery, whatever a domain demands
)

// MailCommand is what MAIL FROM said.
type MailCommand struct {
	From  Address
	Size  int64 // octets declared by SIZE=; 0 where none was
	Body  BodyType
	UTF8  bool   // SMTPUTF8
	Ret   Return // "" where none was given
	EnvID string // decoded from xtext, printable ASCII; "" where none was given
	Auth  string // AUTH= decoded (RFC 4954 section 5); "" where none was given

	RequireTLS bool // REQUIRETLS (RFC 8689)
}

// RcptCommand is what RCPT TO said.
type RcptCommand struct {
	To        Address
	Notify    Notify
	ORcptType string // ORCPT address type in lower case, "rfc822" or "utf-8" or, rarely, another atom; "" where none was given
	ORcpt     string // ORCPT address, decoded; printable
}

// ParseCommand splits a command line (without CRLF). The error is an *Error. Args
// has no controls, and may be no valid UTF-8: clients put the name of their host
// into EHLO in whatever charset it has.
func ParseCommand(line []byte) (Command, error) {
	line = bytes.TrimRight(line, " \t")
	word, args, _ := bytes.Cut(line, []byte{' '})
	verb := verbName(word)
	if verb == "" {
		return Command{}, &Error{Reply: Permanent(500, 5, 2, "Command not recognized")}
	}
	for _, c := range args {
		if c < ' ' || c == 0x7F {
			return Command{}, &Error{Reply: Permanent(500, 5, 2, "Command has a control character")}
		}
	}
	return Command{Verb: verb, Args: string(bytes.TrimLeft(args, " "))}, nil
}

// verbs are the commands that need no new string.
var verbs = []string{"MAIL", "RCPT", "DATA", "EHLO", "QUIT", "RSET", "AUTH", "NOOP", "STARTTLS", "HELO", "VRFY", "HELP", "EXPN", "BDAT"}

// verbName returns a verb in upper case, "" for what is none.
func verbName(word []byte) string {
	for _, v := range verbs {
		if len(v) == len(word) && strings.EqualFold(v, string(word)) {
			return v
		}
	}
	for _, c := range word {
		if c |= 0x20; c < 'a' || c > 'z' {
			return ""
		}
	}
	if len(word) > 32 {
		return ""
	}
	return strings.ToUpper(string(word))
}

// ParseMail parses the arguments of MAIL, "FROM:<a@b> SIZE=1". UTF-8 in the
// address needs the SMTPUTF8 parameter. The error is an *Error.
func ParseMail(args string) (MailCommand, error) {
	var m MailCommand
	path, rest, err := cutPath(args, "FROM:")
	if err != nil {
		return m, err
	}
	if path != "" {
		if m.From, err = parsePath(path, ParseAddress); err != nil {
			return m, badPath(Permanent(501, 1, 7, "Bad sender address: "+err.Error()))
		}
	}
	params, err := splitParams(rest, false)
	if err != nil {
		return m, err
	}
	for _, p := range params {
		if err := m.set(p); err != nil {
			return m, err
		}
	}
	if !m.UTF8 && !IsASCII(path) {
		return m, needsUTF8()
	}
	return m, nil
}

// ParseRcpt parses the arguments of RCPT, "TO:<a@b> NOTIFY=NEVER". utf8 says that
// MAIL had SMTPUTF8. "<postmaster>", which every server must take (RFC 5321 section
// 4.5.1), is an Address without Domain; it is for the session to complete it. The
// error is an *Error.
func ParseRcpt(args string, utf8 bool) (RcptCommand, error) {
	var r RcptCommand
	path, rest, err := cutPath(args, "TO:")
	if err != nil {
		return r, err
	}
	if strings.EqualFold(path, "postmaster") {
		r.To = Address{Local: path}
	} else if r.To, err = parsePath(path, ParseRecipient); err != nil {
		return r, badPath(Permanent(501, 1, 3, "Bad recipient address: "+err.Error()))
	}
	if !utf8 && !IsASCII(path) {
		return r, needsUTF8()
	}
	params, err := splitParams(rest, utf8)
	if err != nil {
		return r, err
	}
	for _, p := range params {
		if err := r.set(p); err != nil {
			return r, err
		}
	}
	return r, nil
}

func badPath(r Reply) error { return &Error{Reply: r} }

// needsUTF8 is the refusal of RFC 6531 section 3.5.
func needsUTF8() error {
	return &Error{Reply: Permanent(553, 6, 7, "Address with UTF-8 needs SMTPUTF8")}
}

// cutPath takes the keyword and the path, without its brackets, off args. The path
// ends at the first ">" outside quotes, so what a quoted local part holds is never
// taken for parameters. Spaces before the path are against the grammar and sent by
// old clients.
func cutPath(args, keyword string) (path, rest string, err error) {
	if len(args) < len(keyword) || !strings.EqualFold(args[:len(keyword)], keyword) {
		return "", "", badSyntax(keyword)
	}
	s := strings.TrimLeft(args[len(keyword):], " ")
	if s != "" && s[0] != '<' {
		return "", "", badParam("Put the address in angle brackets, " + keyword + "<user@example.com>")
	}
	end := endOfPath(s, '>')
	if end < 0 {
		return "", "", badSyntax(keyword)
	}
	path, rest = s[1:end], s[end+1:]
	if rest != "" && rest[0] != ' ' {
		return "", "", badSyntax(keyword)
	}
	return path, rest, nil
}

// Bracketed returns the arguments of MAIL or RCPT with angle brackets around a path
// that has none, as some devices send it against RFC 5321 section 4.1.1.2:
// "FROM:a@b SIZE=1" becomes "FROM:<a@b> SIZE=1". The path ends at the first space
// outside quotes. All other arguments are returned as they are.
func Bracketed(args string) string {
	keyword, path, ok := strings.Cut(args, ":")
	path = strings.TrimLeft(path, " ")
	if !ok || path == "" || path[0] == '<' {
		return args
	}
	end := endOfPath(path, ' ')
	if end < 0 {
		end = len(path)
	}
	return keyword + ":<" + path[:end] + ">" + path[end:]
}

func badSyntax(keyword string) error {
	return badParam("Syntax: " + keyword + "<address> [parameters]")
}

// endOfPath returns where the first end outside quotes is, or -1.
func endOfPath(s string, end byte) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == end && !quoted:
			return i
		}
	}
	return -1
}

// parsePath parses a mailbox, by parse, with perhaps a source route before it, which is
// checked and ignored (RFC 5321 section 4.1.1.3 and appendix C).
func parsePath(s string, parse func(mailbox string) (Address, error)) (Address, error) {
	for first := true; strings.HasPrefix(s, "@"); first = false {
		end := strings.IndexAny(s, ",:")
		if strings.HasPrefix(s, "@[") {
			if n := strings.IndexByte(s, ']'); n >= 0 {
				end = n + 1
			}
		}
		if end < 0 || end >= len(s) || !ValidDomain(s[1:end]) {
			if first {
				return Address{}, errLocalEmpty
			}
			return Address{}, errRoute
		}
		separator := s[end]
		s = s[end+1:]
		if separator == ':' {
			return parse(s)
		}
		if separator != ',' || !strings.HasPrefix(s, "@") {
			return Address{}, errRoute
		}
	}
	return parse(s)
}

var errRoute = errors.New("source route is not valid")

// Append appends the command line of MAIL without CRLF; only the parameters that
// are set are written, and it is for the caller to leave out those that the peer
// does not offer.
func (m MailCommand) Append(dst []byte) []byte {
	dst = append(dst, "MAIL FROM:<"...)
	dst = append(dst, m.From.String()...)
	dst = append(dst, '>')
	return m.appendParams(dst)
}

// Append appends the command line of RCPT without CRLF.
func (r RcptCommand) Append(dst []byte) []byte {
	dst = append(dst, "RCPT TO:<"...)
	dst = append(dst, r.To.String()...)
	dst = append(dst, '>')
	return r.appendParams(dst)
}
