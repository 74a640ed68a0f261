package submission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"time"
)

// checkEvery is how often a handshake looks whether the files have changed.
const checkEvery = 2 * time.Second

// Certificates is the certificate that the listeners show. Files are read again
// when they change, without a restart.
type Certificates struct {
	certFile, keyFile string // "" for one that never changes
	log               *slog.Logger
	every             time.Duration

	mu      sync.Mutex
	current *tls.Certificate
	loaded  stamp // of the files that current came from
	failed  stamp // of files that could not be used, to say so once
	checked time.Time
}

// stamp tells two states of the files apart.
type stamp struct {
	cert, key fileStamp
}

type fileStamp struct {
	size     int64
	modified time.Time
}

// LoadCertificates reads a certificate with its chain and its key from PEM files.
// log hears of later changes and of files that cannot be used; nil: nobody does.
func LoadCertificates(certFile, keyFile string, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Certificates{certFile: certFile, keyFile: keyFile, log: log, every: checkEvery}
	at, err := c.stamp()
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	if c.current, err = c.load(); err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	c.loaded, c.checked = at, time.Now()
	return c, nil
}

// SelfSigned makes a certificate for names (DNS names and IP addresses) that is
// kept in memory only, for trying out: no client can know it beforehand.
func SelfSigned(names ...string) (*Certificates, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Postern, self-signed"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	return &Certificates{current: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}, nil
}

// Reload reads the files now, whether they seem to have changed or not. What cannot be
// used leaves the certificate before in place.
func (c *Certificates) Reload(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.certFile == "" {
		return nil
	}
	at, err := c.stamp()
	if err != nil {
		return fmt.Errorf("reload certificate: %w", err)
	}
	next, err := c.load()
	if err != nil {
		return fmt.Errorf("reload certificate: %w", err)
	}
	c.current, c.loaded, c.failed, c.checked = next, at, stamp{}, time.Now()
	return nil
}

// Leaf returns the certificate that is shown now.
func (c *Certificates) Leaf() (*x509.Certificate, error) {
	cert, _ := c.get(nil)
	return x509.ParseCertificate(cert.Certificate[0])
}

// serverConfig makes the configuration of one listener. Each has its own, and so
// its own session ticket keys: a ticket of one listener is worth nothing to another.
// ALPN is checked when a client offers it, against cross-protocol attacks.
func (c *Certificates) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: c.get,
		NextProtos:     []string{"smtp", "esmtp"},
	}
}

// get returns the certificate, read again if the files have changed.
func (c *Certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.certFile != "" && time.Since(c.checked) >= c.every {
		c.checked = time.Now()
		c.refresh()
	}
	return c.current, nil
}

// refresh reads changed files. Files that do not work are left alone until they
// change or can be used: a certificate and its key are seldom replaced at once.
func (c *Certificates) refresh() {
	at, err := c.stamp()
	if err == nil && at == c.loaded {
		return
	}
	var next *tls.Certificate
	if err == nil {
		next, err = c.load()
	}
	if err != nil {
		if at != c.failed {
			c.log.Error("certificate not usable, keeping the one before", "certificate", c.certFile, "key", c.keyFile, "error", err)
			c.failed = at
		}
		return
	}
	c.current, c.loaded, c.failed = next, at, stamp{}
	c.log.Info("certificate loaded", "certificate", c.certFile)
}

func (c *Certificates) load() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	return &cert, err
}

func (c *Certificates) stamp() (stamp, error) {
	var at stamp
	for _, f := range []struct {
		name string
		at   *fileStamp
	}{{c.certFile, &at.cert}, {c.keyFile, &at.key}} {
		info, err := os.Stat(f.name)
		if err != nil {
			// A stamp of its own, so that a missing file is logged once too.
			f.at.size = -1
			return at, err
		}
		*f.at = fileStamp{info.Size(), info.ModTime()}
	}
	return at, nil
}
