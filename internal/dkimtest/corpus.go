package dkimtest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Message is one of a corpus, as a client sends it, its lines not dot-stuffed.
type Message struct {
	Name   string
	Octets []byte
}

// Size is how many messages a whole corpus has.
const Size = 500

// Corpus makes the first so many messages of the corpus, at most Size, with an author at the
// domain. They are the same each time. The first is of 10 MB.
func Corpus(domain string, messages int) []Message {
	list := make([]Message, 0, messages)
	for i := range messages {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		body := bodies[i%len(bodies)]
		if i == 0 {
			body = kind{"10 MB", func(r *rand.Rand) string { return lines(r, 10<<20, anyLine) }}
		}
		header := headers[(i/len(bodies)+i)%len(headers)]
		var m bytes.Buffer
		fmt.Fprintf(&m, "Message-ID: <%d@%s>\r\n", i, domain)
		fmt.Fprintf(&m, "From: Alice <alice@%s>\r\nTo: bob@example.net\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\n", domain)
		m.WriteString(strings.ReplaceAll(header.make(r), "@example.com", "@"+domain))
		m.WriteString("\r\n")
		m.WriteString(body.make(r))
		list = append(list, Message{fmt.Sprintf("%d %s, %s", i, header.name, body.name), m.Bytes()})
	}
	return list
}

// kind is one of header sections or bodies.
type kind struct {
	name string
	make func(*rand.Rand) string
}

func text(name, octets string) kind { return kind{name, func(*rand.Rand) string { return octets }} }

var headers = []kind{
	text("plain", "Subject: hello\r\n"),
	text("no subject", ""),
	text("empty subject", "Subject:\r\n"),
	text("subject of white space", "Subject: \t \r\n"),
	text("no white space", "Subject:x\r\nCc:carol@example.net\r\n"),
	text("folded", "Subject: a\r\n\tsubject  that is\r\n   folded \t \r\n  often\r\nReferences: <a@b>\r\n <c@d>\r\n\t<e@f>\r\nX-Folded:\r\n empty first line\r\n"),
	text("trailing white space", "Subject: ends in white space  \t\r\nCc: carol@example.net \r\n"),
	text("odd case", "sUBJECT: Odd Case\r\nMIME-version: 1.0\r\ncontent-TYPE: text/plain\r\n"),
	text("MIME", "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=\"utf-8\";\r\n format=flowed\r\nContent-Transfer-Encoding: 8bit\r\nContent-Disposition: inline\r\n"),
	text("list", "Subject: [list] news\r\nReply-To: list@example.org\r\nSender: owner@example.com\r\nList-Id: <list.example.org>\r\nList-Unsubscribe: <https://example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nPrecedence: bulk\r\n"),
	text("resent", "Resent-From: alice@example.com\r\nResent-To: dan@example.net\r\nResent-Date: Mon, 2 Nov 2026 11:00:00 +0000\r\nResent-Message-ID: <r@example.com>\r\nSubject: see this\r\nIn-Reply-To: <a@b>\r\n"),
	text("many of one", "Subject: many\r\nReceived: from a by b; Mon, 2 Nov 2026 09:00:00 +0000\r\nReceived: from c by d; Mon, 2 Nov 2026 08:00:00 +0000\r\nX-Spam: no\r\nX-Spam: yes\r\nList-Post: <mailto:a@b>\r\nList-Post: <mailto:c@d>\r\nComments: one\r\nComments: two\r\n"),
	text("signed by the customer", "DKIM-Signature: v=1; a=rsa-sha256; d=elsewhere.example; s=x; h=from;\r\n bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\nSubject: signed already\r\n"),
	text("odd names", "Subject: names\r\nX-!#$%&'*+^_`{|}~: odd\r\nList-a;b=c: not to be signed\r\nContent-Length: 12\r\n"),
	text("8-bit", "Subject: gr\u00fc\u00dfe \u65e5\u672c\r\nX-Latin: gr\xfc\xdfe\r\n"),
	{"long lines", func(r *rand.Rand) string {
		return "Subject: " + strings.Repeat("long ", 190) + "\r\nKeywords: " + strings.Repeat("a,", 480) + "\r\n"
	}},
	{"many fields", func(r *rand.Rand) string {
		var b strings.Builder
		for i := range 200 {
			fmt.Fprintf(&b, "X-Field-%d: %s\r\nContent-%d: %d\r\n", i, strings.Repeat("x", r.IntN(60)), i%30, i)
		}
		return b.String() + "Subject: many\r\n"
	}},
}

var bodies = []kind{
	text("plain", "hello\r\n"),
	text("empty", ""),
	text("one empty line", "\r\n"),
	text("empty lines", "\r\n\r\n\r\n\r\n"),
	text("lines of white space", " \r\n\t\r\n  \t \r\n"),
	text("empty lines around", "\r\n\r\nhello\r\n\r\n\r\nagain\r\n\r\n\r\n"),
	text("dots", ".\r\n..\r\n...\r\n.a\r\n a.\r\n.\r\n"),
	text("trailing white space", "hello \r\nhello\t\r\nhello \t \t\r\n \r\nhello\r\n \t\r\n\r\n"),
	text("white space within", "a  b\tc\t\td \t e\r\n  f\r\n\tg\r\n"),
	text("white space only behind", "text\r\n \t \r\n\r\n\t\r\n"),
	text("8-bit", "gr\u00fc\u00dfe\r\nlatin gr\xfc\xdfe\r\n\u65e5\u672c\u8a9e\r\n"),
	text("all octets", everyOctet()),
	{"one long line", func(r *rand.Rand) string { return strings.Repeat("x ", 499) + "\r\n" }},
	{"base64", func(r *rand.Rand) string {
		var b strings.Builder
		octets := make([]byte, 57)
		for range 100 + r.IntN(2000) {
			for i := range octets {
				octets[i] = byte(r.Uint32())
			}
			b.WriteString(base64.StdEncoding.EncodeToString(octets) + "\r\n")
		}
		return b.String()
	}},
	{"many parts", func(r *rand.Rand) string {
		return "--b\r\nContent-Type: text/plain\r\n\r\n" + lines(r, 2000, words) + "\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>" + lines(r, 2000, words) + "</p>\r\n--b--\r\n"
	}},
	{"words", func(r *rand.Rand) string { return lines(r, 200+r.IntN(20_000), words) }},
	{"anything", func(r *rand.Rand) string { return lines(r, 100+r.IntN(4_000), anyLine) }},
	{"white space and breaks", func(r *rand.Rand) string {
		return lines(r, 600, func(r *rand.Rand) string { return pick(r, r.IntN(6), "a", " ", "\t", ".") })
	}},
}

// everyOctet has those that a message may have: no NUL, no CR and LF alone.
func everyOctet() string {
	var b strings.Builder
	for c := 1; c < 256; c++ {
		if c != '\r' && c != '\n' {
			b.WriteByte(byte(c))
		}
	}
	return b.String() + "\r\n"
}

func lines(r *rand.Rand, octets int, line func(*rand.Rand) string) string {
	var b strings.Builder
	for b.Len() < octets {
		b.WriteString(line(r))
		b.WriteString("\r\n")
	}
	return b.String()
}

func words(r *rand.Rand) string {
	return pick(r, r.IntN(14), "lorem ", "ipsum ", "dolor, ", "a ", "sit\t")
}

func anyLine(r *rand.Rand) string {
	return pick(r, r.IntN(90), "a", "lorem ", " ", "\t", ".", "=20", "\xfc", "\u00fc")
}

func pick(r *rand.Rand, n int, among ...string) string {
	var b strings.Builder
	for range n {
		b.WriteString(among[r.IntN(len(among))])
	}
	return b.String()
}
