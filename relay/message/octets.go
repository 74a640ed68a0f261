package message

import (
	"encoding/binary"
	"unicode/utf8"
)

// hasEightBit reports octets beyond ASCII. Every octet of every message comes by here.
func hasEightBit(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.NativeEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
	}
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// hasUTF8 reports a character beyond ASCII in UTF-8. Octets in another charset beside it
// do not matter: RFC 6532 allows none, and nobody can make the header valid.
func hasUTF8(b []byte) bool {
	if !hasEightBit(b) {
		return false
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r >= utf8.RuneSelf && n > 1 {
			return true
		}
		i += n
	}
	return false
}
