package smtp

import "io"

// DataWriter writes message data dot-stuffed. The data it is given must have
// CRLF lines; it never lets a bare CR, bare LF or NUL through (they are an error,
// for such data cannot have been accepted).
type DataWriter struct{}

// NewDataWriter writes to w, which should be buffered.
func NewDataWriter(w io.Writer) *DataWriter { panic("not yet") }

func (d *DataWriter) Write(p []byte) (int, error) { panic("not yet") }

// EndLine completes an unfinished last line by CRLF, so that only ".CRLF" lacks.
func (d *DataWriter) EndLine() error { panic("not yet") }
