package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// A Message is one that reached a [Capture].
type Message struct {
	From string   // envelope sender; "" is <>
	To   []string // envelope recipients, in the order of RCPT
	TLS  bool     // the connection was encrypted
	User string   // who authenticated, if anybody
	Data []byte   // as it came over the wire, dot-stuffing undone
}

// CaptureConfig says what a [Capture] asks of its clients. The zero value takes
// everything in clear.
type CaptureConfig struct {
	TLS      *tls.Config // offers STARTTLS, and wants AUTH; nil: clear text
	Implicit bool        // TLS from the first octet instead of STARTTLS
	User     string      // the one account, when TLS is set
	Password string
}

// A Capture is an SMTP server on 127.0.0.1 that keeps what it is sent.
type Capture struct {
	config   CaptureConfig
	listener net.Listener
	server   *smtp.Server
	arrived  chan Message
	served   sync.WaitGroup
}

// captureDepth is how many messages may arrive before somebody takes them;
// further clients wait.
const captureDepth = 10_000

// captureLine is the longest line taken, in octets: whether a long one comes through
// is what tests want to see.
const captureLine = 1 << 20

// StartCapture starts a server that [Capture.Close] ends.
func StartCapture(config CaptureConfig) (*Capture, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for captured mail: %w", err)
	}
	c := &Capture{config: config, listener: listener, arrived: make(chan Message, captureDepth)}
	if config.Implicit {
		listener = tls.NewListener(listener, config.TLS)
	}
	c.server = smtp.NewServer(smtp.BackendFunc(func(conn *smtp.Conn) (smtp.Session, error) {
		return &captureSession{capture: c, conn: conn}, nil
	}))
	c.server.Domain = "capture.example"
	c.server.TLSConfig = config.TLS
	c.server.EnableSMTPUTF8 = true
	c.server.MaxLineLength = captureLine
	c.server.ReadTimeout, c.server.WriteTimeout = time.Minute, time.Minute
	c.server.ErrorLog = quiet{}
	c.served.Go(func() { _ = c.server.Serve(listener) }) // ends by Close
	return c, nil
}

// Port is the port on 127.0.0.1.
func (c *Capture) Port() int { return c.listener.Addr().(*net.TCPAddr).Port }

// Next is the oldest message that nobody took yet; it waits for one.
func (c *Capture) Next(ctx context.Context) (Message, error) {
	select {
	case m := <-c.arrived:
		return m, nil
	case <-ctx.Done():
		return Message{}, fmt.Errorf("no message captured: %w", ctx.Err())
	}
}

// Close ends the server and its connections.
func (c *Capture) Close() {
	_ = c.server.Close() // there is nobody to tell
	c.served.Wait()
}

// captureSession is one connection to a Capture.
type captureSession struct {
	capture *Capture
	conn    *smtp.Conn
	user    string
	mail    Message
}

var (
	errNoAuth      = &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
	errWrongSecret = &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Authentication failed"}
)

func (s *captureSession) AuthMechanisms() []string {
	if s.capture.config.TLS == nil {
		return nil
	}
	return []string{sasl.Plain, sasl.Login}
}

func (s *captureSession) Auth(mechanism string) (sasl.Server, error) {
	verify := func(user, password string) error {
		if user != s.capture.config.User || password != s.capture.config.Password {
			return errWrongSecret
		}
		s.user = user
		return nil
	}
	if mechanism == sasl.Login {
		return &loginServer{verify: verify}, nil
	}
	return sasl.NewPlainServer(func(_, user, password string) error { return verify(user, password) }), nil
}

func (s *captureSession) Mail(from string, _ *smtp.MailOptions) error {
	if s.capture.config.TLS != nil && s.user == "" {
		return errNoAuth
	}
	_, encrypted := s.conn.TLSConnectionState()
	s.mail = Message{From: from, TLS: encrypted, User: s.user}
	return nil
}

func (s *captureSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mail.To = append(s.mail.To, to)
	return nil
}

func (s *captureSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.mail.Data = data
	s.capture.arrived <- s.mail
	return nil
}

func (s *captureSession) Reset()        { s.mail = Message{} }
func (s *captureSession) Logout() error { return nil }

// loginServer is the server's half of AUTH LOGIN (draft-murchison-sasl-login-00).
type loginServer struct {
	verify func(user, password string) error
	step   int
	user   string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if l.step == 0 && response == nil {
		return []byte("Username:"), false, nil
	}
	l.step++
	switch l.step {
	case 1:
		l.user = string(response)
		return []byte("Password:"), false, nil
	case 2:
		return nil, true, l.verify(l.user, string(response))
	}
	return nil, false, errors.New("AUTH LOGIN has two answers")
}

// quiet drops the server's complaints about connections that tests cut.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}
