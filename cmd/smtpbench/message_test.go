package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"testing"
)

func testCorpus(t *testing.T, messages, recipients, size int) *corpus {
	t.Helper()
	c, err := newCorpus(corpusConfig{"bench@example.com", "example.net", messages, recipients, size})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (m *message) octets(n int) []byte {
	m.number(n)
	var all []byte
	_ = m.each(func(b []byte) error {
		all = append(all, b...)
		return nil
	})
	return all
}

// wireForm stuffs the dots in the plainest way.
func wireForm(raw []byte) []byte {
	var wire []byte
	for line := range bytes.Lines(raw) {
		if line[0] == '.' {
			wire = append(wire, '.')
		}
		wire = append(wire, line...)
	}
	return append(wire, ".\r\n"...)
}

func TestMessages(t *testing.T) {
	t.Parallel()
	head := newStencil(false)
	testCorpus(t, 1, 1, minSize).appendHead(head)
	sizes := []int{minSize, 5 << 10, chunkSize, len(head.b) + chunkSize, len(head.b) + chunkSize + 1, len(head.b) + 2*chunkSize + 2, 1<<20 + 7}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c := testCorpus(t, 8, 1, size)
			for _, n := range []int{7, 0, 3} { // a message must not keep what an earlier one left
				raw := c.message(false).octets(n)
				if len(raw) != size {
					t.Errorf("message %d has %d octets", n, len(raw))
				}
				if !bytes.Equal(c.message(true).octets(n), wireForm(raw)) {
					t.Errorf("message %d is not stuffed as it must be", n)
				}
				checkDigest(t, raw)
				checkLines(t, raw)
				numbers := regexp.MustCompile(fmt.Sprintf(`[ .m=]%010d`, n)).FindAll(raw, -1)
				if want := 4 + size/(4<<10)/2; len(numbers) < want {
					t.Errorf("message %d says its number %d times, want %d", n, len(numbers), want)
				}
			}
		})
	}
}

func checkDigest(t *testing.T, raw []byte) {
	t.Helper()
	first, rest, _ := bytes.Cut(raw, []byte("\r\n"))
	sum := sha256.Sum256(rest)
	if !bytes.HasSuffix(first, []byte("sha256="+hex.EncodeToString(sum[:]))) {
		t.Errorf("%q is not the digest %x", first, sum)
	}
}

// checkLines wants text as RFC 5322 section 2.3 has it, with dots to be stuffed.
func checkLines(t *testing.T, raw []byte) {
	t.Helper()
	for line := range bytes.Lines(raw) {
		if !bytes.HasSuffix(line, []byte("\r\n")) || len(line) > 998 || bytes.ContainsAny(line[:len(line)-2], "\r\n\x00") {
			t.Fatalf("%q is no line of text", line)
		}
	}
	if len(raw) > 8<<10 && !bytes.Contains(raw, []byte("\r\n.\r\n")) {
		t.Error("no line is a single dot")
	}
}

func TestTooSmall(t *testing.T) {
	t.Parallel()
	if _, err := newCorpus(corpusConfig{"a@b", "c", 1, 1, minSize - 1}); err == nil {
		t.Error("a message without room for its header is taken")
	}
}

func TestMessagesDiffer(t *testing.T) {
	t.Parallel()
	a, b := testCorpus(t, 2, 1, 2048), testCorpus(t, 2, 1, 2048)
	if a.digests[0] == a.digests[1] || a.digests[0] == b.digests[0] {
		t.Error("two messages are the same")
	}
}
