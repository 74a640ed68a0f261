package smtp

import (
	"bytes"
	"errors"
	"io"
	"os"
)

var (
	// ErrDataOctets is the cause of the *Error for message data with a bare CR, a
	// bare LF or NUL.
	ErrDataOctets = errors.New("bare CR, bare LF or NUL in message data")
	// ErrDataLine is the cause of the *Error for message data with a line over
	// MaxTextLine.
	ErrDataLine = errors.New("text line too long")
)

// DataOptions say how message data is read.
type DataOptions struct {
	// NormalizeBareLF takes a bare LF as the end of a text line and returns CRLF for
	// it; it never ends the data. A bare CR is refused all the same: turning one
	// into CRLF would make smuggling of what is none.
	NormalizeBareLF bool
}

// Data returns a reader of the message data that follows now. Its Read gives the
// unstuffed octets and ends with io.EOF after CRLF.CRLF (the CRLF before the dot
// belongs to the data). Bare CR, bare LF, NUL or a line over MaxTextLine do not
// end the data: reading goes on to the true end, what is returned is
// unspecified, and then Read fails with an *Error (554 5.6.0) instead of io.EOF.
// After io.EOF or *Error the Reader is in step; any other error ends the session.
//
// CR CRLF is no end of a line, so CR CRLF.CRLF does not end the data either: a
// client that believes that it did not end there would have the rest of its
// message run as commands. One that believes it did waits in vain; when the
// deadline of the connection passes while the data is already known to be bad,
// Read fails with the *Error too, and the next Line with the deadline.
//
// How much data there may be is for the caller to bound. The reader that is
// returned is good until the next call of Data.
func (r *Reader) Data(opt DataOptions) io.Reader {
	r.grow()
	r.data = dataReader{r: r, opt: opt, open: true, start: lineTrue}
	return &r.data
}

// lineStart says whether the next octet begins a text line.
type lineStart uint8

const (
	lineNone lineStart = iota // within a line
	lineTrue                  // behind CRLF, or the first: a dot may be the end of the data
	lineBare                  // behind a normalised LF: a dot is only stuffing
)

// dataReader is the reader of RFC 5321 section 4.5.2. It looks at whole runs: it
// hops from LF to LF, and finds a bare CR by counting, for there must be as many
// CRs as CRLFs.
type dataReader struct {
	r    *Reader
	opt  DataOptions
	open bool // the end was not reached yet
	err  error

	start  lineStart
	lastCR int  // how many CRs (0, 1, 2 for more) were last consumed
	oweLF  bool // the CR of a normalised LF was given out, its LF was not
	length int  // octets of the current line so far
	cr     int64
	crlf   int64
	bad    bool // bare LF, CR CRLF or NUL
	long   bool
}

func (d *dataReader) Read(p []byte) (int, error) {
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	if d.r.broken != nil {
		return 0, d.r.broken
	}
	for {
		n := d.take(p)
		if n > 0 {
			return n, nil
		}
		if d.err != nil {
			return 0, d.err
		}
		if err := d.r.fill(); err != nil {
			d.err = d.r.fail(err)
			if d.illegal() && errors.Is(err, os.ErrDeadlineExceeded) {
				d.err = illegalData()
			}
			return 0, d.err
		}
	}
}

// take moves what it can from the buffer to p. When it moved nothing, the data
// ended or more octets must come before anything can be told.
func (d *dataReader) take(p []byte) (n int) {
	for n < len(p) {
		if d.oweLF {
			p[n] = '\n'
			n++
			d.oweLF = false
			continue
		}
		window := d.r.buf[d.r.pos:d.r.end]
		if d.start != lineNone {
			switch d.dot(window) {
			case dotUnknown:
				return n
			case dotEnd:
				d.finish()
				return n
			case dotStuffing:
				d.r.pos++
				window = window[1:]
			}
			d.start, d.length = lineNone, 0
		}
		if len(window) == 0 {
			return n
		}
		used, out := d.run(p[n:], window[:min(len(window), len(p)-n)])
		d.r.pos += used
		n += out
	}
	return n
}

// dotKind is what begins a line.
type dotKind uint8

const (
	dotNone dotKind = iota
	dotStuffing
	dotEnd
	dotUnknown // more octets are needed to tell
)

// dot judges the beginning of a line. Only behind CRLF can it be the end.
func (d *dataReader) dot(b []byte) dotKind {
	if len(b) == 0 {
		return dotUnknown
	}
	if b[0] != '.' {
		return dotNone
	}
	if d.start == lineBare {
		return dotStuffing
	}
	if len(b) >= 3 {
		if b[1] == '\r' && b[2] == '\n' {
			return dotEnd
		}
		return dotStuffing
	}
	if len(b) == 1 || b[1] == '\r' {
		return dotUnknown
	}
	return dotStuffing
}

// run copies from window to p as far as octets stay what they are: up to a line
// that begins with a dot, or up to a bare LF that becomes CRLF. len(p) is not less
// than len(window), and window is not empty.
func (d *dataReader) run(p, window []byte) (used, out int) {
	from := 0 // where the current line's part in window begins
	for used == 0 {
		lf := bytes.IndexByte(window[from:], '\n')
		if lf < 0 {
			d.addLength(len(window) - from)
			used = len(window)
			break
		}
		lf += from
		d.addLength(lf + 1 - from)
		switch crs := d.crsBefore(window, lf); {
		case crs == 1:
			d.crlf++
			if lf+1 == len(window) || window[lf+1] == '.' {
				d.start = lineTrue
				used = lf + 1
			} else {
				d.length = 0
			}
		case crs == 0 && d.opt.NormalizeBareLF:
			return d.normalize(p, window[:lf+1])
		default:
			d.bad = true
			d.length = 0
		}
		if from = lf + 1; from == len(window) {
			used = from
		}
	}
	return d.pass(p, window[:used])
}

// normalize copies a part of a line that ends in a bare LF and writes CRLF for it.
func (d *dataReader) normalize(p, line []byte) (used, out int) {
	text := line[:len(line)-1]
	_, out = d.pass(p, text)
	p[out] = '\r'
	out++
	if out < len(p) {
		p[out] = '\n'
		out++
	} else {
		d.oweLF = true
	}
	d.start = lineBare
	return len(line), out
}

// pass copies octets as they are and takes note of those that may be wrong.
func (d *dataReader) pass(p, run []byte) (used, out int) {
	if len(run) == 0 {
		return 0, 0
	}
	d.cr += int64(bytes.Count(run, []byte{'\r'}))
	if bytes.IndexByte(run, 0) >= 0 {
		d.bad = true
	}
	d.lastCR = d.crsBefore(run, len(run))
	return len(run), copy(p, run)
}

// crsBefore returns how many CRs are just before b[n], 2 for more.
func (d *dataReader) crsBefore(b []byte, n int) int {
	switch {
	case n == 0:
		return d.lastCR
	case b[n-1] != '\r':
		return 0
	case n == 1:
		return min(d.lastCR+1, 2)
	case b[n-2] != '\r':
		return 1
	}
	return 2
}

func (d *dataReader) addLength(n int) {
	d.length += n
	if d.length > MaxTextLine {
		d.long = true
	}
}

// finish consumes ".CRLF" and says what the data was.
func (d *dataReader) finish() {
	d.r.pos += 3
	d.open = false
	switch {
	case d.illegal():
		d.err = illegalData()
	case d.long:
		d.err = &Error{Reply: Permanent(554, 6, 0, "Message has a line of more than 65536 octets"), Err: ErrDataLine}
	default:
		d.err = io.EOF
	}
}

// illegal reports a bare CR, a bare LF or NUL in what was consumed. A single CR at
// its end may yet become CRLF.
func (d *dataReader) illegal() bool {
	bare := d.cr - d.crlf
	if d.lastCR == 1 {
		bare--
	}
	return d.bad || bare != 0
}

func illegalData() error {
	return &Error{
		Reply: Permanent(554, 6, 0, "Message has a bare CR, a bare LF or NUL; lines must end with CRLF"),
		Err:   ErrDataOctets,
	}
}
