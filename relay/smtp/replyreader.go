package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrMalformedReply is the cause of every error of ReadReply that is not one of
// the connection: the octets received are not a reply of RFC 5321 section 4.2. The server
// has decided nothing by them, and nothing later on the connection can be trusted. The
// error quotes their beginning (Excerpt).
var ErrMalformedReply = errors.New("malformed reply")

// ReplyLimits bound one reply; zero fields take the defaults.
type ReplyLimits struct {
	Lines int // 128
	Bytes int // 64 KiB over all lines, CRLF included; one line has at most 16 KiB
}

func (l ReplyLimits) withDefaults() ReplyLimits {
	if l.Lines <= 0 {
		l.Lines = 128
	}
	if l.Bytes <= 0 {
		l.Bytes = 64 << 10
	}
	return l
}

// ReadReply reads one complete reply. Without the CRLF of its last line there is
// no reply, whatever came before. All lines have the same code, 200 to 599; line
// ends that are a bare LF or a bare CR are an error.
//
// Text is made storable: valid UTF-8 without controls, other octets replaced by
// "?". An enhanced code is taken off each line when its class is that of the code;
// one that contradicts the code is dropped, for the basic code decides. 3yz replies
// have no enhanced code (RFC 2034 section 4) and their text is left as it is.
//
// The error is io.EOF before the first octet, ErrMalformedReply, or that of the
// connection. After any error the connection is good for nothing but Close.
func ReadReply(r *Reader, lim ReplyLimits) (Reply, error) {
	lim = lim.withDefaults()
	var reply Reply
	var text strings.Builder
	for lines, left := 0, lim.Bytes; ; lines++ {
		if lines == lim.Lines {
			return Reply{}, malformed(fmt.Sprintf("more than %d lines", lim.Lines), text.String())
		}
		line, err := replyLine(r, min(left, largeBuffer))
		if err != nil {
			if lines > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Reply{}, err
		}
		left -= len(line) + 2
		code, rest, last, err := splitReplyLine(line)
		if err != nil {
			return Reply{}, err
		}
		if lines == 0 {
			reply.Code = code
		} else {
			text.WriteByte('\n')
		}
		if code != reply.Code {
			return Reply{}, malformed(fmt.Sprintf("code changes from %d", reply.Code), line)
		}
		enhanced, rest := takeEnhanced(code, rest)
		if reply.Enhanced.IsZero() {
			reply.Enhanced = enhanced
		}
		text.WriteString(printable(rest))
		if last {
			reply.Text = text.String()
			return reply, nil
		}
	}
}

func malformed[T string | []byte](why string, said T) error {
	return &malformedReply{why, string(said)}
}

// malformedReply is ErrMalformedReply, why, and what was said.
type malformedReply struct{ why, said string }

func (e *malformedReply) Error() string {
	return fmt.Sprintf("%s: %s: %s", ErrMalformedReply, e.why, Excerpt(e.said))
}

func (e *malformedReply) Unwrap() error { return ErrMalformedReply }

// excerptSize is how much of what a peer said is quoted, in octets.
const excerptSize = 200

// Excerpt quotes the beginning of what a peer said, for a text that is stored, logged
// and shown: in quotes, with escapes for whatever is not printable.
func Excerpt[T string | []byte](said T) string {
	if len(said) > excerptSize {
		return strconv.Quote(string(said[:excerptSize])) + "…"
	}
	return strconv.Quote(string(said))
}

// replyLine reads one line of a reply. Unlike Line it does not look for the true
// end of a bad line: a server that ends its lines otherwise would be waited for in
// vain.
func replyLine(r *Reader, limit int) ([]byte, error) {
	if err := r.usable(); err != nil {
		return nil, err
	}
	for {
		window := r.buf[r.pos:r.end]
		n, err := replyLineEnd(window)
		if err != nil {
			return nil, err
		}
		if n >= 0 && n+2 <= limit {
			r.pos += n + 2
			return window[:n], nil
		}
		if len(window) >= limit {
			return nil, malformed("too long", window)
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && len(window) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// replyLineEnd returns where the first line end begins in b, or -1 when it has
// not come yet.
func replyLineEnd(b []byte) (int, error) {
	cr, lf := bytes.IndexByte(b, '\r'), bytes.IndexByte(b, '\n')
	switch {
	case cr < 0 && lf < 0, lf < 0 && cr == len(b)-1:
		return -1, nil
	case cr < 0 || lf != cr+1:
		return 0, malformed("line end is not CRLF", b[:bytes.IndexAny(b, "\r\n")])
	}
	return cr, nil
}

// splitReplyLine takes a line apart: three digits, then a hyphen when more lines
// follow, else a space or nothing.
func splitReplyLine(line []byte) (code int, text []byte, last bool, err error) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !isDigit(line[1]) || !isDigit(line[2]) {
		return 0, nil, false, malformed("no reply code", line)
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, nil, true, nil
	}
	switch line[3] {
	case ' ':
		return code, line[4:], true, nil
	case '-':
		return code, line[4:], false, nil
	}
	return 0, nil, false, malformed("no space or hyphen behind the code", line)
}

// takeEnhanced parses an enhanced code (RFC 3463 section 2, "class.subject.detail")
// at the beginning of text and returns the text behind it.
func takeEnhanced(code int, text []byte) (EnhancedCode, []byte) {
	if code/100 == 3 {
		return EnhancedCode{}, text
	}
	word, rest, _ := bytes.Cut(text, []byte{' '})
	class, word, ok1 := bytes.Cut(word, []byte{'.'})
	subject, detail, ok2 := bytes.Cut(word, []byte{'.'})
	if !ok1 || !ok2 || len(class) != 1 || bytes.IndexByte([]byte("245"), class[0]) < 0 {
		return EnhancedCode{}, text
	}
	s, ok1 := statusNumber(subject)
	d, ok2 := statusNumber(detail)
	if !ok1 || !ok2 {
		return EnhancedCode{}, text
	}
	if c := int(class[0] - '0'); c == code/100 {
		return EnhancedCode{c, s, d}, rest
	}
	return EnhancedCode{}, rest
}

// statusNumber parses one to three digits without leading zeros.
func statusNumber(b []byte) (int, bool) {
	if len(b) < 1 || len(b) > 3 || len(b) > 1 && b[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// printable returns b as text that can be stored, logged and shown: valid UTF-8
// of printable characters and spaces.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError: // what strings.Map makes of an octet that is not UTF-8
			return '?'
		case unicode.IsPrint(r):
			return r
		case r == '\t' || r > unicode.MaxLatin1 && unicode.IsSpace(r) || r == 0xA0:
			return ' '
		}
		return '?'
	}, string(b))
}
