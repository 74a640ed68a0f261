package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"postern/relay/smtp"
)

// scanner finds the end of the header section, line by line as it is read, and
// moves the lines that stay together: buf[:kept] is the header section without
// what is removed, buf[pos:filled] is what was read behind it.
type scanner struct {
	src    io.Reader
	srcErr error // of src, io.EOF included
	buf    []byte
	max    int
	memory Memory // nil: unbounded
	taken  int64  // of it

	kept   int // end of the lines that stay
	pos    int // start of the line looked at
	filled int // end of what was read

	drop    bool // the field looked at is removed
	blank   bool // there was a folded line of white space only
	noField bool // the section was ended by a line that is not a field

	facts *Facts
	name  [maxName]byte // of the field looked at, for a refusal: the first named octets of it
	named int
	seen  uint32 // bits by known
	id    []byte // the first Message-ID's value as far as it was seen
	inID  bool
	utf8  bool // SMTPUTF8 was asked for

	toUs   []toUs
	tags   int // among them
	inToUs bool

	identities []identity
	room       [4]identity
	inIdentity bool
	resent     resentSets
}

// identity is a field that says whose the message is; buf[start:end] is its body.
type identity struct {
	field      known
	set        int // of Resent fields, 0 for none
	start, end int
}

// scan reads up to the end of the header section.
func (s *scanner) scan() error {
	s.identities = s.room[:0]
	if err := s.preamble(); err != nil {
		return err
	}
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break // the message ends here
		}
		if len(line) == 2 && line[0] == '\r' && line[1] == '\n' {
			s.closeIdentity()
			s.drop = false
			s.take(line)
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			err = s.continuation(line)
		} else if name, value := fieldName(line); name != nil {
			err = s.field(name, value, len(line))
		} else {
			s.noField, err = true, s.firstOfBody(line)
		}
		if err != nil {
			return err
		}
		if s.noField {
			break
		}
		if err := s.lineFault(line); err != nil {
			return err
		}
		s.take(line)
		if s.pos > s.max {
			return errHeaderSize()
		}
	}
	s.closeIdentity()
	s.facts.MessageID = cleanID(s.id)
	if err := s.readToUs(); err != nil {
		return err
	}
	if s.srcErr != nil && !errors.Is(s.srcErr, io.EOF) {
		return s.srcErr
	}
	return s.readIdentities()
}

// preamble passes over what some programs put before the header: a byte order mark, and
// the line that begins a message in an mbox file. They are removed here, once, and
// nowhere else.
func (s *scanner) preamble() error {
	line, err := s.line()
	if err != nil {
		return err
	}
	if bytes.HasPrefix(line, byteOrderMark) {
		s.pos += len(byteOrderMark)
		line = line[len(byteOrderMark):]
		s.facts.ByteOrderMark = true
	}
	if isMboxLine(line) {
		s.pos += len(line)
		s.facts.MboxLine = true
	}
	return nil
}

var byteOrderMark = []byte("\uFEFF")

// isMboxLine reports "From " or ">From " at the beginning of a line that is not a field.
func isMboxLine(line []byte) bool {
	if name, _ := fieldName(line); name != nil {
		return false // white space before the colon: for field to judge
	}
	return bytes.HasPrefix(bytes.TrimPrefix(line, []byte(">")), []byte("From "))
}

const (
	maxLine = 998 // octets before CRLF
	maxName = 60  // of a field's name in a reply
)

// take goes past the line, which stays unless its field is removed.
func (s *scanner) take(line []byte) {
	if !s.drop {
		s.kept += copy(s.buf[s.kept:], line)
	}
	s.pos += len(line)
}

// field counts a field and decides whether it stays. size is that of its first line.
func (s *scanner) field(name, value []byte, size int) error {
	s.closeIdentity()
	s.drop, s.inID, s.inToUs = false, false, false
	s.named = copy(s.name[:], name)
	if s.facts.Fields++; s.facts.Fields > MaxFields {
		return refusal(smtp.Permanent(554, 6, 0, fmt.Sprintf("The message has more than %d header fields", MaxFields)))
	}
	if s.blank {
		return ambiguous("The header has a line of white space only; remove it")
	}
	if last := name[len(name)-1]; last == ' ' || last == '\t' {
		return ambiguous("A header field has white space between its name and the colon; remove it")
	}
	f, set := lookUp(name), 0
	switch f {
	case fieldBcc, fieldResentBcc, fieldReturnPath, fieldKey, fieldTag, fieldMetadata:
		s.drop = true // and no reader sees it between two others
	default:
		set = s.resent.of(name, f)
	}
	if f == 0 {
		return nil
	}
	if s.seen&(1<<f) != 0 && fields[f].once {
		return ambiguous("The message has more than one " + fields[f].name + " field; send it with one")
	}
	s.seen |= 1 << f
	switch f {
	case fieldReceived:
		if s.facts.Received++; s.facts.Received > MaxReceived {
			return refusal(smtp.Permanent(554, 4, 6, fmt.Sprintf("The message has passed more than %d servers: mail loop", MaxReceived)))
		}
	case fieldFrom, fieldSender, fieldResentFrom, fieldResentSender:
		s.identities = append(s.identities, identity{field: f, set: set, start: s.kept + size - len(value)})
		s.inIdentity = true
	case fieldTLSRequired:
		s.facts.TLSOptional = strings.EqualFold(string(bytes.Trim(value, " \t\r\n")), "no")
	case fieldKey, fieldTag, fieldMetadata:
		return s.beginToUs(f, value)
	case fieldMessageID:
		s.inID = true
		s.id = appendID(s.id, value)
	}
	return nil
}

// lineFault refuses a line of a field with a control, at which some readers begin another
// line, and a line of an identity that a server behind us may break anywhere (RFC 5322
// section 2.1.1). Of other fields long lines are as common as in bodies, and pass.
func (s *scanner) lineFault(line []byte) error {
	text := bytes.TrimSuffix(line, crlf)
	var wrong fault
	switch {
	case hasControl(text):
		wrong = faultControl
	case s.inIdentity && len(text) > maxLine:
		wrong = faultLine
	default:
		return nil
	}
	return ambiguous("The " + string(s.name[:s.named]) + " field " + wrong.Error())
}

// closeIdentity notes where the field ends that was looked at, if it is an identity.
func (s *scanner) closeIdentity() {
	if s.inIdentity {
		s.identities[len(s.identities)-1].end = s.kept
		s.inIdentity = false
	}
}

// continuation looks at a folded line; identifiers are often folded.
func (s *scanner) continuation(line []byte) error {
	if s.facts.Fields == 0 {
		return ambiguous("The message begins with white space; begin it with a header field")
	}
	if len(bytes.TrimLeft(line, " \t\r\n")) == 0 {
		// Some take it for the end of the header, so nothing may follow that counts.
		s.blank = true
	}
	if s.inID {
		s.id = appendID(s.id, line)
	}
	if s.inToUs {
		s.toUs[len(s.toUs)-1].add(line)
	}
	return nil
}

// firstOfBody looks at the line that ends the header section though it is not
// empty. RFC 5322 knows no such line; everybody takes it for the body's first, unless
// it is a field whose colon stands in the next line.
func (s *scanner) firstOfBody(line []byte) error {
	if lookUp(bytes.TrimRight(line, " \t\r\n")) != 0 {
		return ambiguous("The header has the name of a field in a line without a colon; write Name: value")
	}
	return nil
}

// line returns the line at pos, with its CRLF if it has one, reading as needed;
// an empty line with no error is the end of the message. Only CRLF ends a line.
func (s *scanner) line() ([]byte, error) {
	searched := s.pos
	for {
		for {
			i := bytes.IndexByte(s.buf[searched:s.filled], '\n')
			if i < 0 {
				break
			}
			searched += i + 1
			if searched-2 >= s.pos && s.buf[searched-2] == '\r' {
				return s.buf[s.pos:searched], nil
			}
		}
		searched = s.filled
		if s.srcErr != nil {
			return s.buf[s.pos:s.filled], nil
		}
		if s.filled-s.pos > s.max || s.pos > s.max {
			return nil, errHeaderSize()
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads once, into a buffer twice as large when there is no room. The error is that
// of the memory that it asks for.
func (s *scanner) fill() error {
	if s.filled == len(s.buf) {
		if err := s.grow(2 * len(s.buf)); err != nil {
			return err
		}
	}
	n, err := s.src.Read(s.buf[s.filled:])
	s.filled += n
	s.srcErr = err
	return nil
}

// grow makes the buffer larger. The old one counts until both are given back: it is
// there until the collector comes.
func (s *scanner) grow(size int) error {
	if s.memory != nil {
		if err := s.memory.Take(int64(size)); err != nil {
			return err
		}
		s.taken += int64(size)
	}
	grown := make([]byte, size)
	copy(grown, s.buf[:s.filled])
	s.buf = grown
	return nil
}

// fieldName splits a line that begins a field into the name, with white space
// that is between it and the colon (RFC 5322 section 4.5), and the octets after the
// colon. The name is nil when the line begins no field.
func fieldName(line []byte) (name, value []byte) {
	i := 0
	for i < len(line) && line[i] > ' ' && line[i] < 0x7f && line[i] != ':' {
		i++
	}
	if i == 0 {
		return nil, nil
	}
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	if i == len(line) || line[i] != ':' {
		return nil, nil
	}
	return line[:i], line[i+1:]
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

const maxID = 255

// appendID appends what a line adds to an identifier, within the bound.
func appendID(id, line []byte) []byte {
	line = bytes.Trim(line, " \t\r\n")
	return append(id, line[:min(len(line), maxID-len(id))]...)
}

// cleanID makes an identifier storable: valid UTF-8 without controls.
func cleanID(id []byte) string {
	s := string(id)
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "")
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, s)
	}
	return s
}

func errHeaderSize() error {
	return refusal(smtp.Permanent(552, 3, 4, "The message header is too large"))
}

// ambiguous refuses a header that two readers may read in two ways.
func ambiguous(text string) error { return refusal(smtp.Permanent(554, 6, 0, text)) }

func refusal(r smtp.Reply) error { return &smtp.Error{Reply: r} }
