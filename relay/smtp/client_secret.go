package smtp

import (
	"encoding/base64"
	"strings"
)

// A server that repeats the line that it refuses repeats a password, and what a server said is
// stored, logged and sent to people. So what a Client proved itself with is not in any text
// that it gives.

const (
	hiding = "***"
	// leastEcho is how much of a secret is hidden wherever it stands: servers cut what they
	// repeat, and fold it.
	leastEcho = 8
	// leastWord is how long a whole secret is hidden also within a longer word.
	leastWord = 4
)

// keep adds a response of an exchange, the first of which is 0, to what is hidden: as it is sent,
// and the password or token in it. User names are not hidden.
func (c *Client) keep(mech string, number int, response []byte) {
	c.hide(base64.StdEncoding.EncodeToString(response))
	switch text := string(response); mech {
	case "LOGIN":
		if number > 0 {
			c.hide(text)
		}
	case "PLAIN": // RFC 4616: the password is the last part
		c.hide(text[strings.LastIndexByte(text, 0)+1:])
	case "XOAUTH2", "OAUTHBEARER": // RFC 7628 section 3.1
		for part := range strings.SplitSeq(text, "\x01") {
			if value, ok := strings.CutPrefix(part, "auth="); ok {
				c.hide(value[strings.IndexByte(value, ' ')+1:])
			}
		}
	default:
		c.hide(text)
		for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == 0 || r == 1 }) {
			c.hide(part)
		}
	}
}

// hide keeps a secret as it is and, if that is different, as a Reply has it.
func (c *Client) hide(secret string) {
	if secret == "" {
		return
	}
	c.secrets = append(c.secrets, smallASCII(secret))
	if shown := printable([]byte(secret)); shown != secret {
		c.secrets = append(c.secrets, smallASCII(shown))
	}
}

// Masked is text without what this connection was authenticated with, for a text that a server
// may have put that into: *** takes the place of each password, token and response, and of pieces
// of them, in any case of their letters and also over the end of a line.
func (c *Client) Masked(text string) string {
	if len(c.secrets) == 0 {
		return text
	}
	plain := smallASCII(strings.ReplaceAll(text, "\n", ""))
	hidden, any := make([]bool, len(plain)), false
	for _, secret := range c.secrets {
		n := min(len(secret), leastEcho)
		for i := 0; i+n <= len(plain); i++ {
			if piece := plain[i : i+n]; strings.Contains(secret, piece) && (n >= leastWord || isAlone(plain, i, i+n)) {
				any = true
				for j := i; j < i+n; j++ {
					hidden[j] = true
				}
			}
		}
	}
	if !any {
		return text
	}
	var b strings.Builder
	at, within := 0, false // in plain
	for i := range len(text) {
		switch {
		case text[i] == '\n':
			b.WriteByte('\n')
			continue
		case !hidden[at]:
			b.WriteByte(text[i])
		case !within:
			b.WriteString(hiding)
		}
		within = hidden[at]
		at++
	}
	return b.String()
}

// isAlone reports that neither a letter nor a digit stands beside text[i:j].
func isAlone(text string, i, j int) bool {
	word := func(at int) bool {
		return at >= 0 && at < len(text) && (isDigit(text[at]) || 'a' <= text[at] && text[at] <= 'z' || text[at] >= 0x80)
	}
	return !word(i-1) && !word(j)
}

// smallASCII is s with the letters of ASCII in lower case, so that each octet stays in its place.
func smallASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}
