package rig

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/serve"
)

// Received is one message whose final dot the sink has read.
type Received struct {
	Serial  string // names this reception in the reply to the dot
	Hello   string // who the client said it is
	From    string
	To      []string
	ID      string   // of X-Load-Id, "" when there is none
	Head    string   // what stood before X-Load-Id
	Sum     [32]byte // SHA-256 of the text from X-Load-Id on
	Bounce  *Bounce  // of the null path
	At      time.Time
	Replied bool // the reply to the dot was written without an error
}

// Bounce is a failure notice (RFC 3464).
type Bounce struct {
	MessageID string   // its own
	About     string   // the X-Load-Id of the message returned in it
	Failed    []string // its Final-Recipient fields
	Valid     bool     // it is a multipart/report of delivery-status with its three parts
}

// RefusedLocal is how the local parts begin that the sink answers 550.
const RefusedLocal = "no-"

// Sink is an upstream that takes every message and writes it down. It is safe for
// concurrent use.
type Sink struct {
	server *serve.Server
	delay  time.Duration

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	holds    map[hold]chan struct{}
	held     map[hold]int
	received []Received
}

// hold is a step of the sessions with one client.
type hold struct{ step, hello string }

// The steps at which sessions can be held.
const (
	BeforeData  = "data"  // DATA was read, 354 was not said
	BeforeReply = "reply" // the final dot was read and written down, nothing was said
)

// NewSink listens on loopback, on addr or a port of its own, until the end of the
// test. It takes up to delay, at random, before it answers a dot.
func NewSink(t testing.TB, addr string, delay time.Duration) *Sink {
	t.Helper()
	var listener net.Listener
	var err error
	if addr == "" {
		listener, err = serve.Listen("127.0.0.1")
	} else {
		listener, err = net.Listen("tcp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &Sink{delay: delay, changed: make(chan struct{}), holds: make(map[hold]chan struct{}), held: make(map[hold]int)}
	s.server = serve.Start(listener, func(conn net.Conn) {
		(&sinkSession{sink: s, conn: conn, in: bufio.NewReader(conn)}).serve()
	})
	t.Cleanup(s.close)
	return s
}

// Addr is where the sink listens.
func (s *Sink) Addr() string { return s.server.Addr().String() }

// Port is the port of Addr.
func (s *Sink) Port() int { return s.server.Addr().Port }

func (s *Sink) close() {
	s.change(func() {
		for at, release := range s.holds {
			close(release)
			delete(s.holds, at)
		}
	})
	s.server.Close()
}

func (s *Sink) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Hold makes the sessions with a client wait at a step until release is called.
func (s *Sink) Hold(step, hello string) (release func()) {
	at, wait := hold{step, hello}, make(chan struct{})
	s.change(func() { s.holds[at] = wait })
	return func() {
		s.change(func() {
			if s.holds[at] == wait {
				close(wait)
				delete(s.holds, at)
			}
		})
	}
}

// pass waits at a step while it is held.
func (s *Sink) pass(at hold) {
	s.mu.Lock()
	wait := s.holds[at]
	s.mu.Unlock()
	if wait == nil {
		return
	}
	s.change(func() { s.held[at]++ })
	<-wait
	s.change(func() { s.held[at]-- })
}

// WaitHeld returns when n sessions with a client wait at a step, false if that
// takes too long.
func (s *Sink) WaitHeld(step, hello string, n int) bool {
	return s.wait(func() bool { return s.held[hold{step, hello}] >= n })
}

// WaitReceived returns when n messages were received, false if that takes too long.
func (s *Sink) WaitReceived(n int) bool {
	return s.wait(func() bool { return len(s.received) >= n })
}

// WaitReceivedBy returns when so many different messages were received from a
// client, false if that takes too long.
func (s *Sink) WaitReceivedBy(hello string, messages int) bool {
	return s.wait(func() bool {
		ids := map[string]bool{}
		for i := range s.received {
			if s.received[i].Hello == hello {
				ids[s.received[i].ID] = true
			}
		}
		return len(ids) >= messages
	})
}

// wait waits for cond, which is asked under mu.
func (s *Sink) wait(cond func() bool) bool {
	patience := time.NewTimer(Patience)
	defer patience.Stop()
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-patience.C:
			return false
		}
	}
}

// Received returns what was received so far, in order.
func (s *Sink) Received() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.received)
}

// sinkSession is one connection.
type sinkSession struct {
	sink  *Sink
	conn  net.Conn
	in    *bufio.Reader
	hello string
	from  string
	to    []string
	open  bool // MAIL was answered 250
}

var errQuit = errors.New("quit")

func (c *sinkSession) serve() {
	if c.say("220 sink.test ESMTP") != nil {
		return
	}
	for {
		line, err := c.in.ReadString('\n')
		if err != nil || !strings.HasSuffix(line, "\r\n") {
			return
		}
		if c.command(strings.TrimSuffix(line, "\r\n")) != nil {
			return
		}
	}
}

func (c *sinkSession) say(line string) error {
	_, err := c.conn.Write([]byte(line + "\r\n"))
	return err
}

func (c *sinkSession) command(line string) error {
	verb, args, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO":
		c.hello = args
		return c.say("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 104857600")
	case "MAIL":
		c.from, c.to, c.open = path(args), nil, true
		return c.say("250 2.1.0 sender taken")
	case "RCPT":
		return c.rcpt(path(args))
	case "DATA":
		return c.data()
	case "RSET":
		c.open = false
		return c.say("250 2.0.0 forgotten")
	case "QUIT":
		_ = c.say("221 2.0.0 bye")
		return errQuit
	}
	return c.say("250 2.0.0 done")
}

func (c *sinkSession) rcpt(to string) error {
	switch {
	case !c.open:
		return c.say("503 5.5.1 MAIL comes first")
	case strings.HasPrefix(to, RefusedLocal):
		return c.say("550 5.1.1 nobody of that name")
	}
	c.to = append(c.to, to)
	return c.say("250 2.1.5 recipient taken")
}

// path is the address between the angle brackets of MAIL or RCPT.
func path(args string) string {
	_, rest, _ := strings.Cut(args, "<")
	address, _, _ := strings.Cut(rest, ">")
	return address
}

func (c *sinkSession) data() error {
	if !c.open || len(c.to) == 0 {
		return c.say("503 5.5.1 MAIL and RCPT come first")
	}
	c.sink.pass(hold{BeforeData, c.hello})
	if err := c.say("354 go on"); err != nil {
		return err
	}
	m := Received{Hello: c.hello, From: c.from, To: c.to}
	if err := c.read(&m); err != nil {
		return err
	}
	c.open = false
	n := c.sink.record(m)
	c.sink.pass(hold{BeforeReply, c.hello})
	if c.sink.delay > 0 {
		time.Sleep(rand.N(c.sink.delay)) // a server that has work to do
	}
	if err := c.say("250 2.0.0 taken as " + serial(n)); err != nil {
		return err
	}
	c.sink.change(func() { c.sink.received[n].Replied = true })
	return nil
}

func serial(n int) string { return "s" + strconv.Itoa(n) + "s" }

func (s *Sink) record(m Received) (n int) {
	m.At = time.Now()
	s.change(func() {
		n = len(s.received)
		m.Serial = serial(n)
		s.received = append(s.received, m)
	})
	return n
}

// read reads a message to its end, which is CRLF.CRLF and nothing else.
func (c *sinkSession) read(m *Received) error {
	var head, all bytes.Buffer
	hash := sha256.New()
	inText, afterCRLF, whole := false, true, true
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("data: %w", err)
		}
		if whole && afterCRLF && line[0] == '.' {
			if string(line) == ".\r\n" {
				break
			}
			line = line[1:]
		}
		if !inText && whole && bytes.HasPrefix(line, []byte("X-Load-Id: ")) && m.From != "" {
			inText = true
			m.ID = strings.TrimSpace(string(line[len("X-Load-Id: "):]))
		}
		if inText {
			hash.Write(line)
		} else {
			head.Write(line)
		}
		if m.From == "" {
			all.Write(line)
		}
		whole = err == nil
		afterCRLF = whole && bytes.HasSuffix(line, []byte("\r\n"))
	}
	m.Head = head.String()
	hash.Sum(m.Sum[:0])
	if m.From == "" {
		m.Bounce = parseBounce(all.String())
	}
	return nil
}

var (
	noticeID  = regexp.MustCompile(`(?m)^Message-ID: (\S+)\r$`)
	about     = regexp.MustCompile(`(?m)^X-Load-Id: (\S+)\r$`)
	failed    = regexp.MustCompile(`(?m)^Final-Recipient: rfc822; (\S+)\r\nAction: failed\r$`)
	reportOf  = regexp.MustCompile(`(?m)^Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="([^"\r\n]+)"\r$`)
	reportHas = regexp.MustCompile(`(?m)^Content-Type: message/delivery-status\r$`)
)

// parseBounce reads what a notice of the relay says (RFC 3464, RFC 6522).
func parseBounce(text string) *Bounce {
	b := &Bounce{MessageID: first(noticeID, text), About: first(about, text)}
	for _, match := range failed.FindAllStringSubmatch(text, -1) {
		b.Failed = append(b.Failed, match[1])
	}
	if boundary := first(reportOf, text); boundary != "" {
		b.Valid = strings.Count(text, "\r\n--"+boundary+"\r\n") == 3 && strings.HasSuffix(text, "\r\n--"+boundary+"--\r\n") &&
			reportHas.MatchString(text)
	}
	return b
}

func first(pattern *regexp.Regexp, text string) string {
	match := pattern.FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	return match[1]
}
