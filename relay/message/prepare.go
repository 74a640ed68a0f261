package message

import (
	"io"
	"net/netip"
	"sync"
	"time"

	"postern/relay/smtp"
)

// Bounds of the header section.
const (
	DefaultMaxHeader = 256 << 10 // octets
	MaxFields        = 1000
	MaxReceived      = 50 // more is a loop (RFC 5321 section 6.3)
)

// Options say how a message came to us.
type Options struct {
	ID       string // queue id, printable ASCII without spaces
	Hostname string // ours
	Now      time.Time

	Hello         string // what the client called itself
	Client        netip.Addr
	HideClient    bool // leave Hello and Client out of Received
	TLS           string
	Authenticated bool
	UTF8          bool         // SMTPUTF8 was asked for
	For           smtp.Address // the recipient when there is exactly one

	MaxHeader int // octets of the header section; 0: DefaultMaxHeader
	Memory    Memory
}

// Memory is asked before a header section takes more than the first 16 KiB. Take's
// error refuses the message; Give gives back what was taken.
type Memory interface {
	Take(octets int64) error
	Give(octets int64)
}

// Prepared is a message on its way from the client to the spool. Read gives the
// repaired message; errors of the source come through as they are.
type Prepared struct {
	Facts
	// Body, if it is set before the first Read, gets the octets behind the header section and its
	// empty line as they are read; Client those of the whole message but the fields that are added.
	// Their errors are ignored.
	Body, Client io.Writer

	parts [4][]byte // what is read before the rest of src; the last is of the body
	part  int
	src   io.Reader
	end   error // of src, when it ended while the header section was read
	buf   *[]byte
	taken int64 // of memory
	from  Memory
}

// Facts are what the header section said, and of what octets the message is.
type Facts struct {
	// MessageID is the message's identifier, the client's or the one added (IDAdded). It is
	// valid UTF-8 without controls, at most 255 octets, and for finding the message
	// again only: the field itself is not touched.
	MessageID string
	IDAdded   bool

	ForUs
	Fields   int // fields of the client, the removed ones included
	Received int // Received fields before ours

	// Lines before the header section that were removed.
	ByteOrderMark, MboxLine bool

	// UTF8 says that the header section, as it goes on, has UTF-8 beyond ASCII (RFC 6532).
	// EightBit says that the message has octets beyond ASCII; of what is behind the header
	// section it is known when Read has given io.EOF.
	UTF8, EightBit bool

	// TLSOptional says that the message has the field "TLS-Required: No" (RFC 8689 section 5).
	TLSOptional bool

	// The mailboxes of the fields that say whose the message is. From has at least
	// one; Sender has one if there is such a field. A message can be resent more
	// than once.
	From, Sender, ResentFrom, ResentSender []smtp.Address
	// Redirector is who resent the message last (RFC 5322 section 3.6.6), from the
	// Resent-From and Resent-Sender that stand first; empty where that is not clear.
	Redirector []smtp.Address
}

// buffers holds header buffers. One that had to grow is not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, firstBuffer); return &b }}

const firstBuffer = 16 << 10

// Prepare reads the header section of the message in r and returns the repaired
// message. A header section that breaks a bound, or that two readers may read in
// two ways, is refused by an *smtp.Error, and so is a message that went round too
// often; what is left in r is the caller's to read. Any other error is r's.
func Prepare(r io.Reader, opt Options) (*Prepared, error) {
	if opt.MaxHeader <= 0 {
		opt.MaxHeader = DefaultMaxHeader
	}
	p := &Prepared{src: r, buf: buffers.Get().(*[]byte), from: opt.Memory}
	s := scanner{src: r, buf: *p.buf, max: opt.MaxHeader, utf8: opt.UTF8, facts: &p.Facts, memory: opt.Memory}
	err := s.scan()
	p.taken = s.taken
	if err != nil {
		p.release()
		return nil, err
	}
	p.end = s.srcErr
	var blank []byte
	if s.noField {
		blank = crlf
	}
	p.parts = [4][]byte{p.head(&s, opt), s.buf[:s.kept], blank, s.buf[s.pos:s.filled]}
	p.UTF8 = hasUTF8(p.parts[0]) || hasUTF8(p.parts[1])
	for _, part := range p.parts {
		p.EightBit = p.EightBit || hasEightBit(part)
	}
	return p, nil
}

var crlf = []byte("\r\n")

// head makes the fields that are added.
func (p *Prepared) head(s *scanner, opt Options) []byte {
	b := make([]byte, 0, 640)
	b = appendReceived(b, opt)
	if s.seen&(1<<fieldDate) == 0 { // RFC 6409 section 8.1
		b = append(b, "Date: "...)
		b = appendDate(b, opt.Now)
		b = append(b, crlf...)
	}
	if s.seen&(1<<fieldMessageID) == 0 { // RFC 6409 section 8.2
		p.IDAdded = true
		p.MessageID = "<" + opt.ID + "@" + opt.Hostname + ">"
		b = append(b, "Message-ID: "...)
		b = append(b, p.MessageID...)
		b = append(b, crlf...)
	}
	return b
}

// Read reads the repaired message.
func (p *Prepared) Read(b []byte) (int, error) {
	n := 0
	for p.part < len(p.parts) && n < len(b) {
		c := copy(b[n:], p.parts[p.part])
		p.tee(b[n : n+c])
		n += c
		if p.parts[p.part] = p.parts[p.part][c:]; len(p.parts[p.part]) == 0 {
			p.part++
		}
	}
	if n > 0 || len(b) == 0 {
		return n, nil
	}
	p.release()
	if p.end != nil {
		return 0, p.end
	}
	n, err := p.src.Read(b)
	p.EightBit = p.EightBit || hasEightBit(b[:n])
	p.tee(b[:n])
	return n, err
}

// tee passes octets of the present part on.
func (p *Prepared) tee(octets []byte) {
	if p.Body != nil && p.part >= len(p.parts)-1 {
		_, _ = p.Body.Write(octets)
	}
	if p.Client != nil && p.part > 0 {
		_, _ = p.Client.Write(octets)
	}
}

// release gives the buffer back once nothing points into it any more.
func (p *Prepared) release() {
	if p.buf != nil {
		buffers.Put(p.buf)
		p.buf = nil
		if p.taken > 0 {
			p.from.Give(p.taken)
		}
	}
}
