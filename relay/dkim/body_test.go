package dkim

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestBodyHash(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ body, canonical string }{
		{"", ""},
		{"\r\n", ""},
		{"\r\n\r\n \t\r\n", ""},
		{" ", ""},
		{"a", "a\r\n"},
		{"a\r\n", "a\r\n"},
		{"a\r\n\r\n\r\n", "a\r\n"},
		{"a \t\r\n \r\n", "a\r\n"},
		{" C \r\nD \t E\r\n\r\n\r\n", " C\r\nD E\r\n"}, // RFC 6376 section 3.4.5
		{"\r\n\r\na\r\n", "\r\n\r\na\r\n"},
		{"a\r\n\t\r\n b", "a\r\n\r\n b\r\n"},
		{".\r\n..\r\n", ".\r\n..\r\n"},
		{"a\rb \r \r\r\n", "a\rb \r \r\r\n"}, // a CR alone is like any octet
		{"a\r", "a\r\r\n"},
		{"a\nb", "a\nb\r\n"},
	} {
		want := sha256.Sum256([]byte(tc.canonical))
		h := NewBodyHash()
		_, _ = h.Write([]byte(tc.body))
		if got := h.Sum(); !bytes.Equal(got, want[:]) {
			t.Errorf("%q is not hashed as %q", tc.body, tc.canonical)
		}
	}
	const empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" // RFC 6376 section 3.4.4
	if got := base64.StdEncoding.EncodeToString(NewBodyHash().Sum()); got != empty {
		t.Errorf("an empty body: %s", got)
	}
}

// relaxed is the canonicalization as RFC 6376 puts it.
func relaxed(body []byte) []byte {
	body = regexp.MustCompile(`[ \t]+`).ReplaceAll(body, []byte(" "))
	body = regexp.MustCompile(` \r\n`).ReplaceAll(body, []byte("\r\n"))
	body = regexp.MustCompile(` $`).ReplaceAll(body, nil)
	body = regexp.MustCompile(`(\r\n)+$`).ReplaceAll(body, nil)
	if len(body) > 0 {
		body = append(body, "\r\n"...)
	}
	return body
}

// However a body comes in pieces, its hash is that of its canonical form.
func TestBodyHashInPieces(t *testing.T) {
	t.Parallel()
	pieces := rapid.SliceOf(rapid.OneOf(
		rapid.SampledFrom([]string{"\r\n", " ", "\t", "\r\n\r\n", ".", "a", "\xfc"}),
		rapid.Map(rapid.IntRange(1, 3*blockSize), func(n int) string { return strings.Repeat("x", n) }),
	))
	rapid.Check(t, func(t *rapid.T) {
		h, whole := NewBodyHash(), []byte(nil)
		for _, p := range pieces.Draw(t, "pieces") {
			whole = append(whole, p...)
		}
		for rest := whole; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			_, _ = h.Write(rest[:n])
			rest = rest[n:]
		}
		if want := sha256.Sum256(relaxed(whole)); !bytes.Equal(h.Sum(), want[:]) {
			t.Fatalf("%q has another hash than %q", whole, relaxed(whole))
		}
	})
}

// A BodyHash holds as much of a long body as of a short one: empty lines and white space are only counted.
func TestBodyHashHoldsLittle(t *testing.T) {
	t.Parallel()
	h := NewBodyHash()
	for range 100 {
		_, _ = h.Write(bytes.Repeat([]byte("\r\n \t"), 10_000))
		_, _ = h.Write(bytes.Repeat([]byte("x"), 5000))
	}
	if cap(h.out) != blockSize {
		t.Errorf("it holds %d octets", cap(h.out))
	}
}

func BenchmarkBodyHash(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		r := rand.New(rand.NewPCG(1, 1))
		text := make([]byte, 0, size)
		for len(text) < size {
			text = append(text, "lorem ipsum dolor sit amet"[:1+r.IntN(26)]...)
			text = append(text, []string{" ", " ", " ", "\r\n"}[r.IntN(4)]...)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				h := NewBodyHash()
				_, _ = h.Write(text)
				h.Sum()
			}
		})
	}
}
