package smtp

import "io"

// Limits of lines, in octets, CRLF included.
const (
	MaxCommandLine = 2048     // commands with ESMTP parameters
	MaxAuthLine    = 12288    // AUTH and its continuation (RFC 4954 section 4)
	MaxTextLine    = 64 << 10 // text line in message data; RFC 5321 asks for 1,000
)

// Reader reads command lines and message data of one connection. When the
// connection changes under it (STARTTLS) a new Reader is made.
type Reader struct{}

// NewReader returns a Reader with its own bounded buffer.
func NewReader(r io.Reader) *Reader { panic("not yet") }

// Line reads one line ended by CRLF and returns it without the CRLF; the slice
// is good until the next call. limit is in octets with CRLF. A line that is too
// long or that holds a bare CR, a bare LF or NUL is consumed up to its true end
// (within a bound) and reported as an *Error, after which the reader is in step; any
// other error (io.EOF, timeout, a line beyond all bounds) ends the session.
func (r *Reader) Line(limit int) ([]byte, error) { panic("not yet") }

// Buffered returns how many octets were received and not yet consumed.
func (r *Reader) Buffered() int { panic("not yet") }

// DataOptions say how message data is read.
type DataOptions struct {
	NormalizeBareLF bool // take a bare LF as the end of a text line, never of the data
}

// Data returns a reader of the message data that follows now. Its Read gives the
// unstuffed octets and ends with io.EOF after CRLF.CRLF (the CRLF before the dot
// belongs to the data). Bare CR, bare LF, NUL or a line over MaxTextLine do not
// end the data: reading goes on to the true end, what is returned is
// unspecified, and then Read fails with an *Error (554 5.6.0) instead of io.EOF.
// After io.EOF or *Error the Reader is in step; any other error ends the session.
func (r *Reader) Data(opt DataOptions) io.Reader { panic("not yet") }
