package delivery

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// TestP11WeakSuites has servers that know a single suite, or an old version: TLS with
// that is used where TLS is opportunistic, and refused where it is to be verified.
func TestP11WeakSuites(t *testing.T) {
	t.Parallel()
	byRSA, ofRSA := smtptest.RSALeaf(t, "127.0.0.1")
	ofECDSA := smtptest.NewCA(t)
	byECDSA := ofECDSA.Leaf(t, "127.0.0.1")
	type server struct {
		name     string
		suite    uint16
		min, max uint16
		strong   bool // enough for verified TLS
	}
	servers := []server{
		{"TLS1.0", tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.VersionTLS10, tls.VersionTLS10, false},
		{"TLS1.1", tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.VersionTLS10, tls.VersionTLS11, false},
		{"RSA in TLS1.0", tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.VersionTLS10, tls.VersionTLS10, false},
	}
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			servers = append(servers, server{suite.Name, suite.ID, tls.VersionTLS12, tls.VersionTLS12, !suite.Insecure})
		}
	}
	for _, s := range servers {
		for _, mode := range []upstream.TLSMode{upstream.TLSOpportunistic, upstream.TLSRequire} {
			t.Run(s.name+" "+string(mode), func(t *testing.T) {
				t.Parallel()
				cert, ca := byRSA, ofRSA
				if strings.Contains(s.name, "_ECDSA_") {
					cert, ca = byECDSA, ofECDSA
				}
				fake := smtptest.Start(t, smtptest.Config{TLS: &tls.Config{
					Certificates: []tls.Certificate{cert.Certificate}, CipherSuites: []uint16{s.suite}, MinVersion: s.min, MaxVersion: s.max,
				}})
				up := upstreamAt(fake)
				up.TLS = mode
				if mode == upstream.TLSRequire {
					up.CA = string(ca.PEM())
				}
				o := sendVia(t, up, Config{})
				want := tls.CipherSuiteName(s.suite) + " unverified"
				switch {
				case mode == upstream.TLSOpportunistic && (o.Result != queue.Delivered || !strings.HasSuffix(o.TLS, want)):
					t.Errorf("%s %v, TLS %q; want delivered with %s", o.Result, o.Reply, o.TLS, want)
				case mode == upstream.TLSRequire && !s.strong && (o.Result != queue.Deferred || o.Reply.Enhanced.Subject != 7):
					t.Errorf("%s %v, TLS %q; want deferred 4.7.x", o.Result, o.Reply, o.TLS)
				}
			})
		}
	}
}
