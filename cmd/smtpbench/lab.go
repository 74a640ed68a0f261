package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"postern/internal/owned"
	"postern/internal/peers"
	"postern/internal/pgserver"
)

// The account that both servers know.
const (
	benchUser     = "bench@example.com"
	benchPassword = "correct horse battery staple"
)

// A lab is the folder in which the measured servers keep everything, so that all
// write to the same file system, with what they share.
type lab struct {
	dir      string
	certFile string
	keyFile  string
	exchange *exchange
}

// newLab makes the folder inside parent, the certificate and the sink. Where the
// user that runs PostgreSQL for root may not enter parent, or another user may put
// something else in its place, the folder is in /var/tmp.
func newLab(parent string) (*lab, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for the servers: %w", err)
	}
	if _, err := owned.Path(parent); err != nil || pgserver.Reachable(filepath.Join(parent, "smtpbench")) != nil {
		parent = "/var/tmp"
	}
	l := &lab{}
	if l.dir, err = os.MkdirTemp(parent, "smtpbench-"); err != nil {
		return nil, fmt.Errorf("make a folder for the servers: %w", err)
	}
	if err := l.furnish(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) furnish() error {
	if err := os.Chmod(l.dir, 0o755); err != nil { // other users' servers have folders in it
		return err
	}
	l.certFile, l.keyFile = filepath.Join(l.dir, "cert.pem"), filepath.Join(l.dir, "key.pem")
	if err := writeCertificate(l.certFile, l.keyFile); err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	var err error
	l.exchange, err = newExchange("127.0.0.1:0")
	return err
}

func (l *lab) close() {
	if l.exchange != nil {
		l.exchange.sink.Close()
	}
	_ = os.RemoveAll(l.dir) // a leftover in a cache does no harm
}

// writeCertificate makes a self-signed ECDSA P-256 certificate for 127.0.0.1.
func writeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(7 * 24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)
}

// A contender is a server under measurement.
type contender struct {
	name   string
	target *target
	meters []meter
	pid    int // whose memory is measured, or 0
	close  func()
	warm   string // the workload that it is warm for
}

// target is how both servers are reached: nobody checks the certificate, since that
// is the client's work and not the server's.
func (l *lab) target(port int) (*target, error) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	config, err := tlsConfig(address, "", true)
	if err != nil {
		return nil, err
	}
	return &target{address: address, tls: config, user: benchUser, password: benchPassword}, nil
}

// postfix starts Postfix as an equal relay, tuned or with its defaults. Its error is peers.ErrUnavailable, or
// another one with the reason, when there can be none.
func (l *lab) postfix(ctx context.Context, untuned bool) (*contender, error) {
	r, err := peers.StartPostfixRelay(ctx, peers.RelayConfig{
		CertFile: l.certFile, KeyFile: l.keyFile, User: benchUser, Password: benchPassword,
		NextHop: l.exchange.sink.Addr().String(), Dir: l.dir, Untuned: untuned,
	})
	if err != nil {
		return nil, err
	}
	to, err := l.target(r.SubmissionPort)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &contender{name: "postfix", target: to, meters: []meter{{"server", r.CPU}}, close: r.Close}, nil
}

// awaitGreeting returns when the server at the address says 220.
func awaitGreeting(ctx context.Context, address string, ended <-chan struct{}) error {
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if greeted(ctx, address) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return errors.New("the server ended immediately")
		case <-poll.C:
		}
	}
}

func greeted(ctx context.Context, address string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	if conn.SetDeadline(time.Now().Add(5*time.Second)) != nil {
		return false
	}
	code := make([]byte, 4)
	if _, err := io.ReadFull(conn, code); err != nil || string(code) != "220 " {
		return false
	}
	_, err = io.WriteString(conn, "QUIT\r\n")
	return err == nil
}
