package check

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/config"
)

// exposing gives the database a URL that leads to a file which everybody may read.
func exposing(name, format string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		p.c.cfg.Database.URL = fmt.Sprintf(format, p.write(t, name, "secret"))
		chmod(name, 0o644)(t, p)
	}
}

// withToken gives [admin] a token in a file of this mode.
func withToken(mode os.FileMode) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		p.write(t, "token", strings.Repeat("t", 32))
		chmod("token", mode)(t, p)
		p.c.cfg.Admin = config.Admin{Address: closedPort(t), TokenFile: filepath.Join(p.dir, "token")}
	}
}

// openSecrets are the files of secrets that others may read or change, by area.
func openSecrets() map[string][]fault {
	return map[string][]fault{
		"config": {
			{"config.invalid", "mode 0666 lets everybody change it", reread("hostname = \"relay.test\"\n", 0o666)},
			{"config.invalid", "mode 0602 lets everybody change it", reread("hostname = \"relay.test\"\n", 0o602)},
			{"config.readable", "mode 0644 lets everybody read it", reread("[database]\nurl = \"postgres://u:secret@127.0.0.1:1/x\"\n", 0o644)},
			{"config.readable", "mode 0604 lets everybody read it", reread("[database]\nurl = \"host=127.0.0.1 password=secret\"\n", 0o604)},
			{"config.readable", "passwords: mode 0644 lets everybody read it", exposing("passwords", "postgres://u@127.0.0.1:1/x?passfile=%s")},
			{"config.readable", "client.key: mode 0644 lets everybody read it", exposing("client.key", "host=127.0.0.1 sslkey='%s'")},
			{"key.readable", "mode 0644 lets everybody read it", chmod("secret.key", 0o644)},
			{"key.readable", "mode 0602 lets everybody change it", chmod("secret.key", 0o602)},
		},
		"certificate": {
			{"tls.key-readable", "mode 0644 lets everybody read it", chmod("key.pem", 0o644)},
			{"tls.unreadable", "mode 0666 lets everybody read and change it", chmod("key.pem", 0o666)},
		},
		"admin": {
			{"admin.token", "mode 0666 lets everybody read and change it", withToken(0o666)},
			{"admin.token-readable", "mode 0644 lets everybody read it", withToken(0o644)},
		},
	}
}

func TestH2CheckFindsOpenSecrets(t *testing.T) {
	t.Parallel()
	for area, faults := range openSecrets() {
		find(t, faults, area, nothing)
	}
}
