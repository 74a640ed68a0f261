package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

const (
	mark       = "X-Bench: " // the first field of each message: what is above it was added
	numberLen  = 10          // digits of a message's number
	chunkSize  = 64 << 10    // octets of text after which a body repeats itself
	lineSize   = 78          // of an ordinary line, its end included
	blockLines = 52          // lines of about 4 KiB, after which the number comes again
	minSize    = 1024        // of a message: the header section and a line
)

// A corpus is the messages of one run. Message n differs from the others in its
// number only, which is in its header, its body and its recipients, so nothing has
// to be stored but the digests.
type corpus struct {
	run        string // names the run in all its messages
	from       string
	domain     string // of the recipients
	recipients int    // of each message
	size       int    // octets of each message
	date       string

	lines   [][]byte // the text, without line ends; nil is a line with the number
	repeats int      // how often the whole text comes
	tail    [][]byte // what comes after it, to make the size exact
	digests [][sha256.Size]byte
}

// corpusConfig says what a run sends.
type corpusConfig struct {
	from       string
	domain     string
	messages   int
	recipients int
	size       int
}

// newCorpus plans the messages and takes their digests, so that sending costs as
// little as can be.
func newCorpus(config corpusConfig) (*corpus, error) {
	if config.size < minSize {
		return nil, fmt.Errorf("a message has at least %d octets", minSize)
	}
	var name [4]byte
	_, _ = rand.Read(name[:]) // never fails
	c := &corpus{
		run: hex.EncodeToString(name[:]), from: config.from, domain: config.domain,
		recipients: config.recipients, size: config.size, date: time.Now().Format(time.RFC1123Z),
		digests: make([][sha256.Size]byte, config.messages),
	}
	c.layout()
	m, sum := c.message(false), sha256.New()
	for n := range c.digests {
		m.number(n)
		sum.Reset()
		first := true
		_ = m.each(func(b []byte) error {
			if first { // the digest is in the first line and covers the rest
				b, first = b[bytes.IndexByte(b, '\n')+1:], false
			}
			_, err := sum.Write(b)
			return err
		})
		sum.Sum(c.digests[n][:0])
	}
	return c, nil
}

// layout chooses the lines so that every message has exactly the size.
func (c *corpus) layout() {
	head := newStencil(false)
	c.appendHead(head)
	left := c.size - len(head.b)
	c.lines = text(chunkSize)
	c.repeats = left / chunkSize
	left -= c.repeats * chunkSize
	if c.repeats > 0 && left == 1 { // no line is so short
		c.repeats--
		left += chunkSize
	}
	if left > 0 {
		c.tail = text(left)
	}
}

// text is lines of that many octets with their ends, at least 2. Many begin with a
// dot, for the stuffing; it is the same text each time.
func text(size int) [][]byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	random := mathrand.New(mathrand.NewPCG(1, 2))
	letters := func(n int) []byte {
		line := make([]byte, n)
		for i := range line {
			line[i] = alphabet[random.IntN(len(alphabet))]
		}
		return line
	}
	var lines [][]byte
	for ; size > 2*lineSize; size -= lineSize {
		line := letters(lineSize - 2)
		switch i := len(lines) % blockLines; {
		case i == 0:
			line = nil
		case i == 1:
			line = []byte(".")
			size += lineSize - len(".\r\n")
		case i%7 == 0:
			copy(line, ".")
		case i == 50:
			copy(line, "..")
		}
		lines = append(lines, line)
	}
	return append(lines, letters(size-2))
}

// appendHead appends the header section and its end.
func (c *corpus) appendHead(s *stencil) {
	s.text(mark + "run=" + c.run + " n=").numeral().text(" sha256=").space(2 * sha256.Size).end()
	s.text("Date: " + c.date).end()
	s.text("From: smtpbench <" + c.from + ">").end()
	s.text("To: <m").numeral().text(".r000@" + c.domain + ">").end()
	s.text("Subject: smtpbench ").numeral().end()
	s.text("Message-ID: <" + c.run + ".").numeral().text("@" + c.domain + ">").end()
	s.text("MIME-Version: 1.0").end()
	s.text("Content-Type: text/plain; charset=us-ascii").end()
	s.end()
}

// appendLines appends a part of the body.
func (c *corpus) appendLines(s *stencil, lines [][]byte) {
	for _, line := range lines {
		if line != nil {
			s.line(line)
			continue
		}
		begin := "bench run=" + c.run + " n="
		s.text(begin).numeral().space(lineSize - 2 - len(begin) - numberLen).end()
	}
}

// appendRecipient appends the address of recipient k of message n.
func (c *corpus) appendRecipient(b []byte, n, k int) []byte {
	b = append(b, 'm')
	b = appendDigits(b, n, numberLen)
	b = append(b, ".r"...)
	b = appendDigits(b, k, 3)
	b = append(b, '@')
	return append(b, c.domain...)
}

func appendDigits(b []byte, n, width int) []byte {
	b = append(b, "0000000000"[:width]...)
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

// A message is one sender's copy of the text, on which it writes the number of the
// message that it sends.
type message struct {
	corpus  *corpus
	parts   []*stencil
	repeats int // of the second part
}

// message makes a copy; stuffed, it is as it goes over the wire, with the final dot
// (RFC 5321 section 4.5.2).
func (c *corpus) message(stuffed bool) *message {
	head := newStencil(stuffed)
	m := &message{corpus: c, parts: []*stencil{head}}
	c.appendHead(head)
	last := head
	if c.repeats > 0 {
		body := newStencil(stuffed)
		c.appendLines(body, c.lines)
		last = newStencil(stuffed)
		m.parts, m.repeats = append(m.parts, body, last), c.repeats
	}
	c.appendLines(last, c.tail)
	if stuffed {
		last.b = append(last.b, ".\r\n"...)
	}
	return m
}

// number makes it message n.
func (m *message) number(n int) {
	for _, part := range m.parts {
		for _, at := range part.numerals {
			appendDigits(part.b[at:at], n, numberLen)
		}
	}
	head := m.parts[0]
	hex.Encode(head.b[head.gap:], m.corpus.digests[n][:])
}

// each gives the message's octets, in order. The last call ends it.
func (m *message) each(do func([]byte) error) error {
	for i, part := range m.parts {
		times := 1
		if i == 1 {
			times = m.repeats
		}
		for range times {
			if err := do(part.b); err != nil {
				return err
			}
		}
	}
	return nil
}

// A stencil is text with places for the number.
type stencil struct {
	b        []byte
	numerals []int
	gap      int // where the first blank space is
	stuffed  bool
}

func newStencil(stuffed bool) *stencil { return &stencil{stuffed: stuffed} }

func (s *stencil) text(t string) *stencil {
	s.b = append(s.b, t...)
	return s
}

func (s *stencil) numeral() *stencil {
	s.numerals = append(s.numerals, len(s.b))
	s.b = appendDigits(s.b, 0, numberLen)
	return s
}

func (s *stencil) space(n int) *stencil {
	if s.gap == 0 {
		s.gap = len(s.b)
	}
	s.b = append(s.b, bytes.Repeat([]byte("="), n)...)
	return s
}

func (s *stencil) end() { s.b = append(s.b, "\r\n"...) }

func (s *stencil) line(line []byte) {
	if s.stuffed && len(line) > 0 && line[0] == '.' {
		s.b = append(s.b, '.')
	}
	s.b = append(s.b, line...)
	s.end()
}
