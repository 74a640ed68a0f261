package message

import "postern/relay/smtp"

// known is a field that the scanner does something about; 0 is any other.
type known uint8

const (
	fieldFrom known = iota + 1
	fieldSender
	fieldResentFrom
	fieldResentSender
	fieldReplyTo
	fieldTo
	fieldCc
	fieldSubject
	fieldDate
	fieldMessageID
	fieldReceived
	fieldBcc
	fieldResentBcc
	fieldReturnPath
	fieldTLSRequired
	fieldKey
	fieldTag
	fieldMetadata
)

// fields are the known ones. Of those marked once a message has at most one (RFC 5322
// section 3.6); which of two is shown is up to the reader.
var fields = [...]struct {
	name string
	once bool
}{
	fieldFrom:         {"From", true},
	fieldSender:       {"Sender", true},
	fieldResentFrom:   {"Resent-From", false},
	fieldResentSender: {"Resent-Sender", false},
	fieldReplyTo:      {"Reply-To", true},
	fieldTo:           {"To", true},
	fieldCc:           {"Cc", true},
	fieldSubject:      {"Subject", true},
	fieldDate:         {"Date", true},
	fieldMessageID:    {"Message-ID", true},
	fieldReceived:     {"Received", false},
	fieldBcc:          {"Bcc", false},
	fieldResentBcc:    {"Resent-Bcc", false},
	fieldReturnPath:   {"Return-Path", false},
	fieldTLSRequired:  {"TLS-Required", false},
	fieldKey:          {"X-Postern-Idempotency-Key", true},
	fieldTag:          {"X-Postern-Tag", false},
	fieldMetadata:     {"X-Postern-Metadata", true},
}

func lookUp(name []byte) known {
	for f := fieldFrom; int(f) < len(fields); f++ {
		if is(name, fields[f].name) {
			return f
		}
	}
	return 0
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

// readIdentities reads the mailboxes of the fields that say whose the message is.
func (s *scanner) readIdentities() error {
	if s.seen&(1<<fieldFrom) == 0 {
		// RFC 6409 section 8 knows no repair of that: nobody but the author can say it.
		return ambiguous("The message has no From field; write one with your address")
	}
	var last redirector
	for _, i := range s.identities {
		of := s.facts.mailboxes(i.field)
		before := len(*of)
		list, err := appendMailboxes(*of, s.buf[i.start:i.end], s.utf8)
		if err != nil {
			return ambiguous("The " + fields[i.field].name + " field " + err.Error())
		}
		switch n := len(list) - before; {
		case n == 0:
			return ambiguous("The " + fields[i.field].name + " field names nobody; write an address")
		case n > 1 && (i.field == fieldSender || i.field == fieldResentSender):
			return ambiguous("The " + fields[i.field].name + " field has more than one address; write one")
		}
		*of = list
		if i.set > 0 {
			last.add(i, list[before:])
		}
	}
	s.facts.Redirector = last.mailboxes()
	return nil
}

func (f *Facts) mailboxes(field known) *[]smtp.Address {
	switch field {
	case fieldSender:
		return &f.Sender
	case fieldResentFrom:
		return &f.ResentFrom
	case fieldResentSender:
		return &f.ResentSender
	}
	return &f.From
}
