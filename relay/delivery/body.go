package delivery

import (
	"io"
	"sync/atomic"

	surgery "postern/relay/message"
	"postern/relay/queue/content"
)

// bodyReader reads the stored text once, as edited, and notes that it was begun and what went
// wrong.
type bodyReader struct {
	from  content.Body
	off   int64
	size  int64          // of the stored text
	edits []surgery.Edit // those that lie ahead
	put   int            // octets of the first one's text that were read
	begun *atomic.Bool
	err   error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	b.begun.Store(true)
	until := b.size
	for len(b.edits) > 0 {
		next := b.edits[0]
		if until = next.At; b.off < until {
			break
		}
		if b.put < len(next.Put) {
			n := copy(p, next.Put[b.put:])
			b.put += n
			return n, nil
		}
		b.off, b.put, b.edits, until = next.At+next.Cut, 0, b.edits[1:], b.size
	}
	if b.off >= b.size {
		return 0, io.EOF
	}
	if int64(len(p)) > until-b.off {
		p = p[:until-b.off]
	}
	n, err := b.from.ReadAt(p, b.off)
	b.off += int64(n)
	if n == len(p) || err == nil && n > 0 {
		return n, nil // ReadAt may say EOF together with the last octet
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // less is stored than was accepted: never send a part as if it were the whole
	}
	b.err = err
	return n, err
}
