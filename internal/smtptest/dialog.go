package smtptest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Dialog plays the client's side of a golden file against a server under test and
// fails the test at the first line of the server's that is not as written.
//
// A file has one step on each line; empty lines and lines that begin with # say
// nothing.
//
//	C: text      send text and CRLF, literally (no escapes)
//	C*20: text   the same, 20 times
//	C! text      send text without CRLF; \r \n \t \0 \\ and \xHH are escapes
//	FLUSH        send what was gathered; without it all C lines up to the next
//	             step of another kind leave in one write, which is pipelining
//	S: pattern   the server's next line, ended by CRLF; * stands for any run of
//	             characters, so "S: 250-*" is one continuation line of any text
//	S: ...       any number of continuation lines ("250-…"), also none
//	STARTTLS     run the TLS handshake now (the command and its 220 are C and S
//	             lines before it)
//	EOF          the server closes, having said nothing more
//	CLOSE        close the client's side and end
//
// ${name} in C and S lines is replaced from Vars. At the end of the file nothing
// unread may be left. Patterns match whole lines.
type Dialog struct {
	TLS     *tls.Config       // for STARTTLS; nil: TLS 1.2 or later, nothing verified
	Vars    map[string]string // values of ${name}
	Timeout time.Duration     // for each step; 0: 3 min
}

// RunDialog plays file over conn with the defaults of Dialog, and closes conn at
// the end of the test.
func RunDialog(t testing.TB, conn net.Conn, file string) {
	t.Helper()
	Dialog{}.Run(t, conn, file)
}

// Run plays file over conn, and closes conn at the end of the test.
func (d Dialog) Run(t testing.TB, conn net.Conn, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	steps, err := parseDialog(string(text), d.Vars)
	if err != nil {
		t.Fatalf("%s:%v", file, err)
	}
	p := newPlayer(d, conn)
	t.Cleanup(func() { _ = p.conn.Close() })
	for _, s := range steps {
		if err := p.play(s); err != nil {
			t.Fatalf("%s:%d: %v\nuntil then:\n%s", file, s.line, err, p.transcript.String())
		}
	}
	if err := p.end(); err != nil {
		t.Fatalf("%s: at the end: %v\nuntil then:\n%s", file, err, p.transcript.String())
	}
}

type stepKind int

const (
	stepSend stepKind = iota
	stepFlush
	stepExpect
	stepExpectMore
	stepTLS
	stepEOF
	stepClose
)

type dialogStep struct {
	kind stepKind
	line int
	text string // octets to send, or the pattern
}

// parseDialog turns the text of a dialog file into steps. Errors begin with the
// line's number.
func parseDialog(text string, vars map[string]string) ([]dialogStep, error) {
	var steps []dialogStep
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		step, err := parseStep(line, vars)
		if err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
		step.line = i + 1
		steps = append(steps, step)
	}
	return steps, nil
}

func parseStep(line string, vars map[string]string) (dialogStep, error) {
	switch line {
	case "FLUSH":
		return dialogStep{kind: stepFlush}, nil
	case "STARTTLS":
		return dialogStep{kind: stepTLS}, nil
	case "EOF":
		return dialogStep{kind: stepEOF}, nil
	case "CLOSE":
		return dialogStep{kind: stepClose}, nil
	case "S: ...":
		return dialogStep{kind: stepExpectMore}, nil
	}
	line, err := expandVars(line, vars)
	if err != nil {
		return dialogStep{}, err
	}
	switch {
	case line == "C:" || strings.HasPrefix(line, "C: "):
		return dialogStep{kind: stepSend, text: strings.TrimPrefix(line[2:], " ") + "\r\n"}, nil
	case strings.HasPrefix(line, "C*"):
		return parseRepeated(line)
	case strings.HasPrefix(line, "C! "):
		raw, err := unescape(line[3:])
		return dialogStep{kind: stepSend, text: raw}, err
	case strings.HasPrefix(line, "S: "):
		return dialogStep{kind: stepExpect, text: line[3:]}, nil
	}
	return dialogStep{}, fmt.Errorf("not a step: %q", line)
}

// parseRepeated parses "C*20: text".
func parseRepeated(line string) (dialogStep, error) {
	count, text, ok := strings.Cut(line[2:], ":")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 1 || n > 1e6 {
		return dialogStep{}, fmt.Errorf("not a count: %q", line)
	}
	return dialogStep{kind: stepSend, text: strings.Repeat(strings.TrimPrefix(text, " ")+"\r\n", n)}, nil
}

func expandVars(line string, vars map[string]string) (string, error) {
	out := line
	for {
		before, rest, ok := strings.Cut(out, "${")
		if !ok {
			return out, nil
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			return out, errors.New("${ without }")
		}
		value, known := vars[name]
		if !known {
			return out, fmt.Errorf("${%s} has no value", name)
		}
		out = before + value + after
	}
}

// unescape resolves \r \n \t \0 \\ and \xHH.
func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", errors.New("backslash at the end")
		}
		switch s[i] {
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '0':
			b.WriteByte(0)
		case '\\':
			b.WriteByte('\\')
		case 'x':
			if i+2 >= len(s) {
				return "", errors.New(`\x needs two digits`)
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf(`\x: %w`, err)
			}
			b.WriteByte(byte(v))
			i += 2
		default:
			return "", fmt.Errorf(`unknown escape \%c`, s[i])
		}
	}
	return b.String(), nil
}

// player is a Dialog in progress.
type player struct {
	Dialog
	conn       net.Conn
	r          *bufio.Reader
	unsent     []byte
	closed     bool
	transcript strings.Builder
}

func newPlayer(d Dialog, conn net.Conn) *player {
	if d.Timeout == 0 {
		d.Timeout = patience
	}
	if d.TLS == nil {
		d.TLS = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	}
	return &player{Dialog: d, conn: conn, r: bufio.NewReader(conn)}
}

func (p *player) play(s dialogStep) error {
	if s.kind == stepSend {
		p.unsent = append(p.unsent, s.text...)
		return nil
	}
	if err := p.conn.SetDeadline(time.Now().Add(p.Timeout)); err != nil {
		return err
	}
	if err := p.flush(); err != nil {
		return err
	}
	switch s.kind {
	case stepExpect:
		return p.expect(s.text)
	case stepExpectMore:
		return p.expectMore()
	case stepTLS:
		return p.startTLS()
	case stepEOF:
		return p.expectEOF()
	case stepClose:
		p.closed = true
		return p.conn.Close()
	}
	return nil
}

// flush writes what was gathered. A server that closes early makes the write fail;
// what it said before is worth more than that error, so the error waits for the
// next read.
func (p *player) flush() error {
	if len(p.unsent) == 0 {
		return nil
	}
	fmt.Fprintf(&p.transcript, "  C: %s\n", shorten(p.unsent))
	_, err := p.conn.Write(p.unsent)
	p.unsent = p.unsent[:0]
	if isClosed(err) {
		return nil
	}
	return err
}

func (p *player) expect(pattern string) error {
	line, err := p.line()
	if err != nil {
		return fmt.Errorf("want %q, got %w", pattern, err)
	}
	if !match(pattern, line) {
		return fmt.Errorf("want %q, got %q", pattern, line)
	}
	return nil
}

func (p *player) expectMore() error {
	for {
		head, err := p.r.Peek(4)
		if err != nil {
			return fmt.Errorf("want a reply, got %w", err)
		}
		if head[3] != '-' {
			return nil
		}
		if _, err := p.line(); err != nil {
			return err
		}
	}
}

// line reads the server's next line; only CRLF ends it.
func (p *player) line() (string, error) {
	raw, err := p.r.ReadString('\n')
	if raw != "" {
		fmt.Fprintf(&p.transcript, "  S: %s\n", shorten([]byte(raw)))
	}
	if err != nil {
		return raw, fmt.Errorf("%q and then %w", raw, err)
	}
	text, ok := strings.CutSuffix(raw, "\r\n")
	if !ok {
		return raw, fmt.Errorf("%q, a line without CRLF", raw)
	}
	return text, nil
}

func (p *player) startTLS() error {
	if n := p.r.Buffered(); n > 0 {
		return fmt.Errorf("%d octets came before the handshake", n)
	}
	secured := tls.Client(p.conn, p.TLS)
	if err := secured.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	p.conn, p.r = secured, bufio.NewReader(secured)
	p.transcript.WriteString("  (TLS)\n")
	return nil
}

func (p *player) expectEOF() error {
	if _, err := p.r.Peek(1); err == nil {
		rest, _ := p.r.Peek(p.r.Buffered())
		return fmt.Errorf("want the end, got %s", shorten(rest))
	} else if !isClosed(err) {
		return fmt.Errorf("want the end, got %w", err)
	}
	p.closed = true
	return p.conn.Close()
}

func (p *player) end() error {
	if p.closed {
		return nil
	}
	if err := p.flush(); err != nil {
		return err
	}
	if n := p.r.Buffered(); n > 0 {
		rest, _ := p.r.Peek(n)
		return fmt.Errorf("unread: %q", rest)
	}
	return nil
}

// isClosed reports an error that means that the other side has closed. One that
// closes with octets unread resets the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// match reports whether line is pattern, in which * stands for any run of
// characters.
func match(pattern, line string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == line
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(line) < len(first)+len(last) || !strings.HasPrefix(line, first) || !strings.HasSuffix(line, last) {
		return false
	}
	middle := line[len(first) : len(line)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(middle, part)
		if i < 0 {
			return false
		}
		middle = middle[i+len(part):]
	}
	return true
}

func shorten(b []byte) string {
	const most = 300
	if len(b) > most {
		return strconv.Quote(string(b[:most])) + fmt.Sprintf(" … (%d octets)", len(b))
	}
	return strconv.Quote(string(b))
}
