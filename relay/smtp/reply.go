package smtp

import (
	"fmt"
	"strconv"
	"strings"
)

// EnhancedCode is an enhanced mail system status code (RFC 3463): class 2, 4
// or 5, subject 0 to 999, detail 0 to 999. The zero value means "none given".
type EnhancedCode struct {
	Class, Subject, Detail int
}

// IsZero reports that no enhanced code was given.
func (e EnhancedCode) IsZero() bool { return e.Class == 0 }

// String returns the dotted form, "5.7.1", or "" for the zero value.
func (e EnhancedCode) String() string {
	if e.IsZero() {
		return ""
	}
	return strconv.Itoa(e.Class) + "." + strconv.Itoa(e.Subject) + "." + strconv.Itoa(e.Detail)
}

// ParseEnhancedCode reads what String wrote, the zero code from anything else.
func ParseEnhancedCode(s string) EnhancedCode {
	var e EnhancedCode
	if n, err := fmt.Sscanf(s, "%d.%d.%d", &e.Class, &e.Subject, &e.Detail); n != 3 || err != nil {
		return EnhancedCode{}
	}
	return e
}

// Reply is one complete SMTP reply (RFC 5321 section 4.2). It crosses every
// boundary of the relay: what a client hears, what an upstream said, what is
// stored as an outcome and what a notice quotes.
//
// Text holds the text without codes; "\n" separates the lines of a multi-line
// reply. Replies that Postern gives are made by OK, Intermediate, Temporary and
// Permanent, so that code, enhanced code and meaning always agree.
type Reply struct {
	Code     int
	Enhanced EnhancedCode
	Text     string
}

// OK makes a positive completion reply; code is 2yz, the enhanced class is 2.
func OK(code, subject, detail int, text string) Reply {
	return made(code, 2, EnhancedCode{2, subject, detail}, text)
}

// Intermediate makes a 3yz reply, which carries no enhanced code.
func Intermediate(code int, text string) Reply {
	return made(code, 3, EnhancedCode{}, text)
}

// Temporary makes a transient negative reply; code is 4yz, the enhanced class is 4.
func Temporary(code, subject, detail int, text string) Reply {
	return made(code, 4, EnhancedCode{4, subject, detail}, text)
}

// Permanent makes a permanent negative reply; code is 5yz, the enhanced class is 5.
func Permanent(code, subject, detail int, text string) Reply {
	return made(code, 5, EnhancedCode{5, subject, detail}, text)
}

// made panics on a code of another class: the codes are constants of this
// program, so that is a defect of the caller and not an input.
func made(code, class int, enhanced EnhancedCode, text string) Reply {
	if code/100 != class {
		panic(fmt.Sprintf("smtp: reply code %d is not of class %d", code, class))
	}
	return Reply{Code: code, Enhanced: enhanced, Text: text}
}

// IsZero reports that there is no reply at all.
func (r Reply) IsZero() bool { return r.Code == 0 }

// IsPositive reports a 2yz reply.
func (r Reply) IsPositive() bool { return r.Code/100 == 2 }

// IsIntermediate reports a 3yz reply.
func (r Reply) IsIntermediate() bool { return r.Code/100 == 3 }

// IsTemporary reports a 4yz reply: the same request may succeed later.
func (r Reply) IsTemporary() bool { return r.Code/100 == 4 }

// IsPermanent reports a 5yz reply.
func (r Reply) IsPermanent() bool { return r.Code/100 == 5 }

// Append appends the wire form, each line ended by CRLF, to dst and returns it.
// The enhanced code is repeated on every line (RFC 2034 section 4). A control in
// the text is written as "?", so that no text can make a second reply.
func (r Reply) Append(dst []byte) []byte {
	text := r.Text
	for {
		line, rest, more := strings.Cut(text, "\n")
		dst = strconv.AppendInt(dst, int64(r.Code), 10)
		if more {
			dst = append(dst, '-')
		} else {
			dst = append(dst, ' ')
		}
		if !r.Enhanced.IsZero() {
			dst = append(dst, r.Enhanced.String()...)
			dst = append(dst, ' ')
		}
		dst = appendText(dst, line)
		dst = append(dst, '\r', '\n')
		if !more {
			return dst
		}
		text = rest
	}
}

func appendText(dst []byte, line string) []byte {
	for i := range len(line) {
		c := line[i]
		if c < ' ' || c == 0x7F {
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}

// String returns the reply on one line, "450 4.2.1 try later", for logs and people.
func (r Reply) String() string {
	if r.IsZero() {
		return ""
	}
	var b strings.Builder
	b.WriteString(strconv.Itoa(r.Code))
	if !r.Enhanced.IsZero() {
		b.WriteByte(' ')
		b.WriteString(r.Enhanced.String())
	}
	if r.Text != "" {
		b.WriteByte(' ')
		b.WriteString(strings.ReplaceAll(r.Text, "\n", " "))
	}
	return b.String()
}

// Error is a refusal with the reply that the peer is to hear. Err, when set, is
// the cause for the log and never reaches the wire.
type Error struct {
	Reply Reply
	Err   error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Reply.String() + ": " + e.Err.Error()
	}
	return e.Reply.String()
}

func (e *Error) Unwrap() error { return e.Err }
