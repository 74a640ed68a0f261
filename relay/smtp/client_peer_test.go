package smtp

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
)

// peerMessage is what the foreign server understood.
type peerMessage struct {
	From  string
	To    []string
	Data  string
	User  string
	Body  gosmtp.BodyType
	EnvID string
}

// peer is the backend of a foreign server.
type peer struct {
	mu       sync.Mutex
	messages []peerMessage
}

func (p *peer) NewSession(*gosmtp.Conn) (gosmtp.Session, error) {
	return &peerSession{peer: p}, nil
}

type peerSession struct {
	peer *peer
	now  peerMessage
}

func (s *peerSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *peerSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "u" || password != "p" {
			return gosmtp.ErrAuthFailed
		}
		s.now.User = user
		return nil
	}), nil
}

func (s *peerSession) Mail(from string, opts *gosmtp.MailOptions) error {
	s.now.From, s.now.Body, s.now.EnvID = from, opts.Body, opts.EnvelopeID
	return nil
}

func (s *peerSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	if strings.HasPrefix(to, "no") {
		return &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "unknown"}
	}
	s.now.To = append(s.now.To, to)
	return nil
}

func (s *peerSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.now.Data = string(data)
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	s.peer.messages = append(s.peer.messages, s.now)
	return nil
}

func (s *peerSession) Reset()        { s.now = peerMessage{User: s.now.User} }
func (s *peerSession) Logout() error { return nil }

// TestClientForeignServer: a server that others wrote understands us.
func TestClientForeignServer(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	backend := &peer{}
	server := gosmtp.NewServer(backend)
	server.Domain, server.TLSConfig = "peer.test", ca.ServerConfig(t, "peer.test")
	server.EnableDSN, server.EnableSMTPUTF8 = true, true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		_ = server.Close()
		served.Wait()
	})

	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(conn, testConfig())
	defer c.Close()
	if err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(t.Context(), ca.ClientConfig("peer.test")); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(t.Context(), sasl.NewPlainClient("", "u", "p")); err != nil {
		t.Fatal(err)
	}
	bodies := []string{testMessage, "", strings.Repeat(".\r\n..\r\nx\r\n", 20_000)}
	var want []peerMessage
	for _, body := range bodies {
		tx := transaction(2)
		tx.Mail.Body, tx.Mail.EnvID = Body8BitMIME, "e+1"
		tx.Rcpts = append(tx.Rcpts, RcptCommand{To: Address{"no", "b.test"}})
		tx.Body, tx.Size = bytes.NewReader([]byte(body)), int64(len(body))
		res := c.Send(t.Context(), tx)
		if res.Err != nil || !cmp.Equal(codes(res), []int{250, 250, 550}) || !res.DSN {
			t.Fatalf("got %+v", res)
		}
		want = append(want, peerMessage{
			From: "a@a.test", To: []string{"r0@b.test", "r1@b.test"}, Data: body, User: "u",
			Body: gosmtp.Body8BitMIME, EnvID: "e+1",
		})
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	backend.mu.Lock()
	defer backend.mu.Unlock()
	if diff := cmp.Diff(want, backend.messages); diff != "" {
		t.Error(diff)
	}
}
