package smtptest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"hash"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Message is one message whose final dot a Server read.
type Message struct {
	Conn     int      // number of the connection it came by, from 1
	TLS      bool     // under TLS
	Hello    string   // the client's name in EHLO
	User     string   // who had authenticated
	Mail     string   // arguments of MAIL, "FROM:<a@b> SIZE=10"
	Rcpts    []string // arguments of each RCPT that was accepted, "TO:<c@d> NOTIFY=NEVER"
	Data     []byte   // the octets without dot-stuffing; nil with Config.DiscardBodies
	Size     int64
	Sum      [sha256.Size]byte
	Reply    string // what was said to the final dot so far, octets as they are
	Kept     bool   // a complete 2yz reply was said, or Keep
	Received time.Time
}

// From returns the address in MAIL, without brackets.
func (m Message) From() string { return bracketed(m.Mail) }

// To returns the addresses in RCPT, without brackets.
func (m Message) To() []string {
	out := make([]string, len(m.Rcpts))
	for i, r := range m.Rcpts {
		out[i] = bracketed(r)
	}
	return out
}

// bracketed returns what is between the first < and the > that ends the path; a >
// inside a quoted local part does not.
func bracketed(args string) string {
	_, path, ok := strings.Cut(args, "<")
	if !ok {
		return args
	}
	quoted := false
	for i := 0; i < len(path); i++ {
		switch {
		case quoted && path[i] == '\\':
			i++
		case path[i] == '"':
			quoted = !quoted
		case path[i] == '>' && !quoted:
			return path[:i]
		}
	}
	return path
}

// session is one connection of a Server.
type session struct {
	server *Server
	raw    net.Conn // the connection under TLS
	nc     net.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	state  Session

	normal  string   // the normal reply of the phase we are in
	said    []byte   // what was said in this phase
	message *Message // the message of this phase, at the final dot
	closed  bool
}

func newSession(s *Server, nc net.Conn, number int) *session {
	c := &session{server: s, raw: nc, state: Session{Conn: number, Remote: nc.RemoteAddr().String()}}
	c.wrap(nc)
	return c
}

func (c *session) wrap(nc net.Conn) {
	c.nc, c.r, c.w = nc, bufio.NewReaderSize(nc, 16<<10), bufio.NewWriter(nc)
}

// act goes through a phase and returns the code that was said, 0 for none.
func (c *session) act(phase Phase, normal string) int {
	c.normal, c.said = normal, c.said[:0]
	var a Action
	if hook := c.server.reach(phase); hook != nil {
		state := c.state
		state.Rcpts = slices.Clone(state.Rcpts)
		a = hook(state)
	}
	a.run(c)
	return saidCode(c.said)
}

func saidCode(said []byte) int {
	if len(said) < 3 {
		return 0
	}
	code, err := strconv.Atoi(string(said[:3]))
	if err != nil {
		return 0
	}
	return code
}

// sayNormal says the normal reply; it leaves with others of a pipelined group.
func (c *session) sayNormal() {
	if c.normal == "" {
		return
	}
	c.note(c.normal)
	_, _ = c.w.WriteString(c.normal)
}

// say writes octets immediately.
func (c *session) say(octets string) {
	c.note(octets)
	c.flush()
	if _, err := c.nc.Write([]byte(octets)); err != nil {
		c.close()
	}
}

// note records what is about to be said, before the peer can know it.
func (c *session) note(octets string) {
	if room := 4096 - len(c.said); room > 0 {
		c.said = append(c.said, octets[:min(room, len(octets))]...)
	}
	if c.message == nil {
		return
	}
	c.server.record(func() {
		c.message.Reply = string(c.said)
		if len(c.said) > 3 && c.said[0] == '2' && bytes.Contains(c.said, []byte("\r\n")) {
			c.server.keep(c.message)
		}
	})
}

func (c *session) keep() {
	if c.message != nil {
		c.server.record(func() { c.server.keep(c.message) })
	}
}

func (c *session) flush() {
	if err := c.w.Flush(); err != nil {
		c.close()
	}
}

func (c *session) close() {
	if !c.closed {
		_ = c.w.Flush()
	}
	c.closed = true
	_ = c.nc.Close()
}

// abort closes without a word, not even TLS's.
func (c *session) abort() {
	c.closed = true
	_ = c.raw.Close()
}

func (c *session) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.server.done:
		c.close()
	}
}

// serve holds the whole conversation.
func (c *session) serve() {
	c.act(PhaseConnect, "")
	if c.closed || c.server.cfg.Implicit && !c.handshake() {
		return
	}
	c.act(PhaseBanner, "220 "+c.server.cfg.Hostname+" ESMTP smtptest\r\n")
	for !c.closed {
		line, ok := c.line()
		if !ok {
			return
		}
		c.state.Commands++
		c.state.Command = line
		c.command(line)
	}
}

// line reads one line; what is buffered to be said leaves before a read that
// waits (RFC 2920 section 3.2).
func (c *session) line() (string, bool) {
	if c.r.Buffered() == 0 {
		c.flush()
	}
	line, err := c.r.ReadString('\n')
	if err != nil || len(line) > 64<<10 {
		return "", false
	}
	return strings.TrimRight(line, "\r\n"), true
}

func (c *session) command(line string) {
	verb, args, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO":
		c.hello(args, true)
	case "HELO":
		c.hello(args, false)
	case "STARTTLS":
		c.startTLS()
	case "AUTH":
		c.auth(args)
	case "MAIL":
		c.mail(args)
	case "RCPT":
		c.rcpt(args)
	case "DATA":
		c.data()
	case "RSET":
		c.act(PhaseReset, "250 2.0.0 ok\r\n")
		c.endTransaction()
	case "NOOP":
		c.plain("250 2.0.0 ok\r\n")
	case "QUIT":
		c.act(PhaseQuit, "221 2.0.0 bye\r\n")
		c.close()
	default:
		c.plain("500 5.5.1 unknown\r\n")
	}
}

func (c *session) plain(reply string) {
	c.normal = reply
	c.said = c.said[:0]
	c.sayNormal()
}

func (c *session) hello(name string, extended bool) {
	c.endTransaction()
	reply := "250 " + c.server.cfg.Hostname + "\r\n"
	if extended {
		reply = ehloReply(c.server.cfg.Hostname, c.extensions())
	}
	if c.act(PhaseHello, reply)/100 == 2 {
		c.state.Hello = name
	}
}

func (c *session) extensions() []string {
	cfg := c.server.cfg
	out := cfg.Extensions
	if c.state.TLS && cfg.ExtensionsTLS != nil {
		out = cfg.ExtensionsTLS
	}
	out = slices.Clone(out)
	if cfg.TLS != nil && !c.state.TLS {
		out = append(out, "STARTTLS")
	}
	if cfg.Users != nil && (c.state.TLS || !cfg.AuthOnly) {
		out = append(out, "AUTH PLAIN LOGIN")
	}
	if cfg.Tokens != nil && (c.state.TLS || !cfg.AuthOnly) {
		out = append(out, "AUTH XOAUTH2 OAUTHBEARER")
	}
	return out
}

func ehloReply(hostname string, extensions []string) string {
	lines := append([]string{hostname}, extensions...)
	var b strings.Builder
	for i, line := range lines {
		b.WriteString("250")
		if i == len(lines)-1 {
			b.WriteByte(' ')
		} else {
			b.WriteByte('-')
		}
		b.WriteString(line + "\r\n")
	}
	return b.String()
}

func (c *session) startTLS() {
	normal := "220 2.0.0 go ahead\r\n"
	if c.server.cfg.TLS == nil || c.state.TLS {
		normal = "502 5.5.1 no\r\n"
	}
	if c.act(PhaseStartTLS, normal) == 220 && !c.closed {
		c.flush()
		c.handshake()
	}
}

// handshake runs the TLS handshake and forgets what was said in clear.
func (c *session) handshake() bool {
	c.act(PhaseHandshake, "")
	if c.closed || c.server.cfg.TLS == nil {
		c.close()
		return false
	}
	secured := tls.Server(c.raw, c.server.cfg.TLS)
	if err := secured.Handshake(); err != nil {
		c.close()
		return false
	}
	c.wrap(secured)
	c.state = Session{Conn: c.state.Conn, Remote: c.state.Remote, Commands: c.state.Commands, TLS: true}
	return true
}

// auth holds AUTH PLAIN, LOGIN, XOAUTH2 or OAUTHBEARER, with or without an initial response.
func (c *session) auth(args string) {
	mech, initial, _ := strings.Cut(args, " ")
	exchange := authExchange{users: c.server.cfg.Users, tokens: c.server.cfg.Tokens, mech: strings.ToUpper(mech)}
	if exchange.users == nil && exchange.tokens == nil || c.server.cfg.AuthOnly && !c.state.TLS {
		exchange.mech = ""
	}
	var normal string
	if initial == "" {
		normal = exchange.start()
	} else {
		normal = exchange.next(initial)
	}
	code := c.act(PhaseAuth, normal)
	for code == 334 && !c.closed {
		line, ok := c.line()
		if !ok {
			c.close()
			return
		}
		c.state.Command = line
		code = c.act(PhaseAuthNext, exchange.next(line))
	}
	if code == 235 {
		c.state.User = exchange.user
	}
}

// authExchange is the server's side of the mechanisms.
type authExchange struct {
	users  map[string]string
	tokens func(user, token string) bool
	mech   string
	named  bool // LOGIN: the name was given
	reason bool // XOAUTH2 and OAUTHBEARER: the reason of a refusal was given
	user   string
}

const (
	authBad     = "535 5.7.8 bad credentials\r\n"
	authGood    = "235 2.7.0 welcome\r\n"
	authUnknown = "504 5.5.4 unknown mechanism\r\n"
)

func (a *authExchange) start() string {
	switch a.mech {
	case "PLAIN":
		return "334 \r\n"
	case "LOGIN":
		return "334 " + base64.StdEncoding.EncodeToString([]byte("Username:")) + "\r\n"
	}
	return authUnknown
}

func (a *authExchange) next(line string) string {
	if line == "*" {
		return "501 5.7.0 cancelled\r\n"
	}
	if line == "=" {
		line = ""
	}
	response, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		return "501 5.5.2 not base64\r\n"
	}
	switch {
	case a.mech == "PLAIN":
		parts := strings.Split(string(response), "\x00")
		if len(parts) != 3 {
			return "501 5.5.2 not PLAIN\r\n"
		}
		a.user = parts[1]
		return a.judge(parts[2])
	case a.mech == "LOGIN" && !a.named:
		a.named, a.user = true, string(response)
		return "334 " + base64.StdEncoding.EncodeToString([]byte("Password:")) + "\r\n"
	case a.mech == "LOGIN":
		return a.judge(string(response))
	case (a.mech == "XOAUTH2" || a.mech == "OAUTHBEARER") && a.tokens != nil:
		return a.token(string(response))
	}
	return authUnknown
}

// token judges the response of XOAUTH2 or OAUTHBEARER, and the answer to the reason of a
// refusal (RFC 7628 section 3.2.3).
func (a *authExchange) token(response string) string {
	if a.reason {
		if a.mech == "XOAUTH2" && response == "" || a.mech == "OAUTHBEARER" && response == "\x01" {
			return authBad
		}
		return "501 5.5.2 the reason was not answered\r\n"
	}
	fields := strings.Split(response, "\x01")
	user := strings.TrimPrefix(fields[0], "user=")
	if a.mech == "OAUTHBEARER" {
		user = strings.TrimSuffix(strings.TrimPrefix(fields[0], "n,a="), ",")
	}
	for _, field := range fields {
		if token, is := strings.CutPrefix(field, "auth=Bearer "); is && strings.HasSuffix(response, "\x01\x01") && a.tokens(user, token) {
			a.user = user
			return authGood
		}
	}
	a.reason = true
	return "334 " + base64.StdEncoding.EncodeToString([]byte(`{"status":"401","schemes":"bearer","scope":"https://mail.example/"}`)) + "\r\n"
}

func (a *authExchange) judge(password string) string {
	if want, ok := a.users[a.user]; ok && want == password {
		return authGood
	}
	return authBad
}

func (c *session) mail(args string) {
	normal := "250 2.1.0 ok\r\n"
	switch {
	case c.state.Mail != "":
		normal = "503 5.5.1 nested MAIL\r\n"
	case (c.server.cfg.Users != nil || c.server.cfg.Tokens != nil) && c.state.User == "":
		normal = "530 5.7.0 authentication required\r\n"
	}
	if c.act(PhaseMail, normal)/100 == 2 {
		c.endTransaction()
		c.state.Mail = args
	}
}

func (c *session) rcpt(args string) {
	normal := "250 2.1.5 ok\r\n"
	if c.state.Mail == "" {
		normal = "503 5.5.1 MAIL first\r\n"
	}
	if c.act(PhaseRcpt, normal)/100 == 2 {
		c.state.Rcpts = append(c.state.Rcpts, args)
	}
	c.state.Rcpt++
}

func (c *session) data() {
	normal := "354 go ahead\r\n"
	switch {
	case c.state.Mail == "":
		normal = "503 5.5.1 MAIL first\r\n"
	case len(c.state.Rcpts) == 0:
		normal = "554 5.5.1 no valid recipients\r\n"
	}
	if c.act(PhaseData, normal) != 354 || c.closed {
		return
	}
	c.flush()
	c.act(PhaseBody, "")
	if c.closed {
		return
	}
	m := &Message{
		Conn: c.state.Conn, TLS: c.state.TLS, Hello: c.state.Hello, User: c.state.User,
		Mail: c.state.Mail, Rcpts: slices.Clone(c.state.Rcpts),
	}
	if !c.readBody(m) {
		c.close()
		return
	}
	m.Received = time.Now()
	c.server.record(func() { c.server.messages = append(c.server.messages, m) })
	c.message = m
	c.act(PhaseDot, "250 2.0.0 queued\r\n")
	c.message = nil
	c.state.Messages++
	c.endTransaction()
}

func (c *session) endTransaction() {
	c.state.Mail, c.state.Rcpts, c.state.Rcpt = "", nil, 0
}

// readBody reads to CRLF.CRLF, and to nothing less, and takes the stuffed dots away.
func (c *session) readBody(m *Message) bool {
	sum := sha256.New()
	var before, last byte = '\r', '\n' // the two octets before this chunk
	for {
		chunk, err := c.r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return false
		}
		text := chunk
		if before == '\r' && last == '\n' && chunk[0] == '.' {
			if bytes.Equal(chunk, []byte(".\r\n")) {
				sum.Sum(m.Sum[:0])
				return true
			}
			text = chunk[1:]
		}
		m.add(sum, text, c.server.cfg.DiscardBodies)
		before, last = last, chunk[len(chunk)-1]
		if n := len(chunk); n > 1 {
			before = chunk[n-2]
		}
	}
}

func (m *Message) add(sum hash.Hash, text []byte, discard bool) {
	m.Size += int64(len(text))
	_, _ = sum.Write(text)
	if !discard {
		m.Data = append(m.Data, text...)
	}
}
