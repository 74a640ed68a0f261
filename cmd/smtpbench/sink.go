package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"strconv"

	"postern/internal/serve"
)

// startSink listens as the next hop of the measured server. It takes every message and
// calls deliver for each before it is answered, from many goroutines.
func startSink(address string, deliver func(arrival)) (*serve.Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start the sink: %w", err)
	}
	return serve.Start(listener, func(conn net.Conn) {
		_ = newIntake(conn, deliver).run() // how a client ends does not matter: what counts is what was taken
	}), nil
}

const (
	sinkBuffer   = 128 << 10
	maxCommand   = 4096
	maxAddedHead = 64 << 10 // of the header fields that servers add
)

var errQuit = errors.New("the client said QUIT")

// intake is one connection of the sink.
type intake struct {
	conn    net.Conn
	deliver func(arrival)

	buf        []byte
	start, end int // what is read and not used yet
	out        []byte

	from  []byte
	rcpts [][]byte

	head   []byte // of the message, until the mark is found
	found  bool   // the mark
	bad    bool   // not one of ours
	got    arrival
	want   [sha256.Size]byte
	digest hash.Hash
}

func newIntake(conn net.Conn, deliver func(arrival)) *intake {
	return &intake{conn: conn, deliver: deliver, buf: make([]byte, sinkBuffer), digest: sha256.New()}
}

func (in *intake) run() error {
	in.say("220 sink ESMTP")
	for {
		line, err := in.line()
		if err != nil {
			return err
		}
		if err := in.command(line); err != nil {
			return err
		}
	}
}

func (in *intake) say(reply string) {
	in.out = append(in.out, reply...)
	in.out = append(in.out, "\r\n"...)
}

// fill reads more. Pending replies leave first, in one write for all commands
// that came in one read.
func (in *intake) fill() error {
	if len(in.out) > 0 {
		if _, err := in.conn.Write(in.out); err != nil {
			return err
		}
		in.out = in.out[:0]
	}
	if in.start > 0 {
		in.end = copy(in.buf, in.buf[in.start:in.end])
		in.start = 0
	}
	n, err := in.conn.Read(in.buf[in.end:])
	in.end += n
	if n > 0 {
		return nil
	}
	return err
}

func (in *intake) line() ([]byte, error) {
	for {
		window := in.buf[in.start:in.end]
		if i := bytes.Index(window, []byte("\r\n")); i >= 0 {
			in.start += i + 2
			return window[:i], nil
		}
		if len(window) > maxCommand {
			return nil, errors.New("command too long")
		}
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
}

// verb says whether a command begins with a verb, in whatever case.
func verb(line []byte, name string) bool {
	return len(line) >= len(name) && bytes.EqualFold(line[:len(name)], []byte(name))
}

func (in *intake) command(line []byte) error {
	switch {
	case verb(line, "EHLO"):
		in.say("250-sink\r\n250-PIPELINING\r\n250-SIZE 0\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES")
	case verb(line, "HELO"):
		in.say("250 sink")
	case verb(line, "MAIL FROM:"):
		in.from = append(in.from[:0], path(line)...)
		in.rcpts = in.rcpts[:0]
		in.say("250 2.1.0 taken")
	case verb(line, "RCPT TO:"):
		in.addRecipient(path(line))
		in.say("250 2.1.5 taken")
	case verb(line, "DATA"):
		if len(in.rcpts) == 0 {
			in.say("503 5.5.1 no recipient")
			return nil
		}
		in.say("354 go ahead")
		return in.data()
	case verb(line, "RSET"):
		in.rcpts = in.rcpts[:0]
		in.say("250 2.0.0 forgotten")
	case verb(line, "NOOP"):
		in.say("250 2.0.0 nothing done")
	case verb(line, "QUIT"):
		in.say("221 2.0.0 bye")
		_, _ = in.conn.Write(in.out)
		return errQuit
	default:
		in.say("502 5.5.1 not here")
	}
	return nil
}

// path is what stands between the angle brackets.
func path(line []byte) []byte {
	open, end := bytes.IndexByte(line, '<'), bytes.IndexByte(line, '>')
	if open < 0 || end < open {
		return nil
	}
	return line[open+1 : end]
}

// addRecipient keeps a copy, in the memory of earlier ones.
func (in *intake) addRecipient(address []byte) {
	n := len(in.rcpts)
	if n < cap(in.rcpts) {
		in.rcpts = in.rcpts[:n+1]
		in.rcpts[n] = append(in.rcpts[n][:0], address...)
		return
	}
	in.rcpts = append(in.rcpts, bytes.Clone(address))
}

var (
	stuffedDot = []byte("\r\n.")
	finalDot   = []byte("\r\n.\r\n")
)

// data reads a message to its final dot (RFC 5321 section 4.5.2) and delivers it.
func (in *intake) data() error {
	in.head, in.found, in.bad = in.head[:0], false, false
	in.digest.Reset()
	begin := true // at the very start, where no line end precedes a dot
	for {
		window := in.buf[in.start:in.end]
		if begin && len(window) >= 3 {
			begin = false
			if bytes.HasPrefix(window, finalDot[2:]) {
				in.start += 3
				in.take()
				return nil
			}
			if window[0] == '.' {
				in.start++
				continue
			}
		}
		if !begin && in.scan(window) {
			in.take()
			return nil
		}
		if err := in.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// scan uses up what it can of the window, and says whether the final dot was there.
func (in *intake) scan(window []byte) bool {
	for {
		i := bytes.Index(window, stuffedDot)
		if i < 0 { // a line end at the end may be the one before a dot
			keep := min(2, len(window))
			in.text(window[:len(window)-keep])
			in.start = in.end - keep
			return false
		}
		if len(window) < i+len(finalDot) {
			in.text(window[:i])
			in.start = in.end - (len(window) - i)
			return false
		}
		in.text(window[:i+2])
		if bytes.Equal(window[i:i+len(finalDot)], finalDot) {
			in.start = in.end - (len(window) - i - len(finalDot))
			return true
		}
		window = window[i+len(stuffedDot):]
	}
}

// text takes a part of the message.
func (in *intake) text(b []byte) {
	switch {
	case in.found:
		_, _ = in.digest.Write(b) // never fails
	case !in.bad:
		in.head = append(in.head, b...)
		in.find()
	}
}

// find looks for the mark in what was read of the header section.
func (in *intake) find() {
	at := 0
	if !bytes.HasPrefix(in.head, []byte(mark)) {
		at = bytes.Index(in.head, []byte("\r\n"+mark)) + 2
	}
	if at == 1 { // not there
		in.bad = len(in.head) > maxAddedHead || bytes.Contains(in.head, []byte("\r\n\r\n"))
		return
	}
	end := bytes.Index(in.head[at:], []byte("\r\n"))
	if end < 0 {
		return
	}
	if !fields(in.head[:at]) || !in.parse(in.head[at:at+end]) {
		in.bad = true
		return
	}
	in.found = true
	_, _ = in.digest.Write(in.head[at+end+2:])
}

// fields says whether b is whole header fields and nothing else.
func fields(b []byte) bool {
	first := true
	for line := range bytes.Lines(b) {
		folded := line[0] == ' ' || line[0] == '\t'
		name, _, colon := bytes.Cut(line, []byte(":"))
		if folded && first || !folded && (!colon || len(name) == 0 || bytes.ContainsAny(name, " \t\r\n")) {
			return false
		}
		first = false
	}
	return true
}

// parse reads the field with the mark.
func (in *intake) parse(field []byte) bool {
	part := bytes.Fields(field[len(mark):])
	if len(part) != 3 {
		return false
	}
	run, ok1 := bytes.CutPrefix(part[0], []byte("run="))
	n, ok2 := bytes.CutPrefix(part[1], []byte("n="))
	sum, ok3 := bytes.CutPrefix(part[2], []byte("sha256="))
	if !ok1 || !ok2 || !ok3 || len(sum) != hex.EncodedLen(sha256.Size) {
		return false
	}
	if _, err := hex.Decode(in.want[:], sum); err != nil {
		return false
	}
	number, err := strconv.Atoi(string(n))
	in.got.run, in.got.n = run, number
	return err == nil && number >= 0
}

// take delivers the message that is complete.
func (in *intake) take() {
	var sum [sha256.Size]byte
	in.digest.Sum(sum[:0])
	if !in.found {
		in.got = arrival{}
	}
	in.got.from, in.got.rcpts = in.from, in.rcpts
	in.got.intact = in.found && sum == in.want
	in.deliver(in.got)
	in.rcpts = in.rcpts[:0]
	in.say("250 2.0.0 taken")
}
