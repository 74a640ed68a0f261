package bounce

import (
	"bytes"
	"fmt"
	"mime/quotedprintable"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// maxReturned bounds the part of the original message that a notice carries, in
// octets. A longer message is returned as its header section, whatever RET says.
const maxReturned = 64 << 10

// maxLine bounds a line of a notice, in octets without its CRLF.
const maxLine = 998

// maxField bounds one field of the report, in octets, before folding.
const maxField = 900

// report is one notice about to be written.
type report struct {
	notice   *queue.Notice
	id       queue.ID
	hostname string
	now      time.Time
	original []byte // the returned message or header section
	full     bool   // original is the whole message
}

// bytes returns the notice as a message: RFC 6522's multipart/report with RFC
// 3464's delivery-status.
//
// Its body is ASCII, whatever it is about, so that it goes by every way back. RFC 6533's
// types for UTF-8 would need one with SMTPUTF8, and most senders have none.
func (r *report) bytes() []byte {
	var b bytes.Buffer
	boundary := "=_report_" + strings.ReplaceAll(r.id.String(), "-", "")
	r.header(&b, boundary)
	fmt.Fprintf(&b, "This is a MIME report (RFC 6522).\r\n\r\n--%s\r\n", boundary)
	r.explanation(&b)
	fmt.Fprintf(&b, "\r\n--%s\r\n", boundary)
	r.status(&b)
	if len(r.original) > 0 { // the third part is optional (RFC 6522 section 3)
		fmt.Fprintf(&b, "\r\n--%s\r\n", boundary)
		r.returned(&b)
	}
	fmt.Fprintf(&b, "\r\n--%s--\r\n", boundary)
	return b.Bytes()
}

func (r *report) header(b *bytes.Buffer, boundary string) {
	m := r.notice.Message
	field(b, "Date", r.now.Format(time.RFC1123Z))
	field(b, "From", "Mail Delivery System <MAILER-DAEMON@"+r.hostname+">")
	line(b, "To", "<"+m.Sender.String()+">") // nothing else of a notice may be UTF-8
	field(b, "Subject", subjects[r.notice.Kind])
	field(b, "Message-ID", "<"+r.id.String()+"@"+r.hostname+">")
	if m.MessageID != "" && smtp.IsASCII(m.MessageID) {
		field(b, "References", m.MessageID)
	}
	field(b, "Auto-Submitted", "auto-replied") // RFC 3834 section 5
	field(b, "MIME-Version", "1.0")
	b.WriteString("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"" + boundary + "\"\r\n\r\n")
}

var subjects = map[queue.NoticeKind]string{
	queue.NoticeFailure: "Undelivered mail returned to sender",
	queue.NoticeDoubt:   "Your mail may have arrived, but that is not certain",
	queue.NoticeDelay:   "Delayed mail, still being tried",
	queue.NoticeSuccess: "Mail handed on to a server that reports no delivery",
}

// introductions open the part for people, one sentence each.
var introductions = map[queue.NoticeKind]string{
	queue.NoticeFailure: "Your message could not be delivered to the recipients below. No further\r\nattempt will be made.",
	queue.NoticeDoubt:   "Your message may have arrived at the recipients below, but that is not\r\ncertain: the connection broke before the next server confirmed it. It will\r\nnot be sent again, so that nobody gets it twice. Please ask the recipients,\r\nand send it again to those who do not have it.",
	queue.NoticeDelay:   "Your message has not been delivered to the recipients below yet. It is\r\nstill being tried; you do not have to send it again.",
	queue.NoticeSuccess: "Your message was accepted for the recipients below by a server that does\r\nnot report deliveries. You may hear nothing more about it.",
}

// faults say that the relay is at fault, by NoticeRecipient.Scope.
var faults = map[string]string{
	"account": "The fault is this mail system's account with the next server, not yours.",
	"host":    "The fault is this mail system's next server, not yours.",
	"sender":  "The next server does not let this mail system send in your name.",
}

// explanation writes the part for people.
func (r *report) explanation(b *bytes.Buffer) {
	var text bytes.Buffer
	fmt.Fprintf(&text, "This is the mail system at %s.\r\n\r\n%s\r\n\r\n", r.hostname, introductions[r.notice.Kind])
	for _, rcpt := range r.notice.Recipients {
		fmt.Fprintf(&text, "<%s>\r\n", rcpt.Address)
		t := r.told(&rcpt)
		said := "the relay says"
		switch {
		case t.byServer && t.host == "":
			said = "the next server said"
		case t.byServer:
			said = clean(t.host) + " said"
		}
		for _, said := range wrap(said+": "+clean(t.reply.String()), 72) {
			fmt.Fprintf(&text, "    %s\r\n", said)
		}
		if fault := faults[rcpt.Scope]; fault != "" {
			text.WriteString("    " + fault + "\r\n")
		}
		if r.notice.Kind == queue.NoticeDelay && !rcpt.WillRetryTo.IsZero() {
			fmt.Fprintf(&text, "    It will be tried until %s.\r\n", rcpt.WillRetryTo.Format(time.RFC1123Z))
		}
		text.WriteString("\r\n")
	}
	if r.notice.Message.TLSNeed == smtp.TLSRequired {
		text.WriteString("The message was sent with REQUIRETLS: this notice returns nothing of it, since\r\nit may travel without TLS.\r\n\r\n")
	}
	fmt.Fprintf(&text, "Queue id of the message: %s\r\n", r.notice.Message.ID)
	charset := "us-ascii"
	if !smtp.IsASCII(text.Bytes()) {
		charset = "utf-8"
	}
	part(b, "text/plain; charset="+charset, text.Bytes())
}

// part writes the fields and the octets of a body part, encoded where the way back may
// not take them as they are.
func part(b *bytes.Buffer, contentType string, octets []byte) {
	b.WriteString("Content-Type: " + contentType + "\r\n")
	if sevenBit(octets) {
		b.WriteString("\r\n")
		b.Write(octets)
		return
	}
	b.WriteString("Content-Transfer-Encoding: quoted-printable\r\n\r\n")
	w := quotedprintable.NewWriter(b) // a bytes.Buffer takes all
	_, _ = w.Write(octets)
	_ = w.Close()
}

// status writes the machine-readable part: one group for the message, one for
// each recipient (RFC 3464 section 2).
func (r *report) status(b *bytes.Buffer) {
	b.WriteString("Content-Type: message/delivery-status\r\n\r\n")
	m := r.notice.Message
	field(b, "Reporting-MTA", "dns; "+r.hostname)
	if m.EnvID != "" {
		line(b, "Original-Envelope-Id", ascii(m.EnvID))
	}
	field(b, "Arrival-Date", m.AcceptedAt.UTC().Format(time.RFC1123Z))
	for _, rcpt := range r.notice.Recipients {
		b.WriteString("\r\n")
		r.recipient(b, rcpt)
	}
}

var actions = map[queue.NoticeKind]string{
	queue.NoticeFailure: "failed",
	queue.NoticeDoubt:   "failed", // the nearest: no further attempt is made
	queue.NoticeDelay:   "delayed",
	queue.NoticeSuccess: "relayed",
}

func (r *report) recipient(b *bytes.Buffer, rcpt queue.NoticeRecipient) {
	if rcpt.ORcpt != "" {
		line(b, "Original-Recipient", typed(rcpt.ORcptType, rcpt.ORcpt))
	}
	kind := "rfc822"
	if rcpt.Address.NeedsUTF8() {
		kind = "utf-8"
	}
	line(b, "Final-Recipient", typed(kind, rcpt.Address.String()))
	field(b, "Action", actions[r.notice.Kind])
	field(b, "Status", status(r.notice.Kind, rcpt.Reply))
	t := r.told(&rcpt)
	if t.byServer && t.host != "" {
		field(b, "Remote-MTA", "dns; "+ascii(t.host))
	}
	if t.byServer {
		field(b, "Diagnostic-Code", "smtp; "+ascii(t.reply.String()))
	}
	if !rcpt.LastAttempt.IsZero() {
		field(b, "Last-Attempt-Date", rcpt.LastAttempt.UTC().Format(time.RFC1123Z))
	}
	if r.notice.Kind == queue.NoticeDelay && !rcpt.WillRetryTo.IsZero() {
		field(b, "Will-Retry-Until", rcpt.WillRetryTo.UTC().Format(time.RFC1123Z))
	}
}

// typed is an address with its type, in the form for ASCII (RFC 6533 section 3).
func typed(kind, address string) string {
	if kind == "utf-8" {
		return kind + "; " + smtp.UTF8Addr(address)
	}
	return kind + "; " + ascii(address)
}

// status is the enhanced code of the reply where its class fits the action, and
// the class's "undefined" otherwise (RFC 3464 section 2.3.4).
func status(kind queue.NoticeKind, reply smtp.Reply) string {
	class := map[queue.NoticeKind]int{queue.NoticeFailure: 5, queue.NoticeDoubt: 4, queue.NoticeDelay: 4, queue.NoticeSuccess: 2}[kind]
	enhanced := reply.Enhanced
	switch {
	case enhanced.Class == class:
		return enhanced.String()
	case kind == queue.NoticeFailure && enhanced == (smtp.EnhancedCode{Class: 4, Subject: 4, Detail: 7}):
		return enhanced.String() // the lifetime ended: 4.4.7 is RFC 3463's code for a failure too
	}
	return fmt.Sprintf("%d.0.0", class)
}

// returned writes the message itself or its header section.
func (r *report) returned(b *bytes.Buffer) {
	kind := "text/rfc822-headers"
	switch {
	case r.full:
		kind = "message/rfc822"
	case !smtp.IsASCII(r.original) && utf8.Valid(r.original):
		kind += "; charset=utf-8"
	}
	part(b, kind, r.original)
	if !bytes.HasSuffix(r.original, []byte("\r\n")) {
		b.WriteString("\r\n")
	}
}

// sevenBit reports that octets can go as they are by every way: ASCII, in lines of no
// more than RFC 5321 section 4.5.3.1.6 has every server take.
func sevenBit(octets []byte) bool {
	for line := range bytes.Lines(octets) {
		if len(bytes.TrimRight(line, "\r\n")) > maxLine || !smtp.IsASCII(line) {
			return false
		}
	}
	return true
}

// clean makes what a peer said fit for people: one line, bounded, without what could
// drive a terminal or turn the writing round.
func clean(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c < 0x20 || c == 0x7f:
			return ' '
		case c == utf8.RuneError || c >= utf8.RuneSelf && !unicode.IsPrint(c):
			return '?'
		}
		return c
	}, s)
	if len(s) > maxField {
		cut := maxField
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	return s
}

// ascii makes what a peer said fit for a field of the report.
func ascii(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= utf8.RuneSelf {
			return '?'
		}
		return c
	}, clean(s))
}

// field writes one header field, folded at spaces so that lines stay near 76
// octets (RFC 5322 section 2.1.1).
func field(b *bytes.Buffer, name, value string) {
	lines := wrap(name+": "+value, 76)
	for i, line := range lines {
		if i > 0 {
			b.WriteString(" ")
		}
		b.WriteString(line)
		b.WriteString("\r\n")
	}
}

// line writes one field whose white space matters (addresses, identifiers), so it
// is not folded where it need not be. An address in utf-8-addr-xtext may be longer than a
// line; such an address has no spaces, and a space before an escape is not part of it.
func line(b *bytes.Buffer, name, value string) {
	text := name + ": " + value
	for len(text) > maxLine {
		cut := strings.LastIndexByte(text[:maxLine], '\\')
		if cut <= 1 {
			cut = maxLine
		}
		b.WriteString(text[:cut] + "\r\n")
		text = " " + text[cut:]
	}
	b.WriteString(text + "\r\n")
}

// wrap breaks s at spaces into lines of about width octets; a longer word stays
// whole. There is at least one line, and none is empty but for an empty s.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
