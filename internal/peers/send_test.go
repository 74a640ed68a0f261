package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	testUser     = "alice@example.com"
	testPassword = "correct horse 9"
)

const testMail = "From: Alice <alice@example.com>\n" +
	"To: bob@example.net\n" +
	"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n" +
	"Date: Sat, 01 Aug 2026 10:00:00 +0000\n" +
	"Message-ID: <one@example.com>\n" +
	"\n" +
	"A line.\n" +
	".\n" +
	"..two dots\n" +
	"Zwölf Boxkämpfer\n"

// writeMail puts testMail into a file.
func writeMail(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mail.eml")
	if err := os.WriteFile(file, []byte(testMail), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startTLSCapture is a server with the test account, and its authority's file.
func startTLSCapture(t *testing.T, implicit bool) (capture *Capture, caFile string) {
	t.Helper()
	identity, err := makeCertificate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(identity.certFile, identity.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	capture, err = StartCapture(CaptureConfig{
		TLS:      &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		Implicit: implicit, User: testUser, Password: testPassword,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(capture.Close)
	return capture, identity.caFile
}

func next(t *testing.T, c *Capture) Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sameMail compares what arrived with testMail; a program may add headers above
// it and an empty line below.
func sameMail(t *testing.T, got []byte) {
	t.Helper()
	want := strings.ReplaceAll(testMail, "\n", "\r\n")
	if !bytes.HasSuffix(bytes.TrimRight(got, "\r\n"), []byte(strings.TrimRight(want, "\r\n"))) {
		t.Errorf("the mail changed on its way:\n%q\nwant\n%q", got, want)
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	for _, client := range Clients() {
		for _, mode := range []TLS{StartTLS, Implicit} {
			for _, mechanism := range []string{"PLAIN", "LOGIN"} {
				t.Run(client+"/"+string(mode)+"/"+mechanism, func(t *testing.T) {
					t.Parallel()
					capture, caFile := startTLSCapture(t, mode == Implicit)
					to := []string{"bob@example.net", "carol@example.net"}
					out, err := Send(t, client, Settings{
						Host: "127.0.0.1", Port: capture.Port(), TLS: mode, CAFile: caFile,
						User: testUser, Password: testPassword, Mechanism: mechanism,
						From: testUser, To: to, Message: writeMail(t),
					})
					if err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
					m := next(t, capture)
					if !m.TLS || m.User != testUser || m.From != testUser || !slices.Equal(m.To, to) {
						t.Errorf("arrived as %+v", m)
					}
					sameMail(t, m.Data)
				})
			}
		}
	}
}

func TestSendReportsRefusal(t *testing.T) {
	t.Parallel()
	for _, client := range Clients() {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			capture, caFile := startTLSCapture(t, false)
			out, err := Send(t, client, Settings{
				Host: "localhost", Port: capture.Port(), TLS: StartTLS, CAFile: caFile,
				User: testUser, Password: "wrong", From: testUser, To: []string{"bob@example.net"}, Message: writeMail(t),
			})
			if err == nil {
				t.Fatalf("a wrong password was no error:\n%s", out)
			}
			if !strings.Contains(out, "535") && !strings.Contains(out, "5.7.8") && client != Curl {
				t.Errorf("the output does not show the reply 535:\n%s", out)
			}
		})
	}
}

// A client that takes any certificate would prove nothing about ours.
func TestSendVerifiesCertificate(t *testing.T) {
	t.Parallel()
	for _, client := range Clients() {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			capture, _ := startTLSCapture(t, true)
			other, err := makeCertificate(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			out, err := Send(t, client, Settings{
				Host: "127.0.0.1", Port: capture.Port(), TLS: Implicit, CAFile: other.caFile,
				User: testUser, Password: testPassword, From: testUser, To: []string{"bob@example.net"}, Message: writeMail(t),
			})
			if err == nil {
				t.Fatalf("a certificate of a stranger was accepted:\n%s", out)
			}
		})
	}
}
