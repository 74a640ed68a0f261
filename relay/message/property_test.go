package message

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// P6: the output without what is added is the input without what is removed.
func TestPrepareChangesNothingElse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		field := rapid.Custom(func(t *rapid.T) string {
			name := rapid.SampledFrom([]string{"Subject", "X", "To", "From", "Bcc", "bcc ", "Resent-Bcc", "RETURN-PATH", "Date", "Message-ID", "Received"}).Draw(t, "name")
			value := rapid.StringOfN(rapid.RuneFrom([]rune("ab :;,<>@é\t\x00\x7f")), 0, 30, -1).Draw(t, "value")
			fold := rapid.SampledFrom([]string{"", "\r\n x", "\r\n\tBcc: y", "\r\n ", "\r\n \r\n z"}).Draw(t, "fold")
			return name + ":" + value + fold + "\r\n"
		})
		fields := rapid.SliceOfN(field, 0, 12).Draw(t, "fields")
		body := rapid.SampledFrom([]string{"", "\r\n", "\r\nBcc: body\r\n", "\r\n.\r\n\x80\xff\r\n", "no field here\r\nBcc: body\r\n"}).Draw(t, "body")

		// The oracle works on whole fields, the scanner on lines.
		want, dates, ids := "", 0, 0
		for _, f := range fields {
			name, _, _ := strings.Cut(strings.ToLower(f), ":")
			switch strings.TrimSpace(name) {
			case "bcc", "resent-bcc", "return-path":
				continue
			case "date":
				dates++
			case "message-id":
				ids++
			}
			want += f
		}
		if strings.HasPrefix(body, "no field") {
			want += "\r\n"
		}
		want += body
		if ids == 0 {
			want = messageID + want
		}
		if dates == 0 {
			want = date + want
		}
		want = received + want

		var r io.Reader = strings.NewReader(strings.Join(fields, "") + body)
		if rapid.Bool().Draw(t, "halves") {
			r = iotest.HalfReader(r)
		}
		p, err := Prepare(r, options)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
	})
}

// Whatever comes, what is added stands first, the body is whole, and the same
// octets in other portions give the same message.
func FuzzPrepare(f *testing.F) {
	for _, s := range []string{"", "\r\n", "Subject: x\r\n\r\nb\r\n", "Bcc: x\r\n y\r\nA: b\r\n", " x\r\n", "x\r\n", "From : x\r\n\r\n", "a:\nBcc: x\r\r\n\r\n", "\n\r\n", ":\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(r io.Reader) (string, error) {
			p, err := Prepare(r, options)
			if err != nil {
				return "", err
			}
			out, err := io.ReadAll(p)
			return string(out), err
		}
		whole, err := read(bytes.NewReader(in))
		split, err2 := read(iotest.OneByteReader(bytes.NewReader(in)))
		if (err == nil) != (err2 == nil) || whole != split {
			t.Fatalf("portions matter: %q %v / %q %v", whole, err, split, err2)
		}
		if err != nil {
			return
		}
		if !strings.HasPrefix(whole, received) {
			t.Fatalf("no Received first: %q", whole)
		}
		if i := bytes.Index(in, []byte("\r\n\r\n")); i >= 0 && !strings.HasSuffix(whole, string(in[i+2:])) {
			t.Fatalf("body changed: %q from %q", whole, in)
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	in := []byte(strings.Repeat("X-Some-Field: with a value of usual length, folded\r\n\tonce\r\n", 15) +
		"From: a@b\r\nBcc: c@d\r\nDate: x\r\nMessage-ID: <x@y>\r\n\r\n" + strings.Repeat("body body body\r\n", 250))
	r := bytes.NewReader(in)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(in)
		p, err := Prepare(r, options)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, p, make([]byte, 8<<10)); err != nil {
			b.Fatal(err)
		}
	}
}
