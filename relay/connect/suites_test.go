package connect

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// rsaCertificate is one of the kind that RSA key exchange needs.
func rsaCertificate(t *testing.T) (tls.Certificate, *rsa.PrivateKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, key
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestP11OpenSSL does the same with another implementation, and sees that a server with a
// choice uses a good suite.
func TestP11OpenSSL(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("there is no openssl: install it, for the handshakes of another implementation")
	}
	cert, key := rsaCertificate(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, text := range map[string][]byte{
		certFile: pemOf("CERTIFICATE", cert.Certificate[0]), keyFile: pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		args []string
		want uint16
	}{
		"RSA only": {[]string{"-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"}, tls.TLS_RSA_WITH_AES_128_CBC_SHA},
		"TLS1.0":   {[]string{"-tls1", "-cipher", "AES256-SHA:@SECLEVEL=0"}, tls.TLS_RSA_WITH_AES_256_CBC_SHA},
		"a choice": {[]string{"-tls1_2", "-cipher", "AES128-SHA:AES128-SHA256:ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"}, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"s_server", "-accept", "127.0.0.1:0", "-cert", certFile, "-key", keyFile}, test.args...)
			if got := handshakeWith(t, exec.Command(openssl, args...)); got != test.want {
				t.Errorf("%s, want %s", tls.CipherSuiteName(got), tls.CipherSuiteName(test.want))
			}
		})
	}
}

// handshakeWith starts openssl's server and returns the suite of an unverified handshake.
func handshakeWith(t *testing.T, server *exec.Cmd) uint16 {
	t.Helper()
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := server.StdinPipe() // it ends when its input does
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
	}()
	var addr string
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "ACCEPT %s", &addr)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	secured := tls.Client(conn, unverified("127.0.0.1"))
	defer secured.Close()
	if err := secured.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return secured.ConnectionState().CipherSuite
}
