package smtp

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// smuggling are the sequences of test A1: what some server or other has taken for
// the end of the data, and is none.
var smuggling = []string{
	"\n.\n", "\r.\r", "\r.\n", "\n.\r", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n\x00.\r\n", "\r\n.\x00\r\n",
	"\r\n.\r\r\n", "\r\r\n.\r\r\n", "\r\r\n.\r\n", "\r\n. \r\n", "\r\n.\t\r\n",
	"\v.\v", "\f.\f", "\x85.\x85",
	// As the first octets, behind the CRLF of DATA.
	".\r", ".\n", ".\x00\r\n", ".\r\r\n", ". \r\n",
}

const smuggled = "MAIL FROM:<e@a>\r\nRCPT TO:<v@b>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"

// readData reads message data and the command behind it.
func readData(src io.Reader, opt DataOptions) (body []byte, next string, err error) {
	r := NewReader(src)
	body, err = io.ReadAll(r.Data(opt))
	line, lineErr := r.Line(MaxCommandLine)
	if lineErr != nil {
		return body, "(" + lineErr.Error() + ")", err
	}
	return body, string(line), err
}

// referenceData is the reader of RFC 5321 section 4.5.2 octet by octet and without
// any cleverness. ok is false for data that must be refused.
func referenceData(in []byte, normalize bool) (body []byte, ok bool, rest []byte, ended bool) {
	ok = true
	trueStart, anyStart, length := true, true, 0
	for i := 0; i < len(in); {
		if trueStart && bytes.HasPrefix(in[i:], []byte(".\r\n")) {
			return body, ok, in[i+3:], true
		}
		if anyStart && in[i] == '.' {
			trueStart, anyStart = false, false
			i++
			continue
		}
		trueStart, anyStart = false, false
		length++
		switch {
		case bytes.HasPrefix(in[i:], []byte("\r\n")) && (i == 0 || in[i-1] != '\r'):
			if length+1 > MaxTextLine {
				ok = false
			}
			body = append(body, "\r\n"...)
			trueStart, anyStart, length = true, true, 0
			i++
		case in[i] == '\n' && normalize && (i == 0 || in[i-1] != '\r'):
			body = append(body, "\r\n"...)
			anyStart, length = true, 0
		case in[i] == '\r' || in[i] == '\n' || in[i] == 0:
			ok = false
			if in[i] == '\n' {
				length = 0
			}
		default:
			body = append(body, in[i])
		}
		if length > MaxTextLine {
			ok = false
		}
		i++
	}
	return body, ok, nil, false
}

func TestA1SmugglingStrict(t *testing.T) {
	t.Parallel()
	for _, p := range smuggling {
		for where, in := range map[string]string{
			"mid-body":       "Subject: s\r\n\r\nbody" + p + smuggled,
			"first":          p + smuggled,
			"behind headers": "Subject: s\r\n" + p + smuggled,
			"last":           "Subject: s\r\n\r\nbody" + p + "\r\n.\r\n",
			"twice":          "body" + p + p + smuggled,
		} {
			in += "NOOP\r\n"
			_, ok, rest, ended := referenceData([]byte(in), false)
			wantNext, _, _ := strings.Cut(string(rest), "\r\n")
			for way, src := range ways(in) {
				_, next, err := readData(src, DataOptions{})
				if !ended { // a CR just before CRLF.CRLF
					if err != io.ErrUnexpectedEOF {
						t.Errorf("%q %s (%s): %v; want no end", p, where, way, err)
					}
					continue
				}
				var e *Error
				refused := errors.As(err, &e) && e.Reply.Code == 554 && e.Reply.Enhanced == EnhancedCode{5, 6, 0}
				if refused == ok || !refused && err != nil {
					t.Errorf("%q %s (%s): %v; legal is %v", p, where, way, err, ok)
				}
				if next != wantNext {
					t.Errorf("%q %s (%s): the next command is %q, not %q", p, where, way, next, wantNext)
				}
			}
		}
	}
}

// None of the payloads may end the data where it stands, and every one with a bare
// CR, a bare LF or NUL is refused.
func TestA1SmugglingVerdicts(t *testing.T) {
	t.Parallel()
	for _, p := range smuggling {
		in := "Subject: s\r\n\r\nbody" + p + smuggled + "NOOP\r\n"
		_, next, err := readData(strings.NewReader(in), DataOptions{})
		if next != "NOOP" {
			t.Errorf("%q: the next command is %q", p, next)
		}
		stripped := strings.ReplaceAll(p, "\r\n", "")
		if illegal := strings.ContainsAny(stripped, "\r\n\x00"); illegal != (err != nil) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestA1SmugglingSplitAtEveryOctet(t *testing.T) {
	t.Parallel()
	for _, p := range smuggling {
		for _, normalize := range []bool{false, true} {
			in := "Subject: s\r\n\r\nbody" + p + smuggled + "NOOP\r\n"
			opt := DataOptions{NormalizeBareLF: normalize}
			wantBody, wantNext, wantErr := readData(strings.NewReader(in), opt)
			for cut := 1; cut < len(in); cut++ {
				src := io.MultiReader(strings.NewReader(in[:cut]), strings.NewReader(in[cut:]))
				body, next, err := readData(src, opt)
				if next != wantNext || (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(body, wantBody) {
					t.Fatalf("%q cut at %d: %q, %v, then %q", p, cut, body, err, next)
				}
			}
		}
	}
}

// With NormalizeBareLF a bare LF ends a line and never the data, and what is given
// out is one message for every reader once it is stuffed again.
func TestA1SmugglingNormalized(t *testing.T) {
	t.Parallel()
	for _, p := range smuggling {
		in := "body" + p + smuggled + "NOOP\r\n"
		want, ok, rest, _ := referenceData([]byte(in), true)
		wantNext, _, _ := strings.Cut(string(rest), "\r\n")
		for way, src := range ways(in) {
			body, next, err := readData(src, DataOptions{NormalizeBareLF: true})
			if (err == nil) != ok || next != wantNext || ok && !bytes.Equal(body, want) {
				t.Errorf("%q (%s): %q, %v, then %q; want %q, %v, %q", p, way, body, err, next, want, ok, wantNext)
			}
			if err == nil {
				checkOneMessage(t, body)
			}
		}
	}
}

func TestData(t *testing.T) {
	t.Parallel()
	lf := DataOptions{NormalizeBareLF: true}
	long := strings.Repeat("x", MaxTextLine-2)
	tests := []struct {
		name, in, want string
		opt            DataOptions
	}{
		{"empty", ".\r\n", "", DataOptions{}},
		{"an empty line", "\r\n.\r\n", "\r\n", DataOptions{}},
		{"a line", "a\r\n.\r\n", "a\r\n", DataOptions{}},
		{"stuffed", "..\r\n..a\r\n...\r\n.\r\n", ".\r\n.a\r\n..\r\n", DataOptions{}},
		{"stuffed without need", ".a\r\n.\r\n", "a\r\n", DataOptions{}},
		{"dots within", "a.\r\nb..c\r\n.\r\n", "a.\r\nb..c\r\n", DataOptions{}},
		{"the longest line", long + "\r\n.\r\n", long + "\r\n", DataOptions{}},
		{"8-bit", "\xff\xfe\x85\r\n.\r\n", "\xff\xfe\x85\r\n", DataOptions{}},
		{"LF for CRLF", "a\nb\r\nc\n\r\n.\r\n", "a\r\nb\r\nc\r\n\r\n", lf},
		{"LF first", "\n\n.\n\r\n.\r\n", "\r\n\r\n\r\n\r\n", lf},
		{"LF and stuffing", "a\n..b\n.\r\n.\r\n", "a\r\n.b\r\n\r\n", lf},
		{"LF.CRLF", "a\n.\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", lf},
		{"CRLF.LF", "a\r\n.\nb\r\n.\r\n", "a\r\n\r\nb\r\n", lf},
	}
	for _, tt := range tests {
		for way, src := range ways(tt.in + "NOOP\r\n") {
			body, next, err := readData(src, tt.opt)
			if err != nil || string(body) != tt.want || next != "NOOP" {
				t.Errorf("%s (%s): %.60q, %v, then %q; want %.60q", tt.name, way, body, err, next, tt.want)
			}
		}
	}
}

// A reader that asks for few octets at a time must see the same.
func TestDataInSmallReads(t *testing.T) {
	t.Parallel()
	const in = "a\nb\r\n..c\r\n\n.d\r\n.\r\nNOOP\r\n"
	const want = "a\r\nb\r\n.c\r\n\r\nd\r\n"
	for size := 1; size < len(in); size++ {
		r := NewReader(strings.NewReader(in))
		d := r.Data(DataOptions{NormalizeBareLF: true})
		var body []byte
		p := make([]byte, size)
		for {
			n, err := d.Read(p)
			body = append(body, p[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil || n == 0 {
				t.Fatalf("reads of %d: %d, %v", size, n, err)
			}
		}
		if string(body) != want {
			t.Errorf("reads of %d: %q", size, body)
		}
		if line, err := r.Line(100); string(line) != "NOOP" {
			t.Errorf("reads of %d: then %q, %v", size, line, err)
		}
	}
}

func TestDataCutOff(t *testing.T) {
	t.Parallel()
	const in = "Subject: s\r\n\r\nbody\r\n.\r\n"
	for n := range len(in) {
		_, next, err := readData(strings.NewReader(in[:n]), DataOptions{})
		if err != io.ErrUnexpectedEOF || next != "(unexpected EOF)" {
			t.Errorf("cut off behind %q: %v, then %q", in[:n], err, next)
		}
	}
}

// A client that ends all its lines with CR CRLF waits behind its dot. It hears why
// when the deadline passes, and nothing that it sends later is a command.
func TestDataOfCRCRLFIsRefusedAtTheDeadline(t *testing.T) {
	t.Parallel()
	r := NewReader(&stall{parts: []string{"Subject: s\r\r\n\r\r\nbody\r\r\n.\r\n", "QUIT\r\n"}})
	_, err := io.ReadAll(r.Data(DataOptions{}))
	var e *Error
	if !errors.As(err, &e) || e.Reply.Code != 554 {
		t.Errorf("%v; want 554", err)
	}
	if line, err := r.Line(100); err != os.ErrDeadlineExceeded {
		t.Errorf("then %q, %v; want the deadline", line, err)
	}
}

func TestDataStalledWithinCRLFIsNoRefusal(t *testing.T) {
	t.Parallel()
	r := NewReader(&stall{parts: []string{"Subject: s\r"}})
	if _, err := io.ReadAll(r.Data(DataOptions{})); err != os.ErrDeadlineExceeded {
		t.Errorf("%v; want the deadline", err)
	}
}

func TestA8TextLine(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		strings.Repeat("x", MaxTextLine-1) + "\r\n.\r\n",
		"a\r\n" + strings.Repeat("x", 1<<20) + "\r\nb\r\n.\r\n",
	} {
		for way, src := range ways(in + "NOOP\r\n") {
			_, next, err := readData(src, DataOptions{})
			if !errors.Is(err, ErrDataLine) || next != "NOOP" {
				t.Errorf("%s: %v, then %q", way, err, next)
			}
		}
	}
}

// The length is that of one line, wherever chunks end.
func TestA8ManyShortLines(t *testing.T) {
	t.Parallel()
	for _, eol := range []string{"\r\n", "\n"} {
		text := strings.Repeat("..x"+eol+"y"+eol, MaxTextLine/4)
		for way, src := range ways(text + "\r\n.\r\nNOOP\r\n") {
			body, next, err := readData(src, DataOptions{NormalizeBareLF: true})
			if want := strings.Count(text, eol) + 1; err != nil || bytes.Count(body, []byte("\r\n")) != want || next != "NOOP" {
				t.Errorf("%q %s: %d lines of %d, %v, then %q", eol, way, bytes.Count(body, []byte("\r\n")), want, err, next)
			}
		}
	}
}

func TestA8EndlessDataIsNotKept(t *testing.T) {
	t.Parallel()
	r := NewReader(&endless{})
	d := r.Data(DataOptions{})
	if n, err := io.CopyN(io.Discard, d, 64<<20); err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if len(r.buf) > largeBuffer {
		t.Errorf("the buffer grew to %d", len(r.buf))
	}
}

// Several messages on one connection: nothing of one is left for the next.
func TestDataStateStartsAnew(t *testing.T) {
	t.Parallel()
	r := NewReader(strings.NewReader("a\rb\nc\r\n.\r\nRSET\r\nok\r\n.\r\nNOOP\r\n"))
	if _, err := io.ReadAll(r.Data(DataOptions{})); !errors.Is(err, ErrDataOctets) {
		t.Fatalf("first: %v", err)
	}
	if line, err := r.Line(100); string(line) != "RSET" {
		t.Fatalf("%q, %v", line, err)
	}
	if body, err := io.ReadAll(r.Data(DataOptions{})); err != nil || string(body) != "ok\r\n" {
		t.Fatalf("second: %q, %v", body, err)
	}
	if line, err := r.Line(100); string(line) != "NOOP" {
		t.Fatalf("%q, %v", line, err)
	}
}

func FuzzDataReader(f *testing.F) {
	for _, p := range smuggling {
		f.Add([]byte("body"+p+"x\r\n.\r\nNOOP\r\n"), byte(1), false)
		f.Add([]byte(p+"x\r\n.\r\nNOOP\r\n"), byte(7), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, step byte, normalize bool) {
		want, ok, rest, ended := referenceData(in, normalize)
		r := NewReader(&pieces{string(in), int(step)%64 + 1})
		d := r.Data(DataOptions{NormalizeBareLF: normalize})
		body, err := io.ReadAll(&pieceReader{d, int(step)/64 + 1})
		switch {
		case !ended:
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("no end, but %v", err)
			}
			return
		case !ok:
			if !errors.Is(err, ErrDataOctets) && !errors.Is(err, ErrDataLine) {
				t.Fatalf("to be refused, but %q, %v", body, err)
			}
		case err != nil || !bytes.Equal(body, want):
			t.Fatalf("%q, %v; want %q", body, err, want)
		default:
			checkOneMessage(t, body)
		}
		left, err := io.ReadAll(io.MultiReader(bytes.NewReader(r.buf[r.pos:r.end]), r.src))
		if err != nil || !bytes.Equal(left, rest) {
			t.Fatalf("left is %q, %v; want %q", left, err, rest)
		}
	})
}

// pieceReader asks for n octets at a time.
type pieceReader struct {
	r io.Reader
	n int
}

func (p *pieceReader) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
