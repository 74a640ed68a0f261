package connect

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"testing"

	"postern/internal/smtptest"
)

// TestP11OpenSSL handshakes with an implementation that offers old suites, and sees that a server
// with a choice uses a good one.
func TestP11OpenSSL(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("there is no openssl: install it, for the handshakes of another implementation")
	}
	leaf, _ := smtptest.RSALeaf(t, "127.0.0.1")
	certFile, keyFile := leaf.WriteFiles(t, t.TempDir())
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
