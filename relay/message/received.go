package message

import (
	"net/netip"
	"strings"
	"time"

	"postern/relay/smtp"
)

// appendReceived appends our trace field (RFC 5321 section 4.4). The client's
// words are only shown where they fit the grammar of the field; the authenticated name is
// not shown, for it is half of a credential.
func appendReceived(b []byte, opt Options) []byte {
	b = append(b, "Received: from "...)
	b = appendFrom(b, opt)
	b = append(b, "\r\n\tby "...)
	b = append(b, opt.Hostname...)
	b = append(b, " with "...)
	b = append(b, protocol(opt)...)
	b = append(b, " id "...)
	b = append(b, opt.ID...)
	if opt.TLS != "" {
		b = append(b, "\r\n\t("...)
		b = appendComment(b, opt.TLS)
		b = append(b, ')')
	}
	if showable(opt.For, opt.UTF8) {
		b = append(b, "\r\n\tfor <"...)
		b = append(b, opt.For.String()...)
		b = append(b, '>')
	}
	b = append(b, ";\r\n\t"...)
	b = appendDate(b, opt.Now)
	return append(b, crlf...)
}

// appendFrom appends the from clause's Extended-Domain.
func appendFrom(b []byte, opt Options) []byte {
	if opt.HideClient {
		return append(b, "unknown"...)
	}
	if isHello(opt.Hello) {
		b = append(b, opt.Hello...)
	} else {
		b = append(b, "unknown"...)
	}
	if addr := opt.Client.Unmap().WithZone(""); addr.IsValid() {
		b = append(b, " (["...)
		if addr.Is6() {
			b = append(b, "IPv6:"...)
		}
		b = addr.AppendTo(b)
		b = append(b, "])"...)
	}
	return b
}

// protocol is the with clause's word (RFC 3848, RFC 6531 section 3.7.3).
func protocol(opt Options) string {
	word := "ESMTP"
	if opt.UTF8 {
		word = "UTF8SMTP"
	}
	if opt.TLS != "" {
		word += "S"
	}
	if opt.Authenticated {
		word += "A"
	}
	return word
}

// showable says whether the for clause can hold an address: UTF-8 only in a
// message that was sent as such.
func showable(a smtp.Address, utf8 bool) bool {
	if a.IsNull() || len(a.String()) > 500 {
		return false
	}
	for _, part := range [...]string{a.Local, a.Domain} {
		for i := range len(part) {
			if c := part[i]; c < ' ' || c == 0x7f || c >= 0x80 && !utf8 {
				return false
			}
		}
	}
	return true
}

// isHello reports that an EHLO argument is a Domain or an address literal
// (RFC 5321 section 4.1.1.1), and so may stand in a header as it is.
func isHello(s string) bool {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && isLiteral(inner)
	}
	return isDomain(s)
}

func isLiteral(s string) bool {
	tag := len("IPv6:")
	v6 := len(s) > tag && strings.EqualFold(s[:tag], "IPv6:")
	if v6 {
		s = s[tag:]
	}
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6() == v6 && addr.Zone() == ""
}

func isDomain(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := lower(label[i]); (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// appendComment appends text inside a comment (RFC 5322 section 3.2.2).
func appendComment(b []byte, text string) []byte {
	for i := range len(text) {
		switch c := text[i]; {
		case c == '(' || c == ')' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c > '~':
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return b
}

// appendDate appends a date-time (RFC 5322 section 3.3).
func appendDate(b []byte, t time.Time) []byte {
	return t.AppendFormat(b, "Mon, 2 Jan 2006 15:04:05 -0700")
}
