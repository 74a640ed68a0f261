package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
)

// BodyHash is the SHA-256 of a message's body, which is written to it, in relaxed
// canonicalization (RFC 6376 section 3.4.4): what is behind the empty line that ends the header
// section. Lines end in CRLF. It holds a fixed amount of memory; Write never fails.
type BodyHash struct {
	hash   hash.Hash
	out    []byte // canonical octets that are not hashed yet
	breaks int    // ends of lines that count only if something follows
	space  bool   // white space that counts only if something follows in its line
	cr     bool   // the last octet was a CR
	filled bool   // the body has more than empty lines
}

// blockSize is how many octets are hashed together: many small ones would take as long as the hash.
const blockSize = 2048

// NewBodyHash is that of an empty body.
func NewBodyHash() *BodyHash {
	return &BodyHash{hash: sha256.New(), out: make([]byte, 0, blockSize)}
}

func (h *BodyHash) Write(p []byte) (int, error) {
	for i := 0; i < len(p); {
		switch c := p[i]; {
		case c == '\n' && h.cr:
			h.cr, h.space = false, false
			h.breaks++
			i++
		case h.cr: // a CR alone, which is an octet like others
			h.cr = false
			h.put([]byte{'\r'})
		case c == '\r':
			h.cr = true
			i++
		case isSpace(c):
			h.space = true
			i++
		default:
			n := canonical(p[i:])
			h.put(p[i : i+n])
			i += n
		}
	}
	return len(p), nil
}

// canonical returns how many octets at the beginning of p, whose first is neither white space nor a
// CR, canonicalization leaves as they are: most of a text, which is hashed without being looked at
// again. A space or an end of line is among them if what follows is there and begins a word.
func canonical(p []byte) (n int) {
	for n < len(p) {
		switch c := p[n]; {
		case c > ' ':
			n++
		case c == ' ':
			if n+1 >= len(p) || p[n+1] <= ' ' {
				return n
			}
			n += 2
		case c == '\r':
			if n+2 >= len(p) || p[n+1] != '\n' || p[n+2] <= ' ' {
				return n
			}
			n += 3
		case c == '\t':
			return n
		default:
			n++
		}
	}
	return n
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// put adds octets, and what waited for some to follow.
func (h *BodyHash) put(octets []byte) {
	for ; h.breaks > 0; h.breaks-- {
		h.append(crlf)
	}
	if h.space {
		h.append([]byte{' '})
		h.space = false
	}
	h.append(octets)
	h.filled = true
}

var crlf = []byte("\r\n")

func (h *BodyHash) append(octets []byte) {
	if len(h.out)+len(octets) > blockSize {
		h.hash.Write(h.out)
		h.out = h.out[:0]
		if len(octets) > blockSize/2 {
			h.hash.Write(octets)
			return
		}
	}
	h.out = append(h.out, octets...)
}

// Sum ends the body and returns its hash, of sha256.Size octets. Nothing may be written after it.
func (h *BodyHash) Sum() []byte {
	if h.cr {
		h.cr = false
		h.put([]byte{'\r'})
	}
	if h.filled {
		h.append(crlf) // of the last line, whether or not it had one
	}
	h.hash.Write(h.out)
	return h.hash.Sum(nil)
}

// HashOf is the hash of a message's body if a key may sign for its author's domain, else nil.
func HashOf(keys Keys, author string, message []byte) []byte {
	if Find(keys, author) == nil {
		return nil
	}
	_, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
	h := NewBodyHash()
	_, _ = h.Write(body)
	return h.Sum()
}
