package smtp

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestReadReply(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want Reply
	}{
		{"250 ok\r\n", Reply{Code: 250, Text: "ok"}},
		{"250\r\n", Reply{Code: 250}},
		{"250 \r\n", Reply{Code: 250}},
		{"250-a\r\n250-b\r\n250 c\r\n", Reply{Code: 250, Text: "a\nb\nc"}},
		{"250-a\r\n250\r\n", Reply{Code: 250, Text: "a\n"}},
		{"250 2.1.5 ok\r\n", Reply{250, EnhancedCode{2, 1, 5}, "ok"}},
		{"250 2.1.5\r\n", Reply{250, EnhancedCode{2, 1, 5}, ""}},
		{"550-5.7.26 a\r\n550 5.7.26 b\r\n", Reply{550, EnhancedCode{5, 7, 26}, "a\nb"}},
		{"550-a\r\n550 5.7.1 b\r\n", Reply{550, EnhancedCode{5, 7, 1}, "a\nb"}},
		{"250 5.1.1 contradicts\r\n", Reply{Code: 250, Text: "contradicts"}},
		{"550 2.0.0 contradicts\r\n", Reply{Code: 550, Text: "contradicts"}},
		{"354 2.0.0 go\r\n", Reply{Code: 354, Text: "2.0.0 go"}},
		{"220 5.1 MTA\r\n", Reply{Code: 220, Text: "5.1 MTA"}},
		{"250 2.01.0 x\r\n", Reply{Code: 250, Text: "2.01.0 x"}},
		{"250 2.1000.0 x\r\n", Reply{Code: 250, Text: "2.1000.0 x"}},
		{"550 5.1.1.1 x\r\n", Reply{Code: 550, Text: "5.1.1.1 x"}},
		{"550 a\x00b\x1b[2Jc\x7f\td\r\n", Reply{Code: 550, Text: "a?b?[2Jc? d"}},
		{"550 caf\xe9 caf\xc3\xa9\r\n", Reply{Code: 550, Text: "caf? café"}},
		{"550 \u202etxt\u2028x\u00a0y\r\n", Reply{Code: 550, Text: "?txt x y"}},
		{"550 " + strings.Repeat("x", 1000) + "\r\n", Reply{Code: 550, Text: strings.Repeat("x", 1000)}},
	}
	for _, tt := range tests {
		for way, src := range ways(tt.in + "221 next\r\n") {
			r := NewReader(src)
			if got, err := ReadReply(r, ReplyLimits{}); err != nil || got != tt.want {
				t.Errorf("%q (%s): %+v, %v; want %+v", tt.in, way, got, err, tt.want)
			}
			if got, err := ReadReply(r, ReplyLimits{}); err != nil || got.Code != 221 {
				t.Errorf("%q (%s): behind it %+v, %v", tt.in, way, got, err)
			}
		}
	}
}

func TestReadReplyRefuses(t *testing.T) {
	t.Parallel()
	many := ReplyLimits{Lines: 3, Bytes: 40}
	tests := []struct {
		name, in string
		lim      ReplyLimits
		want     error
	}{
		{"nothing", "", ReplyLimits{}, io.EOF},
		{"cut off in the code", "2", ReplyLimits{}, io.ErrUnexpectedEOF},
		{"cut off in the text", "250 ok", ReplyLimits{}, io.ErrUnexpectedEOF},
		{"cut off in CRLF", "250 ok\r", ReplyLimits{}, io.ErrUnexpectedEOF},
		{"cut off between lines", "250-ok\r\n", ReplyLimits{}, io.ErrUnexpectedEOF},
		{"LF only", "250 ok\n", ReplyLimits{}, ErrMalformedReply},
		{"CR only", "250 ok\r250 ok\r", ReplyLimits{}, ErrMalformedReply},
		{"CR CR LF", "250 ok\r\r\n", ReplyLimits{}, ErrMalformedReply},
		{"LF within", "250 o\nk\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 000", "000 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 99", "99 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 100", "100 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 600", "600 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 2 50", "2 50\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code 25", "25\r\n", ReplyLimits{}, ErrMalformedReply},
		{"negative", "-250 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"four digits", "2500 ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"no separator", "250ok\r\n", ReplyLimits{}, ErrMalformedReply},
		{"empty line", "\r\n", ReplyLimits{}, ErrMalformedReply},
		{"code changes", "250-a\r\n251 b\r\n", ReplyLimits{}, ErrMalformedReply},
		{"TLS garbage", "\x16\x03\x01\x02\x00\r\n", ReplyLimits{}, ErrMalformedReply},
		{"too many lines", "250-a\r\n250-b\r\n250-c\r\n250 d\r\n", many, ErrMalformedReply},
		{"too many octets", "250-" + strings.Repeat("x", 30) + "\r\n250 ok\r\n", many, ErrMalformedReply},
		{"a long line", "250 " + strings.Repeat("x", 64<<10) + "\r\n", ReplyLimits{}, ErrMalformedReply},
	}
	for _, tt := range tests {
		for way, src := range ways(tt.in) {
			got, err := ReadReply(NewReader(src), tt.lim)
			if !errors.Is(err, tt.want) || !got.IsZero() {
				t.Errorf("%s (%s): %+v, %v; want %v", tt.name, way, got, err, tt.want)
			}
		}
	}
}

func TestReadReplyAtItsLimits(t *testing.T) {
	t.Parallel()
	in := "250-a\r\n250-b\r\n250 c\r\n"
	if got, err := ReadReply(NewReader(strings.NewReader(in)), ReplyLimits{Lines: 3, Bytes: len(in)}); err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadReply(NewReader(strings.NewReader(in)), ReplyLimits{Lines: 3, Bytes: len(in) - 1}); err == nil {
		t.Errorf("one octet over the limit: %+v", got)
	}
}

// A bare LF must be refused immediately: its server waits for us as we would for it.
func TestReadReplyDoesNotWaitBehindBareLF(t *testing.T) {
	t.Parallel()
	r := NewReader(&stall{parts: []string{"250 ok\n"}})
	if _, err := ReadReply(r, ReplyLimits{}); !errors.Is(err, ErrMalformedReply) {
		t.Errorf("%v; want ErrMalformedReply", err)
	}
}

func TestA28EndlessReplies(t *testing.T) {
	t.Parallel()
	lines := &pieces{strings.Repeat("250-x\r\n", 1_000_000), 64 << 10}
	if _, err := ReadReply(NewReader(lines), ReplyLimits{}); !errors.Is(err, ErrMalformedReply) {
		t.Errorf("a million lines: %v", err)
	}
	line := &endless{}
	if _, err := ReadReply(NewReader(line), ReplyLimits{}); !errors.Is(err, ErrMalformedReply) || line.n > 64<<10 {
		t.Errorf("an endless line: %v after %d octets", err, line.n)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("250-mx.example\r\n250-SIZE 1000\r\n250 2.0.0 ok\r\n"))
	f.Add([]byte("550 5.1.1 caf\xe9 \x00\x1b[2J\r\n"))
	f.Add([]byte("250 ok\n"))
	f.Add([]byte("250-a\r\n251 b\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := ReadReply(NewReader(&pieces{string(in), len(in) + 1}), ReplyLimits{})
		split, err2 := ReadReply(NewReader(&pieces{string(in), 1}), ReplyLimits{})
		if whole != split || (err == nil) != (err2 == nil) {
			t.Fatalf("whole %+v, %v; split %+v, %v", whole, err, split, err2)
		}
		if err != nil {
			return
		}
		if !utf8.ValidString(whole.Text) || strings.ContainsFunc(whole.Text, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }) {
			t.Fatalf("text cannot be stored: %q", whole.Text)
		}
		again, err := ReadReply(NewReader(strings.NewReader(string(whole.Append(nil)))), ReplyLimits{Bytes: 1 << 20})
		if err != nil || again.Code != whole.Code {
			t.Fatalf("%+v written and read is %+v, %v", whole, again, err)
		}
	})
}
