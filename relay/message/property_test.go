package message

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// P6: the output without what is added is the input without what is removed; and
// what has two readings is refused.
func TestPrepareChangesNothingElse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		field := rapid.Custom(func(t *rapid.T) string {
			name := rapid.SampledFrom([]string{"X", "Y", "Bcc", "bcc", "Resent-Bcc", "RETURN-PATH", "Received", "X-From", "Subject", "To", "Date", "Message-ID", "SENDER", "From", "y "}).Draw(t, "name")
			value := rapid.StringOfN(rapid.RuneFrom([]rune("ab :;,<>@é\t\x00\x7f")), 0, 30, -1).Draw(t, "value")
			if name == "From" || name == "SENDER" {
				value = "a@b"
			}
			fold := rapid.SampledFrom([]string{"", "", "", "\r\n x", "\r\n\tBcc: y", "\r\n ", "\r\n \r\n z"}).Draw(t, "fold")
			if value == "a@b" && fold != "\r\n " {
				fold = ""
			}
			return name + ":" + value + fold + "\r\n"
		})
		fields := rapid.SliceOfN(field, 0, 12).Draw(t, "fields")
		if rapid.Bool().Draw(t, "author") {
			fields = append([]string{"From: a@b\r\n"}, fields...)
		}
		body := rapid.SampledFrom([]string{"", "\r\n", "\r\nBcc: body\r\n", "\r\n.\r\n\x80\xff\r\n", "no field here\r\nBcc: body\r\n"}).Draw(t, "body")

		// The oracle works on whole fields, the scanner on lines.
		want, counts, refused := "", map[string]int{}, false
		for i, f := range fields {
			name, _, _ := strings.Cut(strings.ToLower(f), ":")
			counts[name]++
			refused = refused || name == "y " || strings.ContainsAny(f, "\x00\x7f") || strings.Contains(f, "\r\n \r\n") && i < len(fields)-1
			if name != "bcc" && name != "resent-bcc" && name != "return-path" {
				want += f
			}
		}
		for _, name := range []string{"from", "sender", "subject", "to", "date", "message-id"} {
			refused = refused || counts[name] > 1
		}
		refused = refused || counts["from"] == 0
		if strings.HasPrefix(body, "no field") {
			want += "\r\n"
		}
		want += body
		if counts["message-id"] == 0 {
			want = messageID + want
		}
		if counts["date"] == 0 {
			want = date + want
		}
		want = received + want

		preamble := rapid.SampledFrom([]string{"", "", "\ufeff", "From a@b Mon\r\n", "\ufeff>From x\r\n"}).Draw(t, "preamble")
		var r io.Reader = strings.NewReader(preamble + strings.Join(fields, "") + body)
		if rapid.Bool().Draw(t, "halves") {
			r = iotest.HalfReader(r)
		}
		p, err := Prepare(r, options)
		if (err != nil) != refused {
			t.Fatalf("err = %v, want a refusal: %v", err, refused)
		}
		if refused {
			return
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
	for _, s := range []string{"", "\r\n", "Subject: x\r\n\r\nb\r\n", "Bcc: x\r\n y\r\nA: b\r\n", " x\r\n", "x\r\n", "From : x\r\n\r\n", "From: \"a\" <a@b>,\r\n g: c@d;\r\nSender: a@b\r\n\r\nb\r\n", "a:\nBcc: x\r\r\n\r\n", "\n\r\n", ":\r\n"} {
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
