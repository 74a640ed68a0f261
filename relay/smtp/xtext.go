package smtp

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

var errXtext = errors.New("not valid xtext")

const hexDigits = "0123456789ABCDEF"

// appendXtext appends s in xtext (RFC 3461 section 4): printable ASCII but for "+"
// and "=" as it is, every other octet as "+" and two hexadecimal digits.
func appendXtext(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if c > ' ' && c < 0x7F && c != '+' && c != '=' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '+', hexDigits[c>>4], hexDigits[c&0xF])
		}
	}
	return dst
}

// decodeXtext undoes appendXtext. The caller checks the result's characters. Digits in
// lower case are against the grammar, common, and cannot mean anything else.
func decodeXtext(s string) (string, error) {
	if strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errXtext
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", errXtext
		}
		b = append(b, byte(n))
		i += 2
	}
	return string(b), nil
}

// UTF8Addr writes an address of the type "utf-8" in utf-8-addr-xtext (RFC 6533 section
// 3), for what has to be ASCII.
func UTF8Addr(address string) string { return string(appendUTF8Addr(nil, address)) }

// appendUTF8Addr appends s as utf-8-addr-xtext (RFC 6533 section 3), which is
// ASCII: "\x{HEX}" stands for what xtext or the parameter cannot hold.
func appendUTF8Addr(dst []byte, s string) []byte {
	for _, r := range s {
		if r > ' ' && r < 0x7F && r != '+' && r != '=' && r != '\\' {
			dst = append(dst, byte(r))
			continue
		}
		dst = append(dst, `\x{`...)
		dst = append(dst, strings.ToUpper(strconv.FormatInt(int64(r), 16))...)
		dst = append(dst, '}')
	}
	return dst
}

// decodeUTF8Addr decodes utf-8-addr-xtext and utf-8-addr-unitext.
func decodeUTF8Addr(s string) (string, error) {
	var b strings.Builder
	for {
		plain, rest, more := strings.Cut(s, `\`)
		b.WriteString(plain)
		if !more {
			return b.String(), nil
		}
		inner, ok := strings.CutPrefix(rest, "x{")
		if !ok {
			return "", errXtext
		}
		digits, rest, ok := strings.Cut(inner, "}")
		if !ok || len(digits) < 2 || len(digits) > 6 {
			return "", errXtext
		}
		n, err := strconv.ParseUint(digits, 16, 32)
		if err != nil || !utf8.ValidRune(rune(n)) {
			return "", errXtext
		}
		b.WriteRune(rune(n))
		s = rest
	}
}

// printableASCII reports printable characters and spaces only.
func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// printableUTF8 is printableASCII with the characters beyond that an address may
// have.
func printableUTF8(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7F || r >= utf8.RuneSelf && !isUTF8Text(r) {
			return false
		}
	}
	return true
}
