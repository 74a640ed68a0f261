package smtp

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

// MailCommand is what MAIL FROM said.
type MailCommand struct {
	From  Address
	Size  int64 // octets declared by SIZE=; 0 where none was
	Body  BodyType
	UTF8  bool   // SMTPUTF8
	Ret   Return // "" where none was given
	EnvID string // decoded from xtext, printable ASCII; "" where none was given
	Auth  string // AUTH= decoded (RFC 4954 section 5); "" where none was given
}

// RcptCommand is what RCPT TO said.
type RcptCommand struct {
	To        Address
	Notify    Notify
	ORcptType string // ORCPT address type, "rfc822" or "utf-8"; "" where none was given
	ORcpt     string // ORCPT address, decoded; printable
}

// ParseCommand splits a command line (without CRLF). The error is an *Error.
func ParseCommand(line []byte) (Command, error) { panic("not yet") }

// ParseMail parses the arguments of MAIL, "FROM:<a@b> SIZE=1". UTF-8 in the
// address needs the SMTPUTF8 parameter. The error is an *Error.
func ParseMail(args string) (MailCommand, error) { panic("not yet") }

// ParseRcpt parses the arguments of RCPT, "TO:<a@b> NOTIFY=NEVER". utf8 says that
// MAIL had SMTPUTF8. The error is an *Error.
func ParseRcpt(args string, utf8 bool) (RcptCommand, error) { panic("not yet") }

// Append appends the command line of MAIL without CRLF; only the parameters that
// are set are written, and it is for the caller to leave out those that the peer
// does not offer.
func (m MailCommand) Append(dst []byte) []byte { panic("not yet") }

// Append appends the command line of RCPT without CRLF.
func (r RcptCommand) Append(dst []byte) []byte { panic("not yet") }
