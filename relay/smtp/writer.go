package smtp

import (
	"bytes"
	"errors"
	"io"
)

// ErrDataWrite is what a DataWriter answers to octets that no accepted message
// can have. Nothing of that Write went out; the connection must be closed without
// the final dot.
var ErrDataWrite = errors.New("message data has a bare CR, a bare LF or NUL")

// DataWriter writes message data dot-stuffed (RFC 5321 section 4.5.2). The data it
// is given must have CRLF lines; it never lets a bare CR, bare LF or NUL through
// (they are an error, for such data cannot have been accepted). Lines may be cut
// anywhere between one Write and the next. After an error every call fails.
type DataWriter struct {
	w      io.Writer
	within bool // within a line: the next octet does not begin one
	lastCR bool // the last octet was CR
	err    error
}

// NewDataWriter writes to w, which should be buffered.
func NewDataWriter(w io.Writer) *DataWriter { return &DataWriter{w: w} }

var dot = []byte{'.'}

// Write writes p, with a dot before each line that begins with one. The count is
// that of octets of p.
func (d *DataWriter) Write(p []byte) (int, error) {
	if d.err == nil && !cleanData(p, d.lastCR) {
		d.err = ErrDataWrite
	}
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	if !d.within && p[0] == '.' {
		d.write(dot)
	}
	done := 0
	for {
		n := bytes.Index(p[done:], []byte("\n."))
		if n < 0 {
			break
		}
		done += d.write(p[done : done+n+1])
		d.write(dot)
		if d.err != nil {
			return done, d.err
		}
	}
	done += d.write(p[done:])
	last := p[len(p)-1]
	d.within, d.lastCR = last != '\n', last == '\r'
	return done, d.err
}

// EndLine completes an unfinished last line by CRLF, so that only ".CRLF" lacks.
func (d *DataWriter) EndLine() error {
	if d.err == nil && d.lastCR {
		d.err = ErrDataWrite
	}
	if d.err == nil && d.within {
		d.write([]byte("\r\n"))
		d.within = false
	}
	return d.err
}

func (d *DataWriter) write(p []byte) int {
	if d.err != nil {
		return 0
	}
	n, err := d.w.Write(p)
	d.err = err
	return n
}

// cleanData reports that in p every CR is before an LF and every LF behind a CR,
// and that there is no NUL. lastCR says that a CR went before p; a CR at the end of
// p is left for the next to judge.
func cleanData(p []byte, lastCR bool) bool {
	if len(p) == 0 {
		return true
	}
	if lastCR && p[0] != '\n' || bytes.IndexByte(p, 0) >= 0 {
		return false
	}
	pairs := 0 // CRLFs whose CR is in p
	for from := 0; ; {
		lf := bytes.IndexByte(p[from:], '\n')
		if lf < 0 {
			break
		}
		lf += from
		switch {
		case lf > 0 && p[lf-1] == '\r':
			pairs++
		case lf == 0 && lastCR:
		default:
			return false
		}
		from = lf + 1
	}
	if p[len(p)-1] == '\r' {
		pairs++
	}
	return bytes.Count(p, []byte{'\r'}) == pairs
}
