package message

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"
)

// encodedWord finds what readers take for an encoded word (RFC 2047 section 2): spaces in
// it, quotes around it and text beside it do not keep them from that.
var encodedWord = regexp.MustCompile(`(?s)=\?([^?]*)\?([bBqQ])\?(.*?)\?=`)

// encodedFault looks at the encoded words of an address field as a reader does who decodes
// first and looks for addresses then: text that is refused raw is refused encoded. An @ in
// a name is allowed, encoded or quoted, but not beside characters that make a list. at says
// that there is one in quotes.
func encodedFault(value []byte, at bool) error {
	if !bytes.Contains(value, []byte("=?")) {
		return nil
	}
	marks := false
	for _, word := range encodedWord.FindAllSubmatch(bytes.ReplaceAll(value, crlf, nil), -1) {
		text, known := wordText(string(word[1]), word[2][0]|0x20 == 'b', word[3])
		switch {
		case !known:
			return faultCharset
		case hasControl(text):
			return faultEncodedControl
		}
		at = at || bytes.IndexByte(text, '@') >= 0
		marks = marks || bytes.ContainsAny(text, `,;<>"`)
	}
	if at && marks {
		return faultEncodedList
	}
	return nil
}

// wordText decodes the text of an encoded word as far as it is ASCII, and leaves other
// octets as they are. A charset in which ASCII may not be ASCII is not known: any address
// could be in it.
func wordText(charset string, isBase64 bool, text []byte) (decoded []byte, known bool) {
	if isBase64 {
		decoded = decodeBase64(text)
	} else {
		decoded = decodeQ(text)
	}
	charset, _, _ = strings.Cut(strings.ToLower(charset), "*") // a language (RFC 2231 section 5)
	charset = strings.NewReplacer("-", "", "_", "").Replace(charset)
	is := func(prefixes string) bool {
		for p := range strings.FieldsSeq(prefixes) {
			if strings.HasPrefix(charset, p) {
				return true
			}
		}
		return false
	}
	switch {
	case is("iso2022"):
		return shiftless(decoded), true
	case is("iso8859"):
		return bytes.ReplaceAll(decoded, []byte{0x85}, []byte("\u0085")), true // NEL
	case is("utf8 usascii ascii ansi latin windows cp125 cp8 cp9 ibm8 koi8 mac xmac tis620 viscii unknown8bit " +
		"gb big5 shiftjis sjis xsjis mskanji euc ksc"):
		return decoded, true
	}
	return nil, false
}

// decodeBase64 passes over what is not base64, as readers do.
func decodeBase64(text []byte) []byte {
	clean := bytes.Map(func(r rune) rune {
		if r < utf8.RuneSelf && (isAlphanumeric(byte(r)) || r == '+' || r == '/') {
			return r
		}
		return -1
	}, text)
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(clean)))
	n, _ := base64.RawStdEncoding.Decode(out, clean) // as much as can be decoded
	return out[:n]
}

func isAlphanumeric(c byte) bool {
	return lower(c) >= 'a' && lower(c) <= 'z' || c >= '0' && c <= '9'
}

func decodeQ(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '=' && i+2 < len(text) {
			if octet, err := hex.DecodeString(string(text[i+1 : i+3])); err == nil {
				c, i = octet[0], i+2
			}
		}
		out = append(out, c)
	}
	return out
}

// shiftless is what is ASCII in ISO-2022: the text outside of its shifts. A sequence that
// shifts is ESC, octets below '0' (0x30), and one more.
func shiftless(text []byte) []byte {
	const escape, shiftOut, shiftIn = 0x1B, 0x0E, 0x0F
	out, shifted := make([]byte, 0, len(text)), false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == escape && i+2 < len(text):
			shifted = text[i+1] == '$' && text[i+2] != ')' // which waits for the shift out
			for i++; i+1 < len(text) && text[i] < '0'; i++ {
			}
		case c == shiftOut:
			shifted = true
		case c == shiftIn:
			shifted = false
		case !shifted:
			out = append(out, c)
		}
	}
	return out
}

// hasControl reports a control character other than a tab, or a line separator of Unicode.
// Octets that are not UTF-8 are of another charset.
func hasControl(text []byte) bool {
	for _, c := range text {
		if c < ' ' && c != '\t' || c == 0x7F {
			return true
		}
	}
	return hasEightBit(text) && utf8.Valid(text) && bytes.ContainsFunc(text, func(r rune) bool {
		return r >= 0x80 && r < 0xA0 || r == '\u2028' || r == '\u2029'
	})
}
