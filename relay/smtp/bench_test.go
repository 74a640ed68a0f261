package smtp

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// around repeats s for ever.
type around struct {
	s  string
	at int
}

func (a *around) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], a.s[a.at:])
		a.at = (a.at + m) % len(a.s)
		n += m
	}
	return n, nil
}

// benchText is message data of about the given size with lines of 76 octets, as
// MIME has them, and here and there a line that begins with a dot.
func benchText(size int) string {
	line := strings.Repeat("bGluZQ==", 9) + "text\r\n"
	block := strings.Repeat(line, 20) + ".dot\r\n"
	return strings.Repeat(block, size/len(block)+1)
}

func BenchmarkLine(b *testing.B) {
	r := NewReader(&around{s: "MAIL FROM:<alice@example.com> SIZE=5120 BODY=8BITMIME\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Line(MaxCommandLine); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDataReader(b *testing.B) {
	for name, opt := range map[string]DataOptions{"strict": {}, "normalize": {NormalizeBareLF: true}} {
		b.Run(name, func(b *testing.B) {
			wire, err := written([]byte(benchText(64<<10)), 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			r := NewReader(&around{s: string(wire)})
			p := make([]byte, 32<<10)
			b.SetBytes(int64(len(wire)))
			b.ReportAllocs()
			for b.Loop() {
				d := r.Data(opt)
				for {
					if _, err := d.Read(p); err == io.EOF {
						break
					} else if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkDataWriter(b *testing.B) {
	data := []byte(benchText(64 << 10))
	d := NewDataWriter(io.Discard)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Write(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseRcpt(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRcpt("TO:<bob@example.net>", false); err != nil {
			b.Fatal(err)
		}
	}
}

// The happy path must not allocate: it is run for every line and every body.
func TestNoAllocations(t *testing.T) {
	text := benchText(20 << 10)
	wire, err := written([]byte(text), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(&around{s: string(wire) + "RSET\r\n"})
	var out bytes.Buffer
	out.Grow(2 * len(text))
	p := make([]byte, 8<<10)
	w := NewDataWriter(&out)
	round := func() {
		d := r.Data(DataOptions{})
		out.Reset()
		for err = nil; err == nil; {
			var n int
			n, err = d.Read(p)
			if _, werr := w.Write(p[:n]); werr != nil {
				t.Fatal(werr)
			}
		}
		if err != io.EOF {
			t.Fatal(err)
		}
		if _, err = r.Line(MaxCommandLine); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(50, round); n != 0 {
		t.Errorf("%v allocations for a message and a command", n)
	}
}
