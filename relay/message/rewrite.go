package message

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"

	"postern/relay/smtp"
)

// Edit puts text in the place of Cut octets at At of a message.
type Edit struct {
	At, Cut int64
	Put     []byte
}

// Rewrite finds what makes one mailbox the author of a stored message: edits in their order, and
// whether the header section then has UTF-8 beyond ASCII.
//
//	From      is author, with the name that was there if one address was, and no @ is in it
//	Reply-To  is what From was, unless there is one
//	Sender    is removed: one author has no other sender (RFC 5322 section 3.6.2)
//
// A From field that names author alone stays as it is. The same message has the same edits,
// whenever it is asked about. Of r, which is a whole stored message, only the header section is
// held, which was bounded when the message was prepared. The error is r's.
func Rewrite(r io.Reader, author smtp.Address) (edits []Edit, utf8 bool, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	s := scanner{src: r, buf: *buf, max: math.MaxInt}
	fields, err := s.authorship()
	if err != nil {
		return nil, false, err
	}
	has := func(f known) bool { return slices.ContainsFunc(fields, func(p place) bool { return p.field == f }) }
	header := s.buf[:s.pos]
	if !has(fieldFrom) { // as no message is that came by Prepare
		edits = append(edits, Edit{Put: appendLine(nil, "From: ", author.String())})
	}
	first := true
	for _, f := range fields {
		e := Edit{At: int64(f.start), Cut: int64(f.end - f.start)}
		switch {
		case f.field == fieldReplyTo:
			continue
		case f.field == fieldFrom && first:
			first = false
			if e.Put = rewriteFrom(header[f.value:f.end], author, !has(fieldReplyTo)); e.Put == nil {
				continue
			}
		}
		edits = append(edits, e)
	}
	at := int64(0)
	for _, e := range edits {
		utf8 = utf8 || hasUTF8(header[at:e.At]) || hasUTF8(e.Put)
		at = e.At + e.Cut
	}
	return edits, utf8 || hasUTF8(header[at:]), nil
}

// Header returns the header section of a stored message, without the empty line behind it, and the
// first mailbox of its From field, null if that names none. Of r, which is a whole message, no more
// is held. The error is r's.
func Header(r io.Reader) (header []byte, from smtp.Address, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	s := scanner{src: r, buf: *buf, max: math.MaxInt}
	fields, err := s.authorship()
	if err != nil {
		return nil, smtp.Address{}, err
	}
	header = bytes.Clone(s.buf[:s.pos])
	if i := slices.IndexFunc(fields, func(p place) bool { return p.field == fieldFrom }); i >= 0 {
		value := header[fields[i].value:fields[i].end]
		if list, err := appendMailboxes(nil, bytes.TrimRight(value, " \t\r\n"), true); err == nil && len(list) > 0 {
			from = list[0]
		}
	}
	return header, from, nil
}

// place is where a field is: its body begins at value.
type place struct {
	field             known
	start, value, end int
}

// authorship finds the fields that Rewrite looks at, up to the end of the header section, where
// pos is then.
func (s *scanner) authorship() (found []place, err error) {
	within := false
	for {
		line, err := s.line()
		if err != nil {
			return nil, err
		}
		name, value := fieldName(line)
		folded := len(line) > 0 && (line[0] == ' ' || line[0] == '\t')
		if name == nil && !folded { // the empty line, or the end
			break
		}
		start := s.pos
		s.pos += len(line)
		if folded {
			if within {
				found[len(found)-1].end = s.pos
			}
			continue
		}
		f := lookUp(name)
		if within = f == fieldFrom || f == fieldSender || f == fieldReplyTo; within {
			found = append(found, place{f, start, s.pos - len(value), s.pos})
		}
	}
	if s.srcErr != nil && !errors.Is(s.srcErr, io.EOF) {
		return nil, s.srcErr
	}
	return found, nil
}

// rewriteFrom returns the From field of author in place of the one with this body and, if it is
// wanted, a Reply-To field with what that named; nil if that names author alone.
func rewriteFrom(value []byte, author smtp.Address, replyTo bool) []byte {
	// The body must not end in a line of white space: that would stand within the header.
	p := addressList{in: bytes.TrimRight(value, " \t\r\n"), utf8: true, specs: [][2]int{}}
	err := p.read()
	one := err == nil && len(p.out) == 1 && !p.grouped
	if one && same(p.out[0], author) {
		return nil
	}
	var put []byte
	if one {
		before, after := p.in[:p.specs[0][0]], p.in[p.specs[0][1]:]
		if !hasAt(before) && !hasAt(after) {
			put = appendLine(nil, "From:", string(before), author.String(), string(after))
		}
	}
	if put == nil || hasLongLine(put) {
		put = appendLine(nil, "From: ", author.String())
	}
	if !replyTo || err == nil && len(p.out) == 0 {
		return put
	}
	field := replyToField(p.in)
	if err == nil {
		field = replyToField(p.asciiDomains(false))
		if hasLongLine(field) { // A-labels are longer than what they stand for
			field = replyToField(p.asciiDomains(true))
		}
		if hasLongLine(field) {
			field = replyToField(p.in)
		}
	}
	return append(put, field...)
}

func replyToField(value []byte) []byte {
	field := appendLine(nil, "Reply-To:", string(value))
	if hasLongLine(field) {
		field = appendLine(nil, "Reply-To:\r\n ", string(value))
	}
	return field
}

// asciiDomains is the text of the list with the domains of its addresses in A-labels where that
// makes them ASCII, and folded behind its commas if that is wanted.
func (p *addressList) asciiDomains(fold bool) (text []byte) {
	at, commas := 0, p.commas
	for i, spec := range p.specs {
		for ; fold && len(commas) > 0 && commas[0] < spec[0]; commas = commas[1:] {
			text = append(text, p.in[at:commas[0]+1]...)
			at = commas[0] + 1
			if !bytes.HasPrefix(bytes.TrimLeft(p.in[at:], " \t"), crlf) { // else it is folded
				text = append(text, "\r\n "...)
			}
		}
		if written := p.in[spec[0]:spec[1]]; !smtp.IsASCII(written) {
			text = append(append(text, p.in[at:spec[0]]...), p.out[i].String()...)
			at = spec[1]
		}
	}
	return append(text, p.in[at:]...)
}

// hasAt reports an @ in a part of an address field, as it is or in an encoded word.
func hasAt(part []byte) bool {
	if bytes.IndexByte(part, '@') >= 0 {
		return true
	}
	for _, text := range unfolded(part) {
		if at, _, err := encodedMarks(text); at || err != nil {
			return true
		}
	}
	return false
}

func appendLine(b []byte, parts ...string) []byte {
	for _, part := range parts {
		b = append(b, part...)
	}
	return append(b, crlf...)
}

// hasLongLine reports a line that a server behind us may break anywhere.
func hasLongLine(field []byte) bool {
	for line := range bytes.SplitSeq(field, crlf) {
		if len(line) > maxLine {
			return true
		}
	}
	return false
}
