package pg

import (
	"strings"
	"unicode/utf8"
)

// maxStoredText bounds one text of a peer in the history, in octets.
const maxStoredText = 8 << 10

// Storable makes the text of a peer fit for a text column: valid UTF-8, no NUL,
// bounded. An outcome that cannot be written would be a delivery that is repeated
// for ever, so this is the last line of defence and cannot fail.
func Storable(s string) string {
	if len(s) > maxStoredText {
		s = strings.ToValidUTF8(s[:maxStoredText], "") + "…"
	}
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
