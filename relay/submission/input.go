package submission

import (
	"errors"
	"io"

	"postern/relay/smtp"
)

// errTooLarge refuses a message over the limit of its size (RFC 1870 section 6).
var errTooLarge = &smtp.Error{Reply: smtp.Permanent(552, 3, 4, "Message is larger than the size that is allowed")}

// maxSkip is how much of a message beyond the allowed size is read only to stay in step. A
// client that sends more is cut off.
const maxSkip = 16 << 20

// input is the data of one message, counted against the size allowed. It remembers how the
// data ended, whatever its readers did with it.
type input struct {
	r    io.Reader
	max  int64
	read int64
	err  error // how the data ended: io.EOF, an *smtp.Error of the reader, or the connection's
	gone bool  // skipping was given up
}

// Read fails with errTooLarge at the first octet over the limit.
func (in *input) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.r.Read(p)
	in.read += int64(n)
	in.err = err
	if in.read > in.max && (err == nil || err == io.EOF) {
		return 0, errTooLarge
	}
	return n, err
}

// skip reads to the end of the data, within bounds.
func (in *input) skip() {
	var sink [8 << 10]byte
	for in.err == nil {
		if in.read > in.max+maxSkip {
			in.err, in.gone = errTooLarge, true
			return
		}
		n, err := in.r.Read(sink[:])
		in.read += int64(n)
		in.err = err
	}
}

// lost reports that the end of the data was not reached, so that what comes next
// on the connection is not a command.
func (in *input) lost() bool {
	var refusal *smtp.Error
	return in.gone || in.err != io.EOF && !errors.As(in.err, &refusal)
}
