// Package capture is a mail server that takes everything and keeps nothing: the
// upstream of the demo, which shows what would have gone out. It offers no TLS and
// no AUTH and is only for loopback addresses.
package capture

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"postern/internal/serve"
	"postern/relay/smtp"
)

// Message is one message that arrived.
type Message struct {
	From smtp.Address
	To   []smtp.Address
	Data []byte
}

const (
	idleLimit  = 5 * time.Minute
	maxMessage = 64 << 20
)

// Listen opens addr and calls arrived, from several goroutines, for each message
// before it is answered 250.
func Listen(addr string, arrived func(Message)) (*serve.Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return serve.Start(ln, func(conn net.Conn) {
		_ = (&session{conn: conn, in: smtp.NewReader(conn), arrived: arrived}).run()
	}), nil
}

// session is one connection.
type session struct {
	conn    net.Conn
	in      *smtp.Reader
	out     []byte
	arrived func(Message)
	mail    bool
	msg     Message
}

var errQuit = errors.New("quit")

func (s *session) run() error {
	s.say(smtp.Reply{Code: 220, Text: "capture ESMTP"})
	for {
		if s.in.Buffered() == 0 {
			if err := s.flush(); err != nil {
				return err
			}
		}
		_ = s.conn.SetDeadline(time.Now().Add(idleLimit))
		line, err := s.in.Line(smtp.MaxCommandLine)
		var refusal *smtp.Error
		if errors.As(err, &refusal) {
			s.say(refusal.Reply)
			continue
		}
		if err != nil {
			return err
		}
		if err := s.command(line); err != nil {
			return err
		}
	}
}

func (s *session) say(r smtp.Reply) { s.out = r.Append(s.out) }

func (s *session) flush() error {
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	return err
}

func (s *session) command(line []byte) error {
	cmd, err := smtp.ParseCommand(line)
	if err != nil {
		return s.refuse(err)
	}
	switch cmd.Verb {
	case "EHLO":
		s.say(smtp.Reply{Code: 250, Text: "capture\nPIPELINING\n8BITMIME\nSMTPUTF8\nSIZE " + fmt.Sprint(maxMessage)})
	case "HELO":
		s.say(smtp.Reply{Code: 250, Text: "capture"})
	case "MAIL":
		mail, err := smtp.ParseMail(cmd.Args)
		if err != nil {
			return s.refuse(err)
		}
		s.mail, s.msg = true, Message{From: mail.From}
		s.say(smtp.OK(250, 1, 0, "sender taken"))
	case "RCPT":
		rcpt, err := smtp.ParseRcpt(cmd.Args, true)
		if err != nil {
			return s.refuse(err)
		}
		if !s.mail {
			s.say(smtp.Permanent(503, 5, 1, "MAIL comes first"))
			return nil
		}
		s.msg.To = append(s.msg.To, rcpt.To)
		s.say(smtp.OK(250, 1, 5, "recipient taken"))
	case "DATA":
		return s.data()
	case "RSET":
		s.mail = false
		s.say(smtp.OK(250, 0, 0, "forgotten"))
	case "NOOP":
		s.say(smtp.OK(250, 0, 0, "nothing done"))
	case "QUIT":
		s.say(smtp.OK(221, 0, 0, "bye"))
		_ = s.flush()
		return errQuit
	default:
		s.say(smtp.Permanent(502, 5, 1, "not here"))
	}
	return nil
}

func (s *session) refuse(err error) error {
	var refusal *smtp.Error
	if !errors.As(err, &refusal) {
		return err
	}
	s.say(refusal.Reply)
	return nil
}

func (s *session) data() error {
	if !s.mail || len(s.msg.To) == 0 {
		s.say(smtp.Permanent(503, 5, 1, "MAIL and RCPT come first"))
		return nil
	}
	s.say(smtp.Intermediate(354, "go ahead"))
	if err := s.flush(); err != nil {
		return err
	}
	body := s.in.Data(smtp.DataOptions{})
	data, err := io.ReadAll(io.LimitReader(body, maxMessage+1))
	if err != nil {
		return s.refuse(err)
	}
	if len(data) > maxMessage {
		return errors.New("message too large")
	}
	s.mail = false
	s.msg.Data = data
	s.arrived(s.msg)
	s.say(smtp.OK(250, 0, 0, "captured"))
	return nil
}
