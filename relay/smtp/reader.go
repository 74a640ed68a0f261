package smtp

import (
	"bytes"
	"errors"
	"io"
)

// Limits of lines, in octets, CRLF included.
const (
	MaxCommandLine = 2048     // commands with ESMTP parameters
	MaxAuthLine    = 12288    // AUTH and its continuation (RFC 4954 section 4)
	MaxTextLine    = 64 << 10 // text line in message data; RFC 5321 asks for 1,000
)

const (
	smallBuffer = 4 << 10  // what an idle session costs
	largeBuffer = 16 << 10 // one TLS record, and more than any line that is kept
	maxDiscard  = 1 << 20  // how much of one overlong line is read only to stay in step
)

var (
	// ErrLineTooLong is the cause of the *Error for a line over its limit.
	ErrLineTooLong = errors.New("line too long")
	// ErrLineOctets is the cause of the *Error for a line with a bare CR, a bare LF
	// or NUL.
	ErrLineOctets = errors.New("bare CR, bare LF or NUL in a line")
	// ErrLineEndless is a line so long that its end was not waited for. The session
	// ends.
	ErrLineEndless = errors.New("line without an end")
	// ErrDataUnread is a Line asked for while message data is being read: what comes
	// is the body of a message and never a command. The session ends.
	ErrDataUnread = errors.New("message data was not read to its end")
)

// Reader reads command lines and message data of one connection. When the
// connection changes under it (STARTTLS) a new Reader is made.
//
// It is safe for one goroutine. An error inside message data or while an overlong
// line is skipped stays: every later call returns it, so that the rest of a body
// can never be taken for commands. A Line that failed by a deadline otherwise may
// be called again and goes on where it was.
type Reader struct {
	src    io.Reader
	buf    []byte
	pos    int // buf[pos:end] is received and not consumed
	end    int
	broken error
	data   dataReader
}

// NewReader returns a Reader with its own bounded buffer.
func NewReader(r io.Reader) *Reader {
	return &Reader{src: r, buf: make([]byte, smallBuffer)}
}

// Line reads one line ended by CRLF and returns it without the CRLF; the slice
// is good until the next call. limit is in octets with CRLF, at most 16 KiB. A
// line that is too long (ErrLineTooLong) or that holds a bare CR, a bare LF or NUL
// (ErrLineOctets) is consumed up to its true end and reported as an *Error, after
// which the reader is in step. Any other error ends the session: io.EOF between
// lines, io.ErrUnexpectedEOF within one, ErrLineEndless for a line over 1 MiB, or
// that of the connection.
func (r *Reader) Line(limit int) ([]byte, error) {
	line, err := r.line(min(limit, largeBuffer))
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, '\n') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return nil, &Error{
			Reply: Permanent(500, 5, 2, "Line has a bare CR, a bare LF or NUL"),
			Err:   ErrLineOctets,
		}
	}
	return line, nil
}

// line reads up to CRLF and returns what is before it, whatever octets that has.
func (r *Reader) line(limit int) ([]byte, error) {
	if err := r.usable(); err != nil {
		return nil, err
	}
	for scanned := 0; ; {
		window := r.buf[r.pos:r.end]
		if n := indexCRLF(window, scanned); n >= 0 {
			r.pos += n + 2
			if n+2 > limit {
				return nil, lineTooLong()
			}
			return window[:n], nil
		}
		if len(window) >= limit {
			return nil, r.discardLine()
		}
		scanned = len(window)
		if err := r.fill(); err != nil {
			if err == io.EOF && len(window) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// indexCRLF returns where CRLF begins in b, or -1. The first scanned octets are
// known to hold no whole CRLF.
func indexCRLF(b []byte, scanned int) int {
	for from := scanned; ; {
		n := bytes.IndexByte(b[from:], '\n')
		if n < 0 {
			return -1
		}
		n += from
		if n > 0 && b[n-1] == '\r' {
			return n - 1
		}
		from = n + 1
	}
}

// discardLine consumes the rest of an overlong line, of which the buffer holds a
// part without CRLF.
func (r *Reader) discardLine() error {
	dropped := 0
	for dropped < maxDiscard {
		window := r.buf[r.pos:r.end]
		if n := indexCRLF(window, 0); n >= 0 {
			r.pos += n + 2
			return lineTooLong()
		}
		keep := 0 // a CR at the end may be the first half of CRLF
		if len(window) > 0 && window[len(window)-1] == '\r' {
			keep = 1
		}
		dropped += len(window) - keep
		r.pos = r.end - keep
		if err := r.fill(); err != nil {
			return r.fail(err)
		}
	}
	return r.fail(ErrLineEndless)
}

func lineTooLong() error {
	return &Error{Reply: Permanent(500, 5, 2, "Line too long"), Err: ErrLineTooLong}
}

// Buffered returns how many octets were received and not yet consumed.
func (r *Reader) Buffered() int { return r.end - r.pos }

// usable reports why no line may be read.
func (r *Reader) usable() error {
	if r.broken == nil && r.data.open {
		r.broken = ErrDataUnread
	}
	return r.broken
}

// fail makes err stay. An end of input where more had to come is never io.EOF.
func (r *Reader) fail(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.broken = err
	return err
}

// fill reads once more from the connection behind what the buffer holds, making
// room before. The buffer is never full of unconsumed octets at its largest size:
// its users consume or discard before.
func (r *Reader) fill() error {
	switch {
	case r.pos == r.end:
		r.pos, r.end = 0, 0
	case r.end == len(r.buf) && r.pos > 0:
		r.end = copy(r.buf, r.buf[r.pos:r.end])
		r.pos = 0
	case r.end == len(r.buf):
		r.grow()
	}
	for range 100 {
		n, err := r.src.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			return nil // an error that came with octets comes again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// grow replaces the small buffer by the large one.
func (r *Reader) grow() {
	if len(r.buf) >= largeBuffer {
		return
	}
	buf := make([]byte, largeBuffer)
	r.end = copy(buf, r.buf[r.pos:r.end])
	r.pos = 0
	r.buf = buf
}
