package smtp

import (
	"io"
	"strings"
	"testing/iotest"
)

// pieces reads s in pieces of n octets.
type pieces struct {
	s string
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.s == "" {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.s)
	p.s = p.s[n:]
	return n, nil
}

// ways are the ways in which a peer's octets may arrive.
func ways(s string) map[string]io.Reader {
	return map[string]io.Reader{
		"whole":        strings.NewReader(s),
		"octets":       iotest.OneByteReader(strings.NewReader(s)),
		"threes":       &pieces{s, 3},
		"data and EOF": iotest.DataErrReader(strings.NewReader(s)),
	}
}
