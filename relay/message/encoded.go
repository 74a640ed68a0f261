package message

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
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
//
// Some readers unfold by taking the white space away, or undo quoted pairs first. They may
// see words that others do not.
func encodedFault(value []byte, at bool) error {
	if bytes.IndexByte(value, '?') < 0 {
		return nil
	}
	for _, text := range unfolded(value) {
		found, marks, err := encodedMarks(text)
		if err != nil {
			return err
		}
		if (at || found) && marks {
			return faultEncodedList
		}
	}
	return nil
}

// unfolded is a field as its readers see it on one line.
func unfolded(value []byte) [2][]byte {
	return [2][]byte{bytes.ReplaceAll(value, crlf, nil), without(value, " \t\r\n\\")}
}

// encodedMarks reports an @, and marks that make a list, in the encoded words of a text.
func encodedMarks(value []byte) (at, marks bool, err error) {
	open := false
	for _, word := range encodedWord.FindAllSubmatch(value, -1) {
		if open || bytes.Contains(word[3], []byte("=?")) {
			return at, marks, faultWord // some readers join them, or begin at the inner one
		}
		decoded := decodeQ(word[3])
		if word[2][0]|0x20 == 'b' {
			var ok bool
			if decoded, open, ok = decodeBase64(word[3]); !ok {
				return at, marks, faultWord
			}
		}
		text, known := asciiOf(string(word[1]), decoded)
		switch {
		case !known:
			return at, marks, faultCharset
		case hasControl(text):
			return at, marks, faultEncodedControl
		}
		at = at || bytes.IndexByte(text, '@') >= 0
		marks = marks || bytes.ContainsAny(text, `,;<>"`)
	}
	return at, marks, nil
}

// asciiCharsets are those in which what looks like ASCII is ASCII, by their beginnings, in
// small letters, without x-, hyphens and underscores. Among the code pages are some of EBCDIC.
const asciiCharsets = "utf8 usascii ascii ansi latin windows cp125 cp437 cp737 cp775 cp85 cp86 cp874 cp932 cp936 cp949 cp950 " +
	"ibm437 ibm85 ibm86 koi8 mac tis620 viscii unknown gb big5 shiftjis sjis mskanji euc ksc"

// asciiOf is what a text has of ASCII, with other octets as they are. A charset in which
// ASCII may not be ASCII is not known: any address could be in it.
func asciiOf(charset string, text []byte) (ascii []byte, known bool) {
	charset, _, _ = strings.Cut(strings.ToLower(charset), "*") // a language (RFC 2231 section 5)
	charset = strings.TrimPrefix(strings.NewReplacer("-", "", "_", "").Replace(charset), "x")
	is := func(prefixes string) bool {
		for p := range strings.FieldsSeq(prefixes) {
			if strings.HasPrefix(charset, p) {
				return true
			}
		}
		return false
	}
	switch {
	case is("iso2022jp"):
		return outside(text, "\x1b$@ \x1b$B \x1b$A \x1b$(C \x1b$(D \x1b(I", "\x1b(B \x1b(J"), true
	case is("iso2022kr"):
		return outside(text, "\x0e", "\x0f \x1b$)C"), true
	case is("iso8859 latin"):
		return bytes.ReplaceAll(text, []byte{0x85}, []byte{'\n'}), true // NEL
	case is("utf8"):
		return bytes.ToValidUTF8(text, []byte{'?'}), true
	}
	return text, is(asciiCharsets)
}

// decodeBase64 takes nothing that readers pass over in different ways. open says that
// octets are left for a word that some readers join to this one.
func decodeBase64(text []byte) (decoded []byte, open, ok bool) {
	text = without(text, " \t")
	body := bytes.TrimRight(text, "=")
	for _, c := range body {
		if !isAlphanumeric(c) && c != '+' && c != '/' {
			return nil, false, false
		}
	}
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(body)))
	n, _ := base64.RawStdEncoding.Decode(out, body) // as much as can be decoded
	return out[:n], len(body)%4 != 0 && len(body) == len(text), true
}

// without returns text without some characters.
func without(text []byte, chars string) []byte {
	return bytes.Map(func(r rune) rune {
		if strings.ContainsRune(chars, r) {
			return -1
		}
		return r
	}, text)
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

// outside is the text outside of what is shifted, and controls wherever they are, escape
// sequences other than those that begin and end shifts among them.
func outside(text []byte, begin, end string) []byte {
	sequence := func(at []byte, list string) int {
		for s := range strings.FieldsSeq(list) {
			if bytes.HasPrefix(at, []byte(s)) {
				return len(s)
			}
		}
		return 0
	}
	out, shifted := make([]byte, 0, len(text)), false
	for i := 0; i < len(text); {
		begins, ends := sequence(text[i:], begin), sequence(text[i:], end)
		if begins+ends > 0 {
			shifted = begins > 0
			i += begins + ends
			continue
		}
		if c := text[i]; !shifted || c <= ' ' || c > '~' {
			out = append(out, c)
		}
		i++
	}
	return out
}

// hasControl reports a control character other than a tab, or a line separator of Unicode.
// Octets that are not UTF-8 are of another charset.
func hasControl(text []byte) bool {
	const each = 0x0101010101010101
	for ; len(text) >= 8; text = text[8:] { // every octet of every header comes by here
		v := binary.NativeEndian.Uint64(text)
		if (v|(v-' '*each)|(v+each))&(0x80*each) != 0 {
			break // one of the eight is not printable ASCII
		}
	}
	for _, c := range text {
		if c < ' ' && c != '\t' || c == 0x7F {
			return true
		}
	}
	return hasEightBit(text) && utf8.Valid(text) && bytes.ContainsFunc(text, func(r rune) bool {
		return r >= 0x80 && r < 0xA0 || r == '\u2028' || r == '\u2029'
	})
}
