package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/textproto"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// written returns what goes on the wire for data that is written in pieces of n
// octets, with the final dot.
func written(data []byte, n int) ([]byte, error) {
	var wire bytes.Buffer
	d := NewDataWriter(&wire)
	for rest := data; len(rest) > 0; {
		piece := rest[:min(n, len(rest))]
		m, err := d.Write(piece)
		if err != nil {
			return wire.Bytes(), err
		}
		rest = rest[m:]
	}
	if err := d.EndLine(); err != nil {
		return wire.Bytes(), err
	}
	return append(wire.Bytes(), ".\r\n"...), nil
}

// lenient parses wire as a server does for which each of ends ends the data, and
// returns the data and what it takes for commands. before is applied to the octets
// first.
func lenient(wire []byte, before func([]byte) []byte, eol func([]byte) int) (data, commands []byte) {
	wire = before(wire)
	start := true
	for len(wire) > 0 {
		if start && wire[0] == '.' {
			if n := eol(wire[1:]); n > 0 {
				return data, wire[1+n:]
			}
			wire = wire[1:]
		}
		start = false
		if n := eol(wire); n > 0 {
			data = append(data, "\r\n"...)
			wire = wire[n:]
			start = true
			continue
		}
		data = append(data, wire[0])
		wire = wire[1:]
	}
	return data, []byte("(no end)")
}

func asItIs(b []byte) []byte { return b }

// eol makes a function that says how long the line end at the beginning of b is.
func eol(ends ...string) func([]byte) int {
	return func(b []byte) int {
		for _, end := range ends {
			if bytes.HasPrefix(b, []byte(end)) {
				return len(end)
			}
		}
		return 0
	}
}

// peers are the five kinds of readers of test A2.
var peers = map[string]func(wire []byte) (data, commands []byte){
	"strict": func(wire []byte) ([]byte, []byte) { return lenient(wire, asItIs, eol("\r\n")) },
	"LF-lenient": func(wire []byte) ([]byte, []byte) {
		br := bufio.NewReader(bytes.NewReader(wire))
		data, err := io.ReadAll(textproto.NewReader(br).DotReader())
		if err != nil {
			return nil, []byte("(no end)")
		}
		rest, _ := io.ReadAll(br)
		return bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")), rest
	},
	"CR-lenient": func(wire []byte) ([]byte, []byte) { return lenient(wire, asItIs, eol("\r\n", "\r")) },
	"CRCRLF-collapsing": func(wire []byte) ([]byte, []byte) {
		collapse := func(b []byte) []byte {
			for bytes.Contains(b, []byte("\r\r")) {
				b = bytes.ReplaceAll(b, []byte("\r\r"), []byte("\r"))
			}
			return b
		}
		return lenient(wire, collapse, eol("\r\n", "\n"))
	},
	"NUL-stripping": func(wire []byte) ([]byte, []byte) {
		strip := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte{0}, nil) }
		return lenient(wire, strip, eol("\r\n", "\n", "\r"))
	},
}

// fataler is testing.TB and rapid.T alike.
type fataler interface {
	Fatalf(format string, args ...any)
}

// checkOneMessage writes data and wants every kind of reader to see exactly it.
func checkOneMessage(t fataler, data []byte) {
	wire, err := written(data, len(data)+1)
	if err != nil {
		t.Fatalf("%q is refused: %v", data, err)
		return
	}
	want := data
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\r\n")) {
		want = append(bytes.Clone(data), "\r\n"...)
	}
	for name, read := range peers {
		got, commands := read(append(bytes.Clone(wire), "NOOP\r\n"...))
		if !bytes.Equal(got, want) || string(commands) != "NOOP\r\n" {
			t.Fatalf("%s: %q became %q and the commands %q", name, data, got, commands)
		}
	}
}

// The readers of A2 must be as bad as they are meant to be, or the test shows nothing.
func TestA2PeersAreLenient(t *testing.T) {
	t.Parallel()
	for name, payload := range map[string]string{
		"LF-lenient":        "a\n.\nMAIL",
		"CR-lenient":        "a\r.\rMAIL",
		"CRCRLF-collapsing": "a\r\r\n.\r\r\nMAIL",
		"NUL-stripping":     "a\r\n\x00.\x00\r\nMAIL",
	} {
		if _, commands := peers[name]([]byte(payload)); string(commands) != "MAIL" {
			t.Errorf("%s does not fall for %q: %q", name, payload, commands)
		}
		if _, commands := peers["strict"]([]byte(payload)); string(commands) != "(no end)" {
			t.Errorf("strict falls for %q", payload)
		}
	}
}

// dataPieces are what data is made of where readers differ.
var dataPieces = append([]string{
	"\r\n", "\r\n", "\r\n", ".", "..", "a", "text", "\xc3\xa9", "\x85", "\t", " ", "\v", "QUIT\r\n", ".\r\n", "\r", "\n", "\x00",
}, smuggling...)

// Whatever the writer accepts is one message for every reader; what it does not
// accept has a bare CR, a bare LF or NUL, and of that nothing went out.
func TestA2OneMessageForEveryReader(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		data := []byte(strings.Join(rapid.SliceOf(rapid.SampledFrom(dataPieces)).Draw(t, "data"), ""))
		piece := rapid.IntRange(1, 9).Draw(t, "piece")
		wire, err := written(data, piece)
		if illegal(bytes.TrimSuffix(wire, []byte{'\r'})) {
			t.Fatalf("%q went out for %q", wire, data)
		}
		if bad := illegal(data); bad != (err != nil) {
			t.Fatalf("%q in pieces of %d: %v", data, piece, err)
		}
		if err != nil {
			return
		}
		whole, err := written(data, len(data)+1)
		if err != nil || !bytes.Equal(whole, wire) {
			t.Fatalf("in pieces of %d %q, whole %q, %v", piece, wire, whole, err)
		}
		checkOneMessage(t, data)
	})
}

// illegal reports a bare CR, bare LF or NUL. A CR at the very end of what went out
// before an error is none yet: the connection closes behind it.
func illegal(b []byte) bool {
	return bytes.ContainsAny(bytes.ReplaceAll(b, []byte("\r\n"), nil), "\r\n\x00")
}

func TestA2Smuggling(t *testing.T) {
	t.Parallel()
	for _, p := range smuggling {
		for _, data := range []string{p, "a" + p + "b\r\n", "a\r\n" + p, "a" + p} {
			for n := 1; n <= len(data); n++ {
				_, err := written([]byte(data), n)
				if illegal([]byte(data)) != (err != nil) || err != nil && !errors.Is(err, ErrDataWrite) {
					t.Errorf("%q in pieces of %d: %v", data, n, err)
				}
			}
			if !illegal([]byte(data)) {
				checkOneMessage(t, []byte(data))
			}
		}
	}
}

func TestDataWriter(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		"":                   ".\r\n",
		"a":                  "a\r\n.\r\n",
		"a\r\n":              "a\r\n.\r\n",
		".":                  "..\r\n.\r\n",
		".\r\n":              "..\r\n.\r\n",
		"\r\n.\r\n..\r\n":    "\r\n..\r\n...\r\n.\r\n",
		"a.\r\n.b":           "a.\r\n..b\r\n.\r\n",
		".\r\n.\r\n.\r\nx\r": "!",
		"a\nb":               "!",
		"\n":                 "!",
		"a\x00":              "!",
	} {
		for n := 1; n <= len(data)+1; n++ {
			wire, err := written([]byte(data), n)
			if want == "!" {
				if !errors.Is(err, ErrDataWrite) {
					t.Errorf("%q in pieces of %d: %q, %v", data, n, wire, err)
				}
			} else if err != nil || string(wire) != want {
				t.Errorf("%q in pieces of %d: %q, %v; want %q", data, n, wire, err, want)
			}
		}
	}
}

func TestDataWriterErrorsStay(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	d := NewDataWriter(&wire)
	if _, err := d.Write([]byte("a\r\nb\nc")); err != ErrDataWrite {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte("good\r\n")); err != ErrDataWrite {
		t.Errorf("the next Write: %v", err)
	}
	if err := d.EndLine(); err != ErrDataWrite {
		t.Errorf("EndLine: %v", err)
	}
	if wire.Len() != 0 {
		t.Errorf("%q went out", wire.String())
	}
}

// short takes n octets and then fails.
type short struct{ n int }

func (s *short) Write(p []byte) (int, error) {
	if len(p) > s.n {
		n := s.n
		s.n = 0
		return n, io.ErrClosedPipe
	}
	s.n -= len(p)
	return len(p), nil
}

func TestDataWriterCountsItsOwnOctets(t *testing.T) {
	t.Parallel()
	// On the wire this is "a CRLF .. b CRLF": the added dot is not counted.
	const data = "a\r\n.b\r\n"
	for room, want := range []int{0, 1, 2, 3, 3, 4, 5, 6, 7} {
		n, err := NewDataWriter(&short{room}).Write([]byte(data))
		if n != want || (err != nil) != (room < 8) {
			t.Errorf("room for %d: %d, %v; want %d", room, n, err, want)
		}
	}
}

func FuzzDataWriter(f *testing.F) {
	for _, p := range smuggling {
		f.Add([]byte("a"+p+"b"), byte(1))
	}
	f.Add([]byte("..\r\n.a\r\n.\r\n"), byte(2))
	f.Fuzz(func(t *testing.T, data []byte, step byte) {
		wire, err := written(data, int(step)+1)
		if illegal(bytes.TrimSuffix(wire, []byte{'\r'})) {
			t.Fatalf("%q went out for %q", wire, data)
		}
		if illegal(data) != (err != nil) {
			t.Fatalf("%q: %v", data, err)
		}
		if err == nil {
			checkOneMessage(t, data)
		}
	})
}
