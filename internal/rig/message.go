package rig

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Shape says what one message is like.
type Shape struct {
	From string   // "": the null path is not for users; a sender in Domain
	To   []string // as many recipients
	Size int      // octets of text, about
}

// text is a message under the name id: its header section begins with fields that
// Sent describes, and its name is in the body every few lines, so that text of
// another message among it would be seen. Some lines begin with a dot.
func text(id string, shape Shape, withDate bool, random *rand.Rand) string {
	var b strings.Builder
	b.Grow(shape.Size + 512)
	fmt.Fprintf(&b, "X-Load-Id: %s\r\n", id)
	if withDate {
		b.WriteString("Date: Mon, 2 Nov 2026 10:00:00 +0000\r\n")
	}
	fmt.Fprintf(&b, "From: <%s>\r\nSubject: load\r\n\tfolded\r\nMessage-ID: %s\r\n\r\n", shape.From, messageID(id))
	for n := 0; b.Len() < shape.Size; n++ {
		switch {
		case n%40 == 0:
			fmt.Fprintf(&b, "%s line %d\r\n", id, n)
		case random.IntN(20) == 0:
			b.WriteString([]string{".\r\n", "..\r\n", "\r\n", ".. .\r\n", ".dot first\r\n"}[random.IntN(5)])
		default:
			fmt.Fprintf(&b, "%016x%016x%016x\r\n", random.Uint64(), random.Uint64(), random.Uint64())
		}
	}
	return b.String()
}

// messageID is the Message-ID field of a message, by which the history has it.
func messageID(id string) string { return "<" + id + "@" + Domain + ">" }

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// stuffed is a message as it goes over the wire, with its end (RFC 5321 section 4.5.2).
func stuffed(text string) string {
	text = strings.ReplaceAll(text, "\r\n.", "\r\n..")
	if strings.HasPrefix(text, ".") {
		text = "." + text
	}
	return text + ".\r\n"
}
