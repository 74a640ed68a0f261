package bounce

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// maxReturned bounds the part of the original message that a notice carries, in
// octets. A longer message is returned as its header section, whatever RET says.
const maxReturned = 64 << 10

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

// utf8 reports that the notice needs RFC 6533's types and SMTPUTF8.
func (r *report) utf8() bool {
	if r.notice.Message.Sender.NeedsUTF8() {
		return true
	}
	for _, rcpt := range r.notice.Recipients {
		if rcpt.Address.NeedsUTF8() || !isASCII(rcpt.ORcpt) {
			return true
		}
	}
	return false
}

// bytes returns the notice as a message: RFC 6522's multipart/report with RFC
// 3464's delivery-status.
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
	line(b, "To", "<"+m.Sender.String()+">")
	field(b, "Subject", subjects[r.notice.Kind])
	field(b, "Message-ID", "<"+r.id.String()+"@"+r.hostname+">")
	if m.MessageID != "" && isASCII(m.MessageID) {
		field(b, "References", m.MessageID)
	}
	field(b, "Auto-Submitted", "auto-replied") // RFC 3834 section 5
	field(b, "MIME-Version", "1.0")
	b.WriteString("Content-Type: multipart/report; report-type=" + r.reportType() + ";\r\n boundary=\"" + boundary + "\"\r\n")
	if !isASCII(string(r.original)) || r.utf8() {
		field(b, "Content-Transfer-Encoding", "8bit")
	}
	b.WriteString("\r\n")
}

func (r *report) reportType() string {
	if r.utf8() {
		return "global-delivery-status" // RFC 6533 section 3
	}
	return "delivery-status"
}

var subjects = map[queue.NoticeKind]string{
	queue.NoticeFailure: "Undelivered mail returned to sender",
	queue.NoticeDelay:   "Delayed mail, still being tried",
	queue.NoticeSuccess: "Mail handed on to a server that reports no delivery",
}

// introductions open the part for people, one sentence each.
var introductions = map[queue.NoticeKind]string{
	queue.NoticeFailure: "Your message could not be delivered to the recipients below. No further\r\nattempt will be made.",
	queue.NoticeDelay:   "Your message has not been delivered to the recipients below yet. It is\r\nstill being tried; you do not have to send it again.",
	queue.NoticeSuccess: "Your message was accepted for the recipients below by a server that does\r\nnot report deliveries. You may hear nothing more about it.",
}

func (r *report) explanation(b *bytes.Buffer) {
	if r.utf8() {
		b.WriteString("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n")
	} else {
		b.WriteString("Content-Type: text/plain; charset=us-ascii\r\n\r\n")
	}
	fmt.Fprintf(b, "This is the mail system at %s.\r\n\r\n%s\r\n\r\n", r.hostname, introductions[r.notice.Kind])
	for _, rcpt := range r.notice.Recipients {
		fmt.Fprintf(b, "<%s>\r\n", rcpt.Address)
		said := "the relay says"
		if rcpt.RemoteMTA != "" {
			said = r.text(rcpt.RemoteMTA) + " said"
		}
		for _, said := range wrap(said+": "+r.text(rcpt.Reply.String()), 72) {
			fmt.Fprintf(b, "    %s\r\n", said)
		}
		if r.notice.Kind == queue.NoticeDelay && !rcpt.WillRetryTo.IsZero() {
			fmt.Fprintf(b, "    It will be tried until %s.\r\n", rcpt.WillRetryTo.Format(time.RFC1123Z))
		}
		b.WriteString("\r\n")
	}
	fmt.Fprintf(b, "Queue id of the message: %s\r\n", r.notice.Message.ID)
}

// status writes the machine-readable part: one group for the message, one for
// each recipient (RFC 3464 section 2).
func (r *report) status(b *bytes.Buffer) {
	if r.utf8() {
		b.WriteString("Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n")
	} else {
		b.WriteString("Content-Type: message/delivery-status\r\n\r\n")
	}
	m := r.notice.Message
	field(b, "Reporting-MTA", "dns; "+r.hostname)
	if m.EnvID != "" {
		line(b, "Original-Envelope-Id", r.text(m.EnvID))
	}
	field(b, "Arrival-Date", m.AcceptedAt.UTC().Format(time.RFC1123Z))
	for _, rcpt := range r.notice.Recipients {
		b.WriteString("\r\n")
		r.recipient(b, rcpt)
	}
}

var actions = map[queue.NoticeKind]string{
	queue.NoticeFailure: "failed",
	queue.NoticeDelay:   "delayed",
	queue.NoticeSuccess: "relayed",
}

func (r *report) recipient(b *bytes.Buffer, rcpt queue.NoticeRecipient) {
	if rcpt.ORcpt != "" {
		line(b, "Original-Recipient", rcpt.ORcptType+"; "+r.text(rcpt.ORcpt))
	}
	kind := "rfc822"
	if rcpt.Address.NeedsUTF8() {
		kind = "utf-8"
	}
	line(b, "Final-Recipient", kind+"; "+rcpt.Address.String())
	field(b, "Action", actions[r.notice.Kind])
	field(b, "Status", status(r.notice.Kind, rcpt.Reply))
	if rcpt.RemoteMTA != "" {
		field(b, "Remote-MTA", "dns; "+r.text(rcpt.RemoteMTA))
		field(b, "Diagnostic-Code", "smtp; "+r.text(rcpt.Reply.String()))
	}
	if !rcpt.LastAttempt.IsZero() {
		field(b, "Last-Attempt-Date", rcpt.LastAttempt.UTC().Format(time.RFC1123Z))
	}
	if r.notice.Kind == queue.NoticeDelay && !rcpt.WillRetryTo.IsZero() {
		field(b, "Will-Retry-Until", rcpt.WillRetryTo.UTC().Format(time.RFC1123Z))
	}
}

// status is the enhanced code of the reply where its class fits the action, and
// the class's "undefined" otherwise (RFC 3464 section 2.3.4).
func status(kind queue.NoticeKind, reply smtp.Reply) string {
	class := map[queue.NoticeKind]int{queue.NoticeFailure: 5, queue.NoticeDelay: 4, queue.NoticeSuccess: 2}[kind]
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
	eight := !isASCII(string(r.original))
	kind := "text/rfc822-headers"
	switch {
	case r.full && eight && r.notice.Message.UTF8:
		kind = "message/global"
	case r.full:
		kind = "message/rfc822"
	case eight && r.notice.Message.UTF8:
		kind = "message/global-headers"
	}
	b.WriteString("Content-Type: " + kind + "\r\n")
	if eight {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
	}
	b.WriteString("\r\n")
	b.Write(r.original)
	if !bytes.HasSuffix(r.original, []byte("\r\n")) {
		b.WriteString("\r\n")
	}
}

// text makes what a peer said fit for a field of this notice: one line, bounded,
// ASCII unless the notice is an internationalized one.
func (r *report) text(s string) string {
	eightBit := r.utf8()
	s = strings.Map(func(c rune) rune {
		switch {
		case c < 0x20 || c == 0x7f:
			return ' '
		case c >= 0x80 && (!eightBit || c == utf8.RuneError || c < 0xa0):
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
// is not folded.
func line(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ": " + value + "\r\n")
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

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
