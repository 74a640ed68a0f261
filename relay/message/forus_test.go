package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"postern/relay/smtp"
)

// What a message says to the relay is removed, wherever it stands, and read; what cannot be kept is
// refused with a text that says what can.
func TestForUs(t *testing.T) {
	t.Parallel()
	x64, x255 := strings.Repeat("x", 64), strings.Repeat("x", 255)
	const badKey = "554 5.6.0 The X-Postern-Idempotency-Key field must be 1 to 255 visible ASCII characters without spaces"
	const badTag = "554 5.6.0 The X-Postern-Tag field must be 1 to 64 visible ASCII characters without spaces"
	const badData = "554 5.6.0 The X-Postern-Metadata field must be a JSON object of at most 1024 octets"
	for _, tc := range []struct {
		name, in string
		want     ForUs
		refusal  string
	}{
		{name: "nothing", in: "X-Postern: x\nX-Posternal-Tag: y\n"},
		{name: "a key", in: "x-postern-idempotency-key:  order-17/a \n", want: ForUs{Key: "order-17/a"}},
		{name: "a folded key", in: "X-Postern-Idempotency-Key:\n order-17\n", want: ForUs{Key: "order-17"}},
		{name: "a long key", in: "X-Postern-Idempotency-Key: " + x255 + "\n", want: ForUs{Key: x255}},
		{name: "a longer key", in: "X-Postern-Idempotency-Key: x" + x255 + "\n", refusal: badKey},
		{name: "no key", in: "X-Postern-Idempotency-Key:\n", refusal: badKey},
		{name: "two words", in: "X-Postern-Idempotency-Key: a b\n", refusal: badKey},
		{name: "two keys", in: "X-Postern-Idempotency-Key: a\nX-Postern-Idempotency-Key: a\n",
			refusal: "554 5.6.0 The message has more than one X-Postern-Idempotency-Key field; send it with one"},
		{name: "tags", in: "X-Postern-Tag: welcome\nX-Postern-Tag: " + x64 + "\nX-POSTERN-TAG: welcome\n", want: ForUs{Tags: []string{"welcome", x64}}},
		{name: "a longer tag", in: "X-Postern-Tag: x" + x64 + "\n", refusal: badTag},
		{name: "an empty tag", in: "X-Postern-Tag: \n", refusal: badTag},
		{name: "a tag of no ASCII", in: "X-Postern-Tag: gr\u00fc\u00dfe\n", refusal: badTag},
		{name: "eleven tags", in: strings.Repeat("X-Postern-Tag: a\n", 11), refusal: "554 5.6.0 The X-Postern-Tag field must occur at most 10 times"},
		{name: "metadata", in: "X-Postern-Metadata: {\"order\": 17,\n \"to\": [\"a\", null, true, 1.5]}\n", want: ForUs{Metadata: []byte(`{"order":17,"to":["a",null,true,1.5]}`)}},
		{name: "a half character", in: `X-Postern-Metadata: {"a": "\ud800"}` + "\n", want: ForUs{Metadata: []byte(`{"a":"` + "\ufffd" + `"}`)}},
		{name: "no object", in: "X-Postern-Metadata: [1]\n", refusal: badData},
		{name: "null", in: "X-Postern-Metadata: null\n", refusal: badData},
		{name: "no JSON", in: "X-Postern-Metadata: {a: 1}\n", refusal: badData},
		{name: "a NUL", in: `X-Postern-Metadata: {"a": "\u0000"}` + "\n", refusal: badData},
		{name: "no number", in: `X-Postern-Metadata: {"a": 1e999}` + "\n", refusal: badData},
		{name: "1 KiB", in: `X-Postern-Metadata: {"a": "` + strings.Repeat("x", 1024-9) + `"}` + "\n", want: ForUs{Metadata: []byte(`{"a":"` + strings.Repeat("x", 1024-9) + `"}`)}},
		{name: "more than 1 KiB", in: `X-Postern-Metadata: {"a": "` + strings.Repeat("x", 1024-8) + `"}` + "\n", refusal: badData},
		{name: "far more", in: `X-Postern-Metadata: {"a": "` + strings.Repeat("x", 900) + "\n" + strings.Repeat(" "+strings.Repeat("x", 900)+"\n", 20), refusal: badData},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			const have = "Date: x\nMessage-ID: <1@a>\nFrom: a@b\n"
			p, err := Prepare(iotest.OneByteReader(strings.NewReader(lines("Subject: s\n"+tc.in+have+"\nbody\n"))), options)
			var refused *smtp.Error
			if errors.As(err, &refused) {
				if got := refused.Reply.String(); got != tc.refusal {
					t.Errorf("refused with %q, want %q", got, tc.refusal)
				}
				return
			}
			if err != nil || tc.refusal != "" {
				t.Fatalf("%v, want %q", err, tc.refusal)
			}
			got, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			stays := ""
			if tc.name == "nothing" {
				stays = tc.in
			}
			if want := received + lines("Subject: s\n"+stays+have+"\nbody\n"); string(got) != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if d := cmp.Diff(tc.want, p.ForUs); d != "" {
				t.Error(d)
			}
		})
	}
}

// What is told apart is what the client sent, without what is removed and what is added: however
// the octets arrive, and the same when it is sent again.
func TestClientOctets(t *testing.T) {
	t.Parallel()
	const have = "Date: x\nMessage-ID: <1@a>\nFrom: a@b\n"
	for _, tc := range []struct{ in, want string }{
		{have + "\nbody\n", have + "\nbody\n"},
		{"From: a@b\n\n" + strings.Repeat("body\n", 10_000), "From: a@b\n\n" + strings.Repeat("body\n", 10_000)},
		{"Bcc: c@d\nX-Postern-Tag: x\n" + have + "\nbody\n", have + "\nbody\n"},
		{have, have},
		{have + "no field\n", have + "\nno field\n"},
	} {
		for i, in := range []io.Reader{strings.NewReader(lines(tc.in)), iotest.OneByteReader(strings.NewReader(lines(tc.in)))} {
			opt := options
			opt.ID, opt.Hello = fmt.Sprint("id", i), fmt.Sprint("host", i)
			p, err := Prepare(in, opt)
			if err != nil {
				t.Fatal(err)
			}
			var client, body bytes.Buffer
			p.Client, p.Body = &client, &body
			if _, err := io.Copy(io.Discard, iotest.HalfReader(p)); err != nil {
				t.Fatal(err)
			}
			if client.String() != lines(tc.want) {
				t.Errorf("%.60q: the client's octets are %.200q", tc.in, client.String())
			}
			if _, text, _ := strings.Cut(lines(tc.want), "\r\n\r\n"); body.String() != text {
				t.Errorf("%.60q: the body is %.200q", tc.in, body.String())
			}
			if p.IDAdded != !strings.Contains(tc.in, "Message-ID") {
				t.Errorf("%.60q: IDAdded is %v", tc.in, p.IDAdded)
			}
		}
	}
}
