package message

import (
	"bytes"
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

	kept   int // end of the lines that stay
	pos    int // start of the line looked at
	filled int // end of what was read

	drop    bool // the field looked at is removed
	noField bool // the section was ended by a line that is no field

	facts *Facts
	dates int
	ids   int
	id    []byte // the first Message-ID's value as far as it was seen
	inID  bool
}

// scan reads up to the end of the header section.
func (s *scanner) scan() error {
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break // the message ends here
		}
		if len(line) == 2 && line[0] == '\r' && line[1] == '\n' {
			s.drop = false
			s.take(line)
			break
		}
		fold := line[0] == ' ' || line[0] == '\t'
		name, value := fieldName(line)
		if name == nil && (!fold || s.facts.Fields == 0) {
			// RFC 5322 knows no such line; everybody takes it for the body's first.
			s.noField = true
			break
		}
		if fold {
			s.continuation(line)
		} else if err := s.field(name, value); err != nil {
			return err
		}
		s.take(line)
		if s.pos > s.max {
			return errHeaderSize()
		}
	}
	s.facts.MessageID = cleanID(s.id)
	return nil
}

// take goes past the line, which stays unless its field is removed.
func (s *scanner) take(line []byte) {
	if !s.drop {
		s.kept += copy(s.buf[s.kept:], line)
	}
	s.pos += len(line)
}

// field counts a field and decides whether it stays.
func (s *scanner) field(name, value []byte) error {
	s.drop, s.inID = false, false
	if s.facts.Fields++; s.facts.Fields > MaxFields {
		return refusal(smtp.Permanent(554, 6, 0, fmt.Sprintf("The message has more than %d header fields", MaxFields)))
	}
	switch {
	case is(name, "Received"):
		if s.facts.Received++; s.facts.Received > MaxReceived {
			return refusal(smtp.Permanent(554, 4, 6, fmt.Sprintf("The message has passed more than %d servers: mail loop", MaxReceived)))
		}
	case is(name, "From"):
		s.facts.From++
	case is(name, "Sender"):
		s.facts.Sender++
	case is(name, "Date"):
		s.dates++
	case is(name, "Message-ID"):
		if s.ids++; s.ids == 1 {
			s.inID = true
			s.id = appendID(s.id, value)
		}
	case is(name, "Bcc"), is(name, "Resent-Bcc"), is(name, "Return-Path"):
		s.drop = true
	}
	return nil
}

// continuation looks at a folded line; identifiers are often folded.
func (s *scanner) continuation(line []byte) {
	if s.inID {
		s.id = appendID(s.id, line)
	}
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
		s.fill()
	}
}

// fill reads once, into a buffer twice as large when there is no room.
func (s *scanner) fill() {
	if s.filled == len(s.buf) {
		grown := make([]byte, 2*len(s.buf))
		copy(grown, s.buf[:s.filled])
		s.buf = grown
	}
	n, err := s.src.Read(s.buf[s.filled:])
	s.filled += n
	s.srcErr = err
}

// fieldName splits a line that begins a field into the name and the octets after
// the colon; white space before the colon is the obsolete syntax (RFC 5322 section 4.5).
// The name is nil when the line begins no field.
func fieldName(line []byte) (name, value []byte) {
	i := 0
	for i < len(line) && line[i] > ' ' && line[i] < 0x7f && line[i] != ':' {
		i++
	}
	name = line[:i]
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	if len(name) == 0 || i == len(line) || line[i] != ':' {
		return nil, nil
	}
	return name, line[i+1:]
}

// is compares a field name, which is ASCII, without regard to case.
func is(name []byte, want string) bool {
	if len(name) != len(want) {
		return false
	}
	for i := range len(want) {
		if lower(name[i]) != lower(want[i]) {
			return false
		}
	}
	return true
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

func refusal(r smtp.Reply) error { return &smtp.Error{Reply: r} }
