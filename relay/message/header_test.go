package message

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

// Header gives the section as it is stored, and whose the message is.
func TestHeader(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, header, from string }{
		{"From: a@b.test\n\nbody\n", "From: a@b.test\n", "a@b.test"},
		{"Subject: x\nFrom: A <a@b.test>,\n c@d.test\nTo: e@f.test\n\n\nbody\n", "Subject: x\nFrom: A <a@b.test>,\n c@d.test\nTo: e@f.test\n", "a@b.test"},
		{"from: a@B\u00fccher.test\n", "from: a@B\u00fccher.test\n", "a@xn--bcher-kva.test"},
		{"From: a@b.test\n \n\nbody\n", "From: a@b.test\n \n", "a@b.test"},
		{"Subject: x\n\nFrom: a@b.test\n", "Subject: x\n", ""},
		{"From: nobody\n\n", "From: nobody\n", ""},
		{"From: undisclosed:;\n\n", "From: undisclosed:;\n", ""},
		{"\nbody\n", "", ""},
		{"", "", ""},
		{strings.Repeat("X-Long: "+strings.Repeat("x", 900)+"\n", 300) + "From: a@b.test\n\n" + strings.Repeat("y\n", 10_000),
			strings.Repeat("X-Long: "+strings.Repeat("x", 900)+"\n", 300) + "From: a@b.test\n", "a@b.test"},
	} {
		header, from, err := Header(iotest.HalfReader(strings.NewReader(lines(tc.in))))
		if err != nil || string(header) != lines(tc.header) || from.String() != tc.from {
			t.Errorf("%.60q: %d octets, from %q, %v; want %d, %q", tc.in, len(header), from, err, len(lines(tc.header)), tc.from)
		}
	}
	broken := errors.New("broken")
	if _, _, err := Header(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("%v, want the reader's error", err)
	}
}
