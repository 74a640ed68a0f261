package smtp

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLine(t *testing.T) {
	t.Parallel()
	const limit = 20
	long := strings.Repeat("x", limit-2)
	tests := []struct {
		name string
		in   string
		want []string // a line, or "!" and the cause of an *Error
		end  error
	}{
		{"none", "", nil, io.EOF},
		{"two", "NOOP\r\nQUIT\r\n", []string{"NOOP", "QUIT"}, io.EOF},
		{"empty", "\r\n\r\n", []string{"", ""}, io.EOF},
		{"cut off", "NOOP\r\nQUI", []string{"NOOP"}, io.ErrUnexpectedEOF},
		{"cut off in CRLF", "NOOP\r", nil, io.ErrUnexpectedEOF},
		{"at the limit", long + "\r\nNOOP\r\n", []string{long, "NOOP"}, io.EOF},
		{"over the limit", long + "x\r\nNOOP\r\n", []string{"!line too long", "NOOP"}, io.EOF},
		{"far over the limit", strings.Repeat(long, 3000) + "\r\nNOOP\r\n", []string{"!line too long", "NOOP"}, io.EOF},
		{"bare LF", "NOOP\nQUIT\r\nNOOP\r\n", []string{"!bare CR, bare LF or NUL in a line", "NOOP"}, io.EOF},
		{"bare CR", "NOOP\rQUIT\r\nNOOP\r\n", []string{"!bare CR, bare LF or NUL in a line", "NOOP"}, io.EOF},
		{"CR CR LF", "NOOP\r\r\nNOOP\r\n", []string{"!bare CR, bare LF or NUL in a line", "NOOP"}, io.EOF},
		{"NUL", "NO\x00OP\r\nNOOP\r\n", []string{"!bare CR, bare LF or NUL in a line", "NOOP"}, io.EOF},
		{"LF CR", "\n\r\r\nNOOP\r\n", []string{"!bare CR, bare LF or NUL in a line", "NOOP"}, io.EOF},
	}
	for _, tt := range tests {
		for way, src := range ways(tt.in) {
			t.Run(tt.name+"/"+way, func(t *testing.T) {
				t.Parallel()
				r := NewReader(src)
				for i, want := range tt.want {
					line, err := r.Line(limit)
					if cause, bad := strings.CutPrefix(want, "!"); bad {
						var e *Error
						if !errors.As(err, &e) || e.Err.Error() != cause || e.Reply.Code != 500 {
							t.Fatalf("line %d: %q, %v; want the cause %q", i, line, err, cause)
						}
						continue
					}
					if err != nil || string(line) != want {
						t.Fatalf("line %d: %q, %v; want %q", i, line, err, want)
					}
				}
				if line, err := r.Line(limit); err != tt.end {
					t.Fatalf("end: %q, %v; want %v", line, err, tt.end)
				}
			})
		}
	}
}

// endless gives x for ever and counts how much was taken.
type endless struct{ n int64 }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	e.n += int64(len(b))
	return len(b), nil
}

func TestA8EndlessLine(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{MaxCommandLine, MaxAuthLine, MaxTextLine} {
		src := &endless{}
		r := NewReader(src)
		_, err := r.Line(limit)
		if err != ErrLineEndless {
			t.Fatalf("limit %d: %v; want ErrLineEndless", limit, err)
		}
		if src.n > maxDiscard+2*largeBuffer {
			t.Errorf("limit %d: %d octets were read of an endless line", limit, src.n)
		}
		if len(r.buf) > largeBuffer {
			t.Errorf("limit %d: the buffer grew to %d", limit, len(r.buf))
		}
		if _, err := r.Line(limit); err != ErrLineEndless {
			t.Errorf("limit %d: the error did not stay: %v", limit, err)
		}
	}
}

func TestA8IdleReaderIsSmall(t *testing.T) {
	t.Parallel()
	r := NewReader(strings.NewReader(strings.Repeat("NOOP\r\n", 10000)))
	for range 10000 {
		if _, err := r.Line(MaxCommandLine); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.buf) != smallBuffer {
		t.Errorf("the buffer grew to %d for short lines", len(r.buf))
	}
}

func TestA8AuthLineAtItsLimit(t *testing.T) {
	t.Parallel()
	for way, src := range ways(strings.Repeat("A", MaxAuthLine-2) + "\r\n" + strings.Repeat("A", MaxAuthLine-1) + "\r\nNOOP\r\n") {
		r := NewReader(src)
		if line, err := r.Line(MaxAuthLine); err != nil || len(line) != MaxAuthLine-2 {
			t.Errorf("%s: 12,288 octets: %d, %v", way, len(line), err)
		}
		if _, err := r.Line(MaxAuthLine); !errors.Is(err, ErrLineTooLong) {
			t.Errorf("%s: 12,289 octets: %v", way, err)
		}
		if line, err := r.Line(MaxCommandLine); string(line) != "NOOP" {
			t.Errorf("%s: behind it: %q, %v", way, line, err)
		}
	}
}

// stall gives its parts and a deadline error between them.
type stall struct {
	parts []string
	due   bool
}

func (s *stall) Read(b []byte) (int, error) {
	if s.due = !s.due; !s.due {
		return 0, os.ErrDeadlineExceeded
	}
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.parts[0])
	s.parts = s.parts[1:]
	return n, nil
}

func TestLineGoesOnAfterDeadline(t *testing.T) {
	t.Parallel()
	r := NewReader(&stall{parts: []string{"NO", "OP\r", "\nQUIT\r\n"}})
	for range 2 {
		if line, err := r.Line(100); err != os.ErrDeadlineExceeded {
			t.Fatalf("%q, %v; want a deadline", line, err)
		}
	}
	for _, want := range []string{"NOOP", "QUIT"} {
		if line, err := r.Line(100); err != nil || string(line) != want {
			t.Fatalf("%q, %v; want %q", line, err, want)
		}
	}
}

func TestDeadlineInDataStays(t *testing.T) {
	t.Parallel()
	r := NewReader(&stall{parts: []string{"half of a body\r\n", "MAIL FROM:<ceo@a>\r\n.\r\n"}})
	if _, err := io.ReadAll(r.Data(DataOptions{})); err != os.ErrDeadlineExceeded {
		t.Fatalf("%v; want a deadline", err)
	}
	if line, err := r.Line(100); err != os.ErrDeadlineExceeded {
		t.Errorf("the rest of a body was taken for a command: %q, %v", line, err)
	}
}

func TestLineRefusesUnreadData(t *testing.T) {
	t.Parallel()
	r := NewReader(strings.NewReader("text\r\nMAIL FROM:<ceo@a>\r\n.\r\nQUIT\r\n"))
	body := r.Data(DataOptions{})
	if _, err := body.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if line, err := r.Line(100); err != ErrDataUnread {
		t.Errorf("Line within data: %q, %v", line, err)
	}
	if _, err := body.Read(make([]byte, 6)); err != ErrDataUnread {
		t.Errorf("the session went on: %v", err)
	}
}

func TestReaderGivesUpOnNothing(t *testing.T) {
	t.Parallel()
	r := NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }))
	if _, err := r.Line(100); err != io.ErrNoProgress {
		t.Errorf("%v; want io.ErrNoProgress", err)
	}
	want := errors.New("reset by peer")
	r = NewReader(iotest.ErrReader(want))
	if _, err := r.Line(100); err != want {
		t.Errorf("%v; want %v", err, want)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestBuffered(t *testing.T) {
	t.Parallel()
	r := NewReader(strings.NewReader("STARTTLS\r\nEHLO injected\r\n"))
	if _, err := r.Line(100); err != nil {
		t.Fatal(err)
	}
	if n := r.Buffered(); n != len("EHLO injected\r\n") {
		t.Errorf("Buffered() = %d", n)
	}
}
