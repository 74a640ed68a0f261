package maillog

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds one field of untrusted text, in octets before escaping.
const maxText = 512

// Clean makes untrusted text safe to log: at most maxText octets of it, marked by
// "…" where it was cut, and every octet or character that could forge a line or
// drive a terminal written as \xNN or \u{NNNN}. Other text is unchanged.
func Clean(s string) string {
	cut := false
	if len(s) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s, cut = s[:end], true
	}
	if isPlain(s) {
		if cut {
			return s + "…"
		}
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
			n = 1
		case r < utf8.RuneSelf && !isSafe(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		case !isSafe(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	if cut {
		b.WriteString("…")
	}
	return b.String()
}

// isPlain is the common case: printable ASCII only.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// isSafe refuses C0, DEL, C1, the format characters (bidirectional controls, zero
// width joiners, soft hyphen, BOM), line and paragraph separators and everything
// else that has no shape of its own.
func isSafe(r rune) bool { return unicode.IsPrint(r) }
