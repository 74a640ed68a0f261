package submission

import "fmt"

// The oracle is a second, independent telling of what a session may do (A22). It
// shares no code with session.go: RFC 5321, 3207 and 4954 as a table of states.

// state is where a session stands.
type state int

const (
	clearNew    state = iota // greeted by us, nothing said
	clearHelo                // HELO in clear
	clearEhlo                // EHLO in clear
	tlsNew                   // handshake done, nothing said
	tlsHelo                  // HELO inside TLS
	tlsEhlo                  // EHLO inside TLS
	authEhlo                 // authenticated
	authHelo                 // authenticated, and then HELO
	mailGiven                // MAIL was accepted
	rcptRefused              // MAIL, and RCPT refused only
	rcptGiven                // MAIL, and at least one RCPT
	closed                   // by either side
)

// op is one step of a client.
type op int

const (
	opEhlo op = iota
	opHelo
	opStartTLS
	opAuthOK
	opAuthBad
	opAuthCancel
	opAuthGarbage
	opMail
	opMailSyntax
	opMailForbidden
	opMailUTF8
	opMailTooLarge
	opRcpt
	opRcptOther
	opRcptSyntax
	opRcptUTF8
	opData
	opDataRefused // by the queue
	opDataBareLF
	opDataOversize
	opDataCut // the client goes in the middle of it
	opBdat
	opRset
	opNoop
	opVrfy
	opJunk
	opQuit
	ops // how many there are
)

func (o op) String() string {
	return [...]string{
		"EHLO", "HELO", "STARTTLS", "AUTH", "AUTH wrong", "AUTH *", "AUTH garbage",
		"MAIL", "MAIL syntax", "MAIL forbidden", "MAIL utf8", "MAIL too large",
		"RCPT", "RCPT other", "RCPT syntax", "RCPT utf8",
		"DATA", "DATA refused", "DATA bare LF", "DATA oversize", "DATA cut",
		"BDAT", "RSET", "NOOP", "VRFY", "junk", "QUIT",
	}[o]
}

// maxOracleRcpts is Limits.Recipients of the servers under test.
const maxOracleRcpts = 3

// oracle follows one session.
type oracle struct {
	at    state
	rcpts []string

	queued []string // what must be in the queue, as envelopeOf tells it
}

func (o *oracle) secure() bool        { return o.at >= tlsNew && o.at != closed }
func (o *oracle) authenticated() bool { return o.at >= authEhlo && o.at != closed }
func (o *oracle) inMail() bool        { return o.at >= mailGiven && o.at != closed }
func (o *oracle) saidEhlo() bool {
	return o.at == clearEhlo || o.at == tlsEhlo || o.at == authEhlo
}

// step returns the codes that a step is answered by, the last one deciding, and
// moves on. helo is whether the session's greeting was HELO.
func (o *oracle) step(p op, helo bool, marker string) []int {
	switch p {
	case opNoop:
		return []int{250}
	case opQuit:
		o.at = closed
		return []int{221}
	case opJunk:
		return []int{500}
	case opRset:
		o.reset(helo)
		return []int{250}
	case opEhlo, opHelo:
		return o.hello(p)
	case opStartTLS:
		switch {
		case o.secure():
			return []int{503}
		case !o.saidEhlo():
			return []int{503}
		}
		o.at = tlsNew
		return []int{220}
	case opAuthOK, opAuthBad, opAuthCancel, opAuthGarbage:
		return o.login(p, helo)
	}
	if !o.authenticated() {
		return []int{530}
	}
	switch p {
	case opVrfy:
		return []int{252}
	case opBdat:
		return []int{502}
	case opMail, opMailSyntax, opMailForbidden, opMailUTF8, opMailTooLarge:
		return o.mail(p, helo)
	case opRcpt, opRcptOther, opRcptSyntax, opRcptUTF8:
		return o.rcpt(p)
	}
	return o.data(p, helo, marker)
}

func (o *oracle) reset(helo bool) {
	if o.inMail() {
		o.at, o.rcpts = authEhlo, nil
		if helo {
			o.at = authHelo
		}
	}
}

func (o *oracle) hello(p op) []int {
	o.rcpts = nil
	switch {
	case o.authenticated() && p == opEhlo:
		o.at = authEhlo
	case o.authenticated():
		o.at = authHelo
	case o.secure() && p == opEhlo:
		o.at = tlsEhlo
	case o.secure():
		o.at = tlsHelo
	case p == opEhlo:
		o.at = clearEhlo
	default:
		o.at = clearHelo
	}
	return []int{250}
}

func (o *oracle) login(p op, helo bool) []int {
	switch {
	case !o.secure():
		return []int{538}
	case o.authenticated(), o.at != tlsEhlo:
		return []int{503}
	}
	switch p {
	case opAuthOK:
		o.at = authEhlo
		return []int{235}
	case opAuthBad:
		return []int{535}
	case opAuthCancel:
		return []int{334, 501}
	}
	return []int{501}
}

func (o *oracle) mail(p op, helo bool) []int {
	switch {
	case o.inMail():
		return []int{503}
	case p == opMailSyntax:
		return []int{501}
	case p == opMailUTF8:
		return []int{553}
	case p == opMailTooLarge && helo:
		return []int{555} // SIZE= is an extension
	case p == opMailTooLarge:
		return []int{552}
	case p == opMailForbidden:
		return []int{550}
	}
	o.at = mailGiven
	return []int{250}
}

func (o *oracle) rcpt(p op) []int {
	if !o.inMail() {
		return []int{503}
	}
	refused := func(code int) []int {
		if o.at == mailGiven {
			o.at = rcptRefused
		}
		return []int{code}
	}
	switch p {
	case opRcptSyntax:
		return refused(501)
	case opRcptUTF8:
		return refused(553)
	}
	name := "bob@example.net"
	if p == opRcptOther {
		name = fmt.Sprintf("r%d@example.net", len(o.rcpts))
	}
	for _, known := range o.rcpts {
		if known == name {
			return []int{250}
		}
	}
	if len(o.rcpts) == maxOracleRcpts {
		return refused(452)
	}
	o.rcpts = append(o.rcpts, name)
	o.at = rcptGiven
	return []int{250}
}

func (o *oracle) data(p op, helo bool, marker string) []int {
	switch o.at {
	case rcptGiven:
	case rcptRefused:
		return []int{554}
	default:
		return []int{503}
	}
	envelope := envelopeOf("alice@example.com", o.rcpts, marker)
	o.reset(helo)
	switch p {
	case opData:
		o.queued = append(o.queued, envelope)
		return []int{354, 250}
	case opDataRefused:
		return []int{354, 451}
	case opDataBareLF:
		return []int{354, 554}
	case opDataOversize:
		return []int{354, 552}
	}
	o.at = closed
	return []int{354}
}

// envelopeOf tells a message in one line.
func envelopeOf(sender string, rcpts []string, marker string) string {
	return fmt.Sprintf("%s %s %v", marker, sender, rcpts)
}
