package check

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/owned"
	"postern/internal/smtptest"
)

func nothing(*testing.T, *patient) {}

// setting plants a value.
func setting(change func(*config.Config)) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { change(&p.c.cfg) }
}

func chmod(name string, mode os.FileMode) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		if err := os.Chmod(filepath.Join(p.dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// reread writes another configuration and loads it.
func reread(text string, mode os.FileMode) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		chmod("postern.toml", mode)(t, p)
		if text == "" {
			p.c.source.Path = ""
			t.Chdir(t.TempDir())
		} else {
			p.write(t, "postern.toml", text)
		}
		p.treat(newCheckup(p.c.source, p.c.dialer, p.c.opts))
	}
}

func configFaults() []fault {
	return []fault{
		{"config.ok", "every key", nothing},
		{"config.invalid", `line 1: unknown key "hostnme"`, reread("hostnme = \"relay.test\"\n", 0o600)},
		{"config.hostname", "localhost", setting(func(c *config.Config) { c.Hostname = "localhost" })},
		{"config.hostname", "printer.local", setting(func(c *config.Config) { c.Hostname = "printer.local" })},
		{"config.private-mx", "allow_private_mx", setting(func(c *config.Config) { c.Delivery.AllowPrivateMX = true })},
		{"config.source", "192.0.2.77", setting(func(c *config.Config) { c.Delivery.Source = "192.0.2.77" })},
		{"config.mx-port", "2525", setting(func(c *config.Config) { c.Delivery.MXPort = 2525 })},
		{"config.message-size", "10KiB", setting(func(c *config.Config) { c.Submission.MessageSize = 10 << 10 })},
		{"config.header-size", "1KiB", setting(func(c *config.Config) { c.Submission.HeaderSize = 1 << 10 })},
		{"config.spool-size", "spool is 1MiB", setting(func(c *config.Config) { c.Submission.Spool = 1 << 20 })},
		{"config.lifetime", "1h0m0s", setting(func(c *config.Config) { c.Queue.Lifetime = config.Duration(time.Hour) })},
		{"config.delay-notice", "240h0m0s", setting(func(c *config.Config) { c.Queue.DelayNotice = config.Duration(240 * time.Hour) })},
		{"config.files", "of 2000000000", setting(func(c *config.Config) { c.Submission.Connections = 2_000_000_000 })},
		{"spool.ok", "free in", nothing},
		{"spool.unusable", "no such file", setting(func(c *config.Config) { c.Submission.SpoolDir = "/nowhere/at/all" })},
		{"spool.unusable", "not a directory", func(_ *testing.T, p *patient) { p.c.cfg.Submission.SpoolDir = filepath.Join(p.dir, "key.pem") }},
		{"spool.full", "a message may have", setting(func(c *config.Config) { c.Submission.MessageSize, c.Submission.Spool = 1<<60, 1<<60 })},
		{"spool.small", "spool is", setting(func(c *config.Config) { c.Submission.Spool = 1 << 60 })},
		{"key.ok", "secret.key", nothing},
		{"key.none", "is not there", func(_ *testing.T, p *patient) { p.c.cfg.SecretKeyFile = filepath.Join(p.dir, "none") }},
		{"key.no-file", "not a regular file", func(_ *testing.T, p *patient) { p.c.cfg.SecretKeyFile = p.dir }},
		{"key.unusable", "not a key of 32 octets", func(t *testing.T, p *patient) { p.write(t, "secret.key", "short") }},
	}
}

func TestCheckFindsFaultsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	find(t, configFaults(), "config", nothing)
}

// Without a file the check still says what it can, and makes no key.
func TestCheckWithoutAConfiguration(t *testing.T) {
	p := newPatient(t)
	reread("", 0o600)(t, p)
	p.c.cfg.SecretKeyFile = filepath.Join(p.dir, "none", "secret.key")
	found := p.look(t.Context(), "config", "port", "certificate", "database")
	wantFinding(t, found, "config.missing", "no file")
	wantFinding(t, found, "db.none", "--database-url")
	if _, err := os.Stat(filepath.Dir(p.c.cfg.SecretKeyFile)); !os.IsNotExist(err) {
		t.Errorf("the folder of the key was made: %v", err)
	}
}

// A key that may not be read is given to the server's user; one that others may read is closed.
func TestCheckJudgesTheKey(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"key.denied":   fmt.Errorf("read key: %w", &fs.PathError{Op: "open", Path: "secret.key", Err: syscall.EACCES}),
		"key.readable": fmt.Errorf("read key: %w", &owned.Fault{Path: "secret.key", Why: "mode 0644"}),
		"key.unusable": errors.New("not a key of 32 octets"),
	} {
		if id := keyTrouble(err); id != want {
			t.Errorf("%v: %s, want %s", err, id, want)
		}
	}
}

// selfIssued plants a certificate that nobody but itself signs.
func selfIssued(t *testing.T, p *patient) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: patientName}, DNSNames: []string{patientName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	p.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

// shown puts another certificate into the place of the patient's.
func shown(leaf func(t *testing.T, p *patient) smtptest.Leaf) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) { leaf(t, p).WriteFiles(t, p.dir) }
}

func between(from, until time.Duration) func(*testing.T, *patient) {
	return shown(func(t *testing.T, p *patient) smtptest.Leaf {
		return p.ca.LeafBetween(t, time.Now().Add(from), time.Now().Add(until), patientName)
	})
}

// crafted is a certificate that no honest authority makes, signed by one of its own.
func crafted(change func(template *x509.Certificate), bits int) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
		template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: patientName}, DNSNames: []string{patientName},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		change(template)
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		root, err := x509.ParseCertificate(caDER)
		if err != nil {
			t.Fatal(err)
		}
		p.c.roots = x509.NewCertPool()
		p.c.roots.AddCert(root)
		p.write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		p.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	}
}

func certificateFaults() []fault {
	return []fault{
		{"tls.ok", "is for relay.test", nothing},
		{"tls.none", "names none", setting(func(c *config.Config) { c.TLS.Certificate, c.TLS.Key = "", "" })},
		{"tls.self-signed", "", setting(func(c *config.Config) { c.TLS = config.TLS{SelfSigned: true} })},
		{"tls.unreadable", "gone.pem", setting(func(c *config.Config) { c.TLS.Certificate = "gone.pem" })},
		{"tls.unreadable", "holds no certificate", func(_ *testing.T, p *patient) { p.c.cfg.TLS.Certificate = p.c.cfg.TLS.Key }},
		{"tls.unreadable", "gone.key", setting(func(c *config.Config) { c.TLS.Key = "gone.key" })},
		{"tls.mismatch", "does not match", func(t *testing.T, p *patient) { p.write(t, "key.pem", string(p.ca.Leaf(t, patientName).KeyPEM)) }},
		{"tls.expired", "expired at", between(-2*time.Hour, -time.Hour)},
		{"tls.not-yet", "not valid before", between(time.Hour, 20*time.Hour)},
		{"tls.expiring", "expires at", between(-20*time.Hour, 2*time.Hour)},
		{"tls.ending", "within the hour", between(-20*time.Hour, 30*time.Minute)},
		{"tls.name", "it is for other.test and not for the hostname relay.test",
			shown(func(t *testing.T, p *patient) smtptest.Leaf { return p.ca.Leaf(t, "other.test") })},
		{"tls.private", "unknown authority", func(t *testing.T, p *patient) { p.c.roots = smtptest.NewCA(t).Pool() }},
		{"tls.private", "is self-signed", selfIssued},
		{"tls.chain", "test CA is missing", func(t *testing.T, p *patient) {
			crafted(func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://ca.test/ca.crt"} }, 2048)(t, p)
			p.c.roots = p.ca.Pool()
		}},
		{"tls.usage", "key usage", crafted(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, 2048)},
		{"tls.weak", "RSA key of less than 2048", crafted(func(*x509.Certificate) {}, 1024)},
	}
}

func TestCheckFindsFaultsOfTheCertificate(t *testing.T) {
	t.Parallel()
	find(t, certificateFaults(), "certificate", nothing)
}

// listening puts the listener where something is already.
func listening(address func(t *testing.T, p *patient) string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) { p.c.cfg.Listeners[0].Address = address(t, p) }
}

// sayingHello is a server with another name in its greeting.
func sayingHello(name string) func(*testing.T, *patient) string {
	return func(t *testing.T, _ *patient) string {
		return smtptest.Start(t, smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("220 " + name + " ESMTP Postern")),
		}}).Addr()
	}
}

func portFaults() []fault {
	return []fault{
		{"port.free", "is free", nothing},
		{"port.ours", "answers", listening(sayingHello("relay.test"))},
		{"port.other", "in use by mail.test", listening(sayingHello("mail.test"))},
		{"port.foreign", "fake.test ESMTP smtptest", listening(func(t *testing.T, _ *patient) string { return smtptest.Start(t, smtptest.Config{}).Addr() })},
		{"port.foreign", "does not answer as a mail server", listening(func(t *testing.T, _ *patient) string { return greeter(t, "+OK POP3\r\n") })},
		{"port.balanced", "not in its proxy_protocol", balanced},
		{"port.unusable", "192.0.2.1:5587", setting(func(c *config.Config) { c.Listeners[0].Address = "192.0.2.1:5587" })},
		{"port.none", "none", setting(func(c *config.Config) { c.Listeners = nil })},
	}
}

func TestCheckFindsFaultsOfThePorts(t *testing.T) {
	t.Parallel()
	find(t, portFaults(), "port", nothing)
}

// answeringReady is a server at the address of [admin].
func answeringReady(code int, text string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, text)
		}))
		t.Cleanup(server.Close)
		p.c.cfg.Admin.Address = strings.TrimPrefix(server.URL, "http://")
	}
}

func adminFaults() []fault {
	return []fault{
		{"admin.ready", "is ready", answeringReady(200, `{"ready":true}`)},
		{"admin.idle", "nothing answers", func(t *testing.T, p *patient) { p.c.cfg.Admin.Address = closedPort(t) }},
		{"admin.idle", "nothing answers", func(_ *testing.T, p *patient) { p.c.cfg.Admin.Address = "unix:" + filepath.Join(p.dir, "admin.sock") }},
		{"admin.unready", ": epoch: no lease; wait", answeringReady(503, `{"ready":false,"checks":[{"name":"spool","state":"ok"},{"name":"epoch","state":"failed","detail":"no lease","advice":"wait"}]}`)},
		{"admin.unready", ": epoch, schema: no connection; wait | spool: full", answeringReady(503, `{"ready":false,"checks":[{"name":"epoch","state":"failed","detail":"no connection","advice":"wait"},{"name":"spool","state":"failed","detail":"full"},{"name":"schema","state":"failed","detail":"no connection","advice":"wait"}]}`)},
		{"admin.foreign", "200", answeringReady(200, "ok")},
		{"admin.foreign", "404", answeringReady(404, "not found")},
		{"admin.foreign", "503", answeringReady(503, "Bad gateway")},
		{"admin.foreign", "the server does not answer at", func(t *testing.T, p *patient) { p.c.cfg.Admin.Address = greeter(t, "220 mail.test ESMTP\r\n") }},
		{"admin.token", "at least 16 characters", func(t *testing.T, p *patient) {
			p.write(t, "token", "short")
			p.c.cfg.Admin = config.Admin{Address: closedPort(t), TokenFile: filepath.Join(p.dir, "token")}
		}},
		{"admin.off", "is empty", setting(func(c *config.Config) { c.Admin.Address = "" })},
	}
}

func TestCheckFindsFaultsOfHealth(t *testing.T) {
	t.Parallel()
	find(t, adminFaults(), "admin", nothing)
}

// Root may listen anywhere, so the refusal is made up.
func TestCheckKnowsPrivilegedPorts(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	refusal := os.NewSyscallError("bind", syscall.EACCES)
	r := &report{}
	p.c.notFree(t.Context(), r, config.Listener{Address: closedPort(t), TLS: "starttls"}, refusal)
	wantFinding(t, r.close(), "port.privileged", "CAP_NET_BIND_SERVICE")
	r = &report{}
	p.c.notFree(t.Context(), r, config.Listener{Address: sayingHello(patientName)(t, p), TLS: "starttls"}, refusal)
	wantFinding(t, r.close(), "port.ours", "answers") // it runs as another user
}

// The tests' machine may have a server at the usual port.
func TestCheckKnowsSocketsOfTheServiceManager(t *testing.T) {
	t.Parallel()
	r := &report{}
	newPatient(t).c.handed(r, config.Listener{Address: config.HandedOver + "submission", TLS: "starttls"}, false)
	wantFinding(t, r.close(), "port.handed", "nothing answers at 127.0.0.1:587")
}

// Whatever form the URL has, its password is not shown.
func TestRedactedURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"postgres://u:secret@127.0.0.1/x":                   "postgres://u:xxxxx@127.0.0.1/x",
		"postgres:///x?host=/run&user=u&password=secret":    "postgres:///x?host=%2Frun&password=xxxxx&user=u",
		"postgres://u@h/x?sslkey=k&sslpassword=secret":      "postgres://u@h/x?sslkey=k&sslpassword=xxxxx",
		"postgres://u@h/x?password=se;cret":                 "the database URL",
		"postgres://u@h/x?password=secret%":                 "the database URL",
		"host=127.0.0.1 user=u password=secret dbname=x":    "the database URL",
		"postgres://u:secret@127.0.0.1:port/x":              "the database URL",
		"postgres://postern@/postgres?host=%2Ftmp%2Fsocket": "postgres://postern@/postgres?host=%2Ftmp%2Fsocket",
	} {
		if got := database.Redacted(raw); got != want {
			t.Errorf("%s becomes %s, want %s", raw, got, want)
		}
	}
}
