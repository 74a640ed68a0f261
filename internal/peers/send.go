package peers

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The client programs that [Send] knows.
const (
	Swaks      = "swaks"
	Msmtp      = "msmtp"
	Curl       = "curl"
	Smtplib    = "smtplib"    // Python's standard library
	Nodemailer = "nodemailer" // on Node.js
)

// Clients lists the programs that [Send] knows.
func Clients() []string { return []string{Swaks, Msmtp, Curl, Smtplib, Nodemailer} }

// TLS is how a client protects its connection. Both verify the server's
// certificate; no client here sends a password in clear.
type TLS string

const (
	StartTLS TLS = "starttls" // as on port 587
	Implicit TLS = "implicit" // as on port 465
)

// Settings are what a person types into a mail client, and the mail to send.
type Settings struct {
	Host      string // a name or address that the certificate carries
	Port      int
	TLS       TLS
	CAFile    string // PEM file of the authority that signed the certificate
	User      string
	Password  string
	Mechanism string   // PLAIN (when empty) or LOGIN
	From      string   // envelope sender
	To        []string // envelope recipients
	Message   string   // file of the mail; lines may end in LF or CRLF
}

const sendTimeout = 3 * time.Minute

//go:embed send_smtplib.py
var smtplibScript string

//go:embed send_nodemailer.cjs
var nodemailerScript string

// Send sends one mail by a foreign client. The error is not nil when the program
// says that the mail was not accepted; the output is what it printed.
func Send(t testing.TB, client string, s Settings) (output string, err error) {
	t.Helper()
	c := requireCache(t)
	body, err := canonical(s.Message)
	if err != nil {
		t.Fatal(err)
	}
	if s.CAFile, err = filepath.Abs(s.CAFile); err != nil {
		t.Fatal(err)
	}
	call, err := s.call(client, t.TempDir(), body)
	if err != nil {
		t.Fatal(err)
	}
	program, err := c.Program(call.program)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), sendTimeout)
	defer cancel()
	cmd := program.Command(ctx, call.args...)
	cmd.Stdin = bytes.NewReader(call.stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", client, err)
	}
	return string(out), nil
}

// canonical is the file's content with CRLF at the end of each line.
func canonical(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the mail: %w", err)
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")), nil
}

// A call is one run of a program.
type call struct {
	program string
	args    []string
	stdin   []byte
}

// call says how a client is told the settings; dir is for its files.
func (s Settings) call(client, dir string, body []byte) (call, error) {
	if s.Mechanism == "" {
		s.Mechanism = "PLAIN"
	}
	switch client {
	case Swaks:
		return s.swaks(dir, body)
	case Msmtp:
		return s.msmtp(dir, body)
	case Curl:
		return s.curl(body), nil
	case Smtplib:
		return s.script("python3", "-c", smtplibScript, body)
	case Nodemailer:
		return s.script("node", "-e", nodemailerScript, body)
	}
	return call{}, fmt.Errorf("no client program %q", client)
}

func (s Settings) swaks(dir string, body []byte) (call, error) {
	file := filepath.Join(dir, "mail")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		return call{}, err
	}
	mode := map[TLS]string{StartTLS: "--tls", Implicit: "--tls-on-connect"}[s.TLS]
	return call{program: "swaks", args: []string{
		"--server", s.Host, "--port", strconv.Itoa(s.Port), mode, "--tls-verify", "--tls-ca-path", s.CAFile,
		"--auth", s.Mechanism, "--auth-user", s.User, "--auth-password", s.Password,
		"--helo", "client.example", "--from", s.From, "--to", strings.Join(s.To, ","), "--data", "@" + file,
	}}, nil
}

func (s Settings) msmtp(dir string, body []byte) (call, error) {
	file := filepath.Join(dir, "msmtprc")
	config := fmt.Sprintf(`account default
host %s
port %d
tls on
tls_starttls %s
tls_trust_file %s
auth %s
user %q
password %q
logfile -
`, s.Host, s.Port, map[TLS]string{StartTLS: "on", Implicit: "off"}[s.TLS], s.CAFile, strings.ToLower(s.Mechanism), s.User, s.Password)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return call{}, err
	}
	args := append([]string{"--file=" + file, "--from=" + s.From, "--"}, s.To...)
	return call{program: "msmtp", args: args, stdin: body}, nil
}

func (s Settings) curl(body []byte) call {
	scheme := map[TLS]string{StartTLS: "smtp", Implicit: "smtps"}[s.TLS]
	url := scheme + "://" + net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) + "/client.example"
	args := []string{
		"-q", "--silent", "--show-error", "--verbose", "--noproxy", "*", "--url", url, "--ssl-reqd", "--cacert", s.CAFile,
		"--user", s.User + ":" + s.Password, "--login-options", "AUTH=" + s.Mechanism,
		"--mail-from", s.From, "--upload-file", "-",
	}
	for _, to := range s.To {
		args = append(args, "--mail-rcpt", to)
	}
	return call{program: "curl", args: args, stdin: body}
}

// script runs an interpreter that reads the settings as JSON.
func (s Settings) script(interpreter, flag, source string, body []byte) (call, error) {
	stdin, err := json.Marshal(struct {
		Settings
		Body []byte
	}{s, body})
	if err != nil {
		return call{}, err
	}
	return call{program: interpreter, args: []string{flag, source}, stdin: stdin}, nil
}
