package peers

import (
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Exim runs as one unprivileged user throughout: as root that is a number that the
// machine does not use, else whoever we are. So it needs no root, and takes its
// configuration from us without the set-user-ID bit.

// eximConfig has the places DIR, PORT, CAPTURE, ANSWERS, USER, PASSWORD and SETTINGS.
const eximConfig = `primary_hostname = exim.example
exim_path = DIR/bin/exim4
spool_directory = DIR/spool
log_file_path = DIR/log/%slog
pid_file_path = DIR/exim.pid
keep_environment = LD_PRELOAD : LD_LIBRARY_PATH : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
deliver_drop_privilege = true
disable_ipv6 = true
local_interfaces = 127.0.0.1.PORT
host_lookup =
rfc1413_hosts =
message_size_limit = 200M
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = DIR/cert.pem
tls_privatekey = DIR/key.pem
auth_advertise_hosts = ${if eq{$tls_in_cipher}{}{}{*}}
acl_smtp_rcpt = answer
SETTINGS
begin acl
answer:
  deny    !authenticated = *
          message = 530 5.7.0 Authentication required
  warn    set acl_m_answer = ${readsocket{inet:127.0.0.1:ANSWERS}{exim=$local_part@$domain\n}{5s}{}{}}
  defer   condition = ${if match{$acl_m_answer}{\N^4\N}}
          message = $acl_m_answer
  deny    condition = ${if match{$acl_m_answer}{\N^5\N}}
          message = $acl_m_answer
  accept

begin routers
all:
  driver = manualroute
  domains = *
  route_list = * 127.0.0.1 byname
  self = send
  transport = capture

begin transports
capture:
  driver = smtp
  port = CAPTURE
  allow_localhost
  hosts_avoid_tls = *

begin retry
* * F,1h,5s

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{USER}}{eq{$auth3}{PASSWORD}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{USER}}{eq{$auth2}{PASSWORD}}}}
  server_set_id = $auth1
`

// eximOwner is the user and group that Exim runs as.
func eximOwner() (uid, gid int) {
	if os.Geteuid() == 0 {
		return eximUID, eximUID
	}
	return os.Geteuid(), os.Getegid()
}

// RunExim starts an Exim as an upstream; the context bounds the start.
func (c Cache) RunExim(ctx context.Context, config UpstreamConfig) (*Upstream, error) {
	u, _, err := newUpstream("exim", config)
	if err != nil {
		return nil, err
	}
	env, err := c.layOutExim(u, config.Settings)
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("lay out Exim: %w", err)
	}
	argv := []string{filepath.Join(u.dir, "bin/exim4"), "-C", filepath.Join(u.dir, "exim.conf"), "-bdf", "-q10s"}
	uid, _ := eximOwner()
	process, err := startProcess(argv, env, filepath.Join(u.dir, "log/output"), uid)
	if err != nil {
		u.Close()
		return nil, err
	}
	u.stop, u.log = process.stop, func() string {
		log := filepath.Join(u.dir, "log")
		return readAll(filepath.Join(log, "mainlog"), filepath.Join(log, "paniclog"), filepath.Join(log, "output"))
	}
	if err := process.ready(ctx, loopback(u.Port), false); err != nil {
		log := u.log()
		u.Close()
		return nil, fmt.Errorf("start Exim: %w\n%s", err, log)
	}
	return u, nil
}

// layOutExim fills the server's folder and returns its environment. Program and
// libraries are copied, since Exim's user may not be able to enter the cache.
func (c Cache) layOutExim(u *Upstream, settings map[string]string) ([]string, error) {
	for _, name := range []string{"bin", "lib", "spool", "log"} {
		if err := os.Mkdir(filepath.Join(u.dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	program, err := c.lookPath("exim4")
	if err != nil {
		return nil, err
	}
	if err := copyFile(program, filepath.Join(u.dir, "bin/exim4"), 0o755); err != nil {
		return nil, err
	}
	library, err := c.nssWrapper()
	if err != nil {
		return nil, err
	}
	for _, file := range []string{program, library} {
		if err := c.copyLibraries(file, filepath.Join(u.dir, "lib")); err != nil {
			return nil, err
		}
	}
	library = filepath.Join(u.dir, "lib", filepath.Base(library))
	var options strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&options, "%s = %s\n", name, value)
	}
	places := strings.NewReplacer("SETTINGS", options.String(), "DIR", u.dir, "PORT", fmt.Sprint(u.Port), "CAPTURE", fmt.Sprint(u.capture.Port()),
		"ANSWERS", fmt.Sprint(u.answers.server.Addr().Port), "USER", eximQuote(u.User), "PASSWORD", eximQuote(u.Password))
	if err := os.WriteFile(filepath.Join(u.dir, "exim.conf"), []byte(places.Replace(eximConfig)), 0o644); err != nil {
		return nil, err
	}
	env := []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "LD_LIBRARY_PATH=" + filepath.Join(u.dir, "lib")}
	uid, gid := eximOwner()
	users, err := lendUsers(u.dir, library, uid, gid)
	if err != nil {
		return nil, err
	}
	return append(env, users...), chownAll(u.dir, uid, gid)
}

// eximQuote protects a value from Exim's string expansion.
func eximQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `$`, `\$`, `{`, `\{`, `}`, `\}`).Replace(s)
}

// copyLibraries copies the libraries of the cache that a program needs, and the
// file itself when it is one.
func (c Cache) copyLibraries(file, dir string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	needed, err := f.ImportedLibraries()
	_ = f.Close() // it was read only
	if err != nil {
		return err
	}
	if strings.HasPrefix(filepath.Base(file), "lib") {
		if err := copyFile(file, filepath.Join(dir, filepath.Base(file)), 0o644); err != nil {
			return err
		}
	}
	for _, name := range needed {
		path := c.library(name)
		if path == "" || exists(filepath.Join(dir, name)) {
			continue // the machine's own, or copied
		}
		if err := c.copyLibraries(path, dir); err != nil {
			return err
		}
	}
	return nil
}

// library finds a library of the cache, or "".
func (c Cache) library(name string) string {
	for _, dir := range c.libraryDirs() {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	return ""
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}

func chownAll(dir string, uid, gid int) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// StartExim starts an Exim for the time of the test. Where it cannot be had the
// test is skipped with the reason; its log is shown when the test fails.
func StartExim(t testing.TB, config UpstreamConfig) *Upstream {
	t.Helper()
	cache := requireCache(t)
	u, err := cache.RunExim(t.Context(), config)
	return forTest(t, u, err)
}
