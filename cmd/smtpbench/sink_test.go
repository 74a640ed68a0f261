package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// script is a connection that was written down before.
type script struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error) { return s.out.Write(b) }

// takeAll runs a dialog through the sink and returns copies of what it took.
func takeAll(in io.Reader) (taken []arrival, replies string, err error) {
	conn := &script{in: in}
	err = newIntake(conn, func(a arrival) {
		a.run, a.from = bytes.Clone(a.run), bytes.Clone(a.from)
		var rcpts [][]byte
		for _, r := range a.rcpts {
			rcpts = append(rcpts, bytes.Clone(r))
		}
		a.rcpts = rcpts
		taken = append(taken, a)
	}).run()
	return taken, conn.out.String(), err
}

// dialog is a client that sends these messages, already stuffed, to two recipients.
func dialog(messages ...[]byte) []byte {
	d := []byte("EHLO a\r\n")
	for _, m := range messages {
		d = append(d, "MAIL FROM:<bench@example.com> SIZE=5\r\nRCPT TO:<a@example.net>\r\nrcpt to:<b@example.net>\r\nDATA\r\n"...)
		d = append(d, m...)
	}
	return append(d, "QUIT\r\n"...)
}

const received = "Received: from a\r\n\tby b; now\r\nX-Other: 1\r\n"

func TestSinkTakes(t *testing.T) {
	t.Parallel()
	c := testCorpus(t, 9, 2, 9<<10)
	first, second := c.message(true).octets(3), append([]byte(received), c.message(true).octets(8)...)
	in := dialog(first, second)
	for name, reader := range map[string]io.Reader{
		"in one piece":    bytes.NewReader(in),
		"octet by octet":  iotest.OneByteReader(bytes.NewReader(in)),
		"half by half":    iotest.HalfReader(bytes.NewReader(in)),
		"end with octets": iotest.DataErrReader(bytes.NewReader(in)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			taken, replies, err := takeAll(reader)
			if err != errQuit || len(taken) != 2 {
				t.Fatalf("took %d messages: %v", len(taken), err)
			}
			for i, n := range []int{3, 8} {
				a := taken[i]
				if !a.intact || a.n != n || string(a.run) != c.run || string(a.from) != "bench@example.com" {
					t.Errorf("took %+v", a)
				}
				if got := string(bytes.Join(a.rcpts, []byte(" "))); got != "a@example.net b@example.net" {
					t.Errorf("for %s", got)
				}
			}
			if strings.Count(replies, "250 2.0.0 taken\r\n") != 2 || strings.Count(replies, "354 ") != 2 || !strings.HasSuffix(replies, "221 2.0.0 bye\r\n") {
				t.Errorf("said %q", replies)
			}
		})
	}
}

// TestSinkSeesChanges lets a server do wrong in each way.
func TestSinkSeesChanges(t *testing.T) {
	t.Parallel()
	c := testCorpus(t, 1, 1, 9<<10)
	raw := string(c.message(false).octets(0))
	line, _, _ := strings.Cut(raw, "\r\n")
	tests := map[string]string{
		"an octet":              strings.Replace(raw, "Subject: s", "Subject: S", 1),
		"a field below ours":    strings.Replace(raw, "\r\n", "\r\nX-Other: 1\r\n", 1),
		"a field removed":       strings.Replace(raw, "MIME-Version: 1.0\r\n", "", 1),
		"cut off":               raw[:len(raw)-80] + "\r\n",
		"longer":                raw + "more\r\n",
		"a lost dot":            strings.Replace(raw, "\r\n.\r\n", "\r\n\r\n", 1),
		"a doubled dot":         strings.Replace(raw, "\r\n.\r\n", "\r\n..\r\n", 1),
		"our field gone":        strings.TrimPrefix(raw, line+"\r\n"),
		"our field in the body": "Received: x\r\n\r\n" + raw,
		"no field above":        "nonsense\r\n" + raw,
		"folded above":          " nonsense: 1\r\n" + raw,
		"a wrong digest":        strings.Replace(raw, line, line[:len(line)-1]+"g", 1),
		"no number":             strings.Replace(raw, " n=", " m=", 1),
		"empty":                 "",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			taken, _, err := takeAll(bytes.NewReader(dialog(wireForm([]byte(text)))))
			if err != errQuit || len(taken) != 1 {
				t.Fatalf("took %d messages: %v", len(taken), err)
			}
			if taken[0].intact {
				t.Error("nobody sees it")
			}
		})
	}
	if taken, _, _ := takeAll(bytes.NewReader(dialog(wireForm([]byte(raw))))); len(taken) != 1 || !taken[0].intact {
		t.Error("the message as it was is not intact")
	}
}

func TestSinkTakesNothingUnfinished(t *testing.T) {
	t.Parallel()
	c := testCorpus(t, 1, 1, 2<<10)
	whole := dialog(c.message(true).octets(0))
	end := bytes.Index(whole, []byte("QUIT"))
	for _, cut := range []int{1, 2, 3, 4, 5, 1000} {
		taken, _, err := takeAll(bytes.NewReader(whole[:end-cut]))
		if len(taken) != 0 || err != io.ErrUnexpectedEOF {
			t.Errorf("%d octets short: took %d messages: %v", cut, len(taken), err)
		}
	}
}

func TestSinkRefuses(t *testing.T) {
	t.Parallel()
	_, replies, _ := takeAll(strings.NewReader("DATA\r\nFOO\r\nHELO a\r\nRSET\r\nNOOP\r\nQUIT\r\n"))
	var codes []string
	for line := range strings.Lines(replies) {
		codes = append(codes, line[:3])
	}
	if got := strings.Join(codes, " "); got != "220 503 502 250 250 250 221" {
		t.Errorf("said %s", got)
	}
	if _, _, err := takeAll(strings.NewReader(strings.Repeat("x", sinkBuffer))); err == nil || err == io.EOF {
		t.Errorf("an endless command ends with %v", err)
	}
}

func BenchmarkSink(b *testing.B) {
	c, err := newCorpus(corpusConfig{"bench@example.com", "example.net", 1, 1, 5 << 10})
	if err != nil {
		b.Fatal(err)
	}
	once := dialog(append([]byte(received), c.message(true).octets(0)...))
	once = once[len("EHLO a\r\n") : len(once)-len("QUIT\r\n")]
	b.SetBytes(int64(len(once)))
	b.ReportAllocs()
	in := newIntake(&script{in: &endless{once: once}}, func(arrival) {})
	for b.Loop() {
		line, err := in.line()
		for ; err == nil && !verb(line, "DATA"); line, err = in.line() {
			_ = in.command(line)
		}
		if err := in.command([]byte("DATA")); err != nil {
			b.Fatal(err)
		}
		in.out = in.out[:0]
	}
}

type endless struct {
	once []byte
	at   int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.once[e.at:])
	e.at = (e.at + n) % len(e.once)
	return n, nil
}

// noDeadline is a connection that knows no time.
type noDeadline struct{ net.Conn }

func (noDeadline) SetDeadline(time.Time) error { return nil }
