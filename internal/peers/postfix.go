package peers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errNotRoot says why Postfix cannot run: its master starts as root only.
var errNotRoot = errors.New("no Postfix: its master must run as root")

// A postfix is a running Postfix with everything that it owns in dir.
type postfix struct {
	dir     string
	process *process
}

// postfixSpec is one Postfix.
type postfixSpec struct {
	dir      string            // a folder from serverDir
	main     map[string]string // parameters of main.cf on top of the common ones
	ports    []int             // where it listens on 127.0.0.1
	implicit int               // of them the one with implicit TLS, or 0
	user     string            // the one account of SASL
	password string
	identity certificate
}

// runPostfix starts the unpacked Postfix. The context bounds the start only.
func (c Cache) runPostfix(ctx context.Context, spec postfixSpec) (*postfix, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	master, err := c.lookPath("master")
	if err != nil {
		return nil, err
	}
	library, err := c.nssWrapper()
	if err != nil {
		return nil, err
	}
	users, err := lendUsers(spec.dir, library, eximUID, eximUID)
	if err != nil {
		return nil, err
	}
	env := append(c.environ(master), users...)
	env = append(env, "SASL_PATH="+c.saslPlugins())
	if err := makePostfixDirs(spec.dir); err != nil {
		return nil, fmt.Errorf("lay out Postfix: %w", err)
	}
	if err := c.makeSASL(ctx, spec); err != nil {
		return nil, fmt.Errorf("make the SASL account: %w", err)
	}
	if err := c.writePostfixConfig(spec, env); err != nil {
		return nil, fmt.Errorf("configure Postfix: %w", err)
	}
	argv := []string{master, "-s", "-c", filepath.Join(spec.dir, "conf")}
	process, err := startProcess(argv, env, filepath.Join(spec.dir, "output"), 0)
	if err != nil {
		return nil, err
	}
	process.pidFile = filepath.Join(spec.dir, "queue/pid/master.pid")
	p := &postfix{dir: spec.dir, process: process}
	for _, port := range spec.ports {
		if err := process.ready(ctx, loopback(port), port == spec.implicit); err != nil {
			p.stop()
			return nil, fmt.Errorf("start Postfix: %w\n%s", err, p.log())
		}
	}
	return p, nil
}

func (p *postfix) stop() { p.process.stop() }

// log is what it wrote so far.
func (p *postfix) log() string {
	return readAll(filepath.Join(p.dir, "log"), filepath.Join(p.dir, "output"))
}

// saslPlugins is where the unpacked Cyrus SASL has its mechanisms.
func (c Cache) saslPlugins() string {
	found, _ := filepath.Glob(filepath.Join(c.root(), "usr/lib/*/sasl2")) // the pattern is well-formed
	return strings.Join(found, ":")
}

// nssWrapper is the library that lends users to a program.
func (c Cache) nssWrapper() (string, error) {
	found, err := filepath.Glob(filepath.Join(c.root(), "usr/lib/*/libnss_wrapper.so"))
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("no libnss_wrapper.so in %s: %w", c.root(), fs.ErrNotExist)
	}
	return found[0], nil
}

// makePostfixDirs makes the queue as `postfix set-permissions` would leave it.
func makePostfixDirs(dir string) error {
	for _, d := range []struct {
		name     string
		mode     os.FileMode
		uid, gid int
	}{
		{"conf", 0o755, 0, 0}, {"conf/sasl", 0o755, 0, 0}, {"data", 0o700, postfixUID, 0},
		{"queue", 0o755, 0, 0}, {"queue/pid", 0o755, 0, 0},
		{"queue/active", 0o700, postfixUID, 0}, {"queue/bounce", 0o700, postfixUID, 0},
		{"queue/corrupt", 0o700, postfixUID, 0}, {"queue/defer", 0o700, postfixUID, 0},
		{"queue/deferred", 0o700, postfixUID, 0}, {"queue/flush", 0o700, postfixUID, 0},
		{"queue/hold", 0o700, postfixUID, 0}, {"queue/incoming", 0o700, postfixUID, 0},
		{"queue/private", 0o700, postfixUID, 0}, {"queue/saved", 0o700, postfixUID, 0},
		{"queue/trace", 0o700, postfixUID, 0}, {"queue/maildrop", 0o730, postfixUID, postdropGID},
		{"queue/public", 0o710, postfixUID, postdropGID},
	} {
		path := filepath.Join(dir, d.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chown(path, d.uid, d.gid); err != nil {
			return err
		}
		if err := os.Chmod(path, d.mode); err != nil { // after chown, and whatever the umask
			return err
		}
	}
	return nil
}

const postfixHost = "postfix.example"

// makeSASL makes the account in a database of Cyrus SASL.
func (c Cache) makeSASL(ctx context.Context, spec postfixSpec) error {
	dir := filepath.Join(spec.dir, "conf/sasl") // where the packaged smtpd looks
	db := filepath.Join(dir, "sasldb2")
	config := "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: " + db + "\n"
	if err := os.WriteFile(filepath.Join(dir, "smtpd.conf"), []byte(config), 0o644); err != nil {
		return err
	}
	program, err := c.Program("saslpasswd2")
	if err != nil {
		return err
	}
	name, realm := spec.user, postfixHost
	if at := strings.LastIndexByte(name, '@'); at >= 0 {
		name, realm = name[:at], name[at+1:]
	}
	cmd := program.Command(ctx, "-c", "-p", "-f", db, "-u", realm, name)
	cmd.Env = append(cmd.Env, "SASL_PATH="+c.saslPlugins())
	cmd.Stdin = strings.NewReader(spec.password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("saslpasswd2: %w: %s", err, out)
	}
	return os.Chown(db, postfixUID, postfixUID)
}

// writePostfixConfig writes main.cf and master.cf.
func (c Cache) writePostfixConfig(spec postfixSpec, env []string) error {
	conf := filepath.Join(spec.dir, "conf")
	main := c.postfixMain(spec, conf, env)
	maps.Copy(main, spec.main)
	var text strings.Builder
	for name, value := range main {
		fmt.Fprintf(&text, "%s = %s\n", name, value)
	}
	mainFile := filepath.Join(conf, "main.cf")
	if err := os.WriteFile(mainFile, []byte(text.String()), 0o644); err != nil {
		return err
	}
	// Postfix waits until its configuration is two seconds old, lest it reads half.
	before := time.Now().Add(-time.Minute)
	if err := os.Chtimes(mainFile, before, before); err != nil {
		return err
	}
	services := postfixServices
	for _, port := range spec.ports {
		wrapped := ""
		if port == spec.implicit {
			wrapped = " -o smtpd_tls_wrappermode=yes"
		}
		services += fmt.Sprintf("%s inet n - n - - smtpd%s\n", loopback(port), wrapped)
	}
	return os.WriteFile(filepath.Join(conf, "master.cf"), []byte(services), 0o644)
}

// postfixMain is main.cf before the parameters of one server.
func (c Cache) postfixMain(spec postfixSpec, conf string, env []string) map[string]string {
	return map[string]string{
		"compatibility_level": "3.6",
		"queue_directory":     filepath.Join(spec.dir, "queue"),
		"data_directory":      filepath.Join(spec.dir, "data"),
		"daemon_directory":    filepath.Join(c.root(), "usr/lib/postfix/sbin"),
		"command_directory":   filepath.Join(c.root(), "usr/sbin"),
		"shlib_directory":     filepath.Join(c.root(), "usr/lib/postfix"),
		"meta_directory":      conf,
		"sendmail_path":       filepath.Join(c.root(), "usr/sbin/sendmail"),
		"import_environment":  "MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME TZ LANG=C " + passed(env),
		"mail_owner":          "postfix",
		"setgid_group":        "postdrop",
		"default_privs":       "nobody",

		"maillog_file":          filepath.Join(spec.dir, "log"),
		"maillog_file_prefixes": spec.dir,

		"myhostname":                          postfixHost,
		"mydestination":                       "",
		"mynetworks":                          "",
		"alias_maps":                          "",
		"alias_database":                      "",
		"inet_interfaces":                     "127.0.0.1",
		"inet_protocols":                      "ipv4",
		"disable_dns_lookups":                 "yes",
		"smtpd_peername_lookup":               "no",
		"local_header_rewrite_clients":        "",
		"message_size_limit":                  "209715200",
		"mailbox_size_limit":                  "0",
		"smtp_tls_security_level":             "none",
		"smtpd_tls_security_level":            "may",
		"smtpd_tls_auth_only":                 "yes",
		"smtpd_tls_cert_file":                 spec.identity.certFile,
		"smtpd_tls_key_file":                  spec.identity.keyFile,
		"smtpd_tls_received_header":           "yes",
		"smtpd_sasl_auth_enable":              "yes",
		"smtpd_sasl_local_domain":             postfixHost,
		"smtpd_relay_restrictions":            "permit_sasl_authenticated, reject",
		"smtpd_recipient_restrictions":        "",
		"smtpd_client_connection_count_limit": "0",
	}
}

// passed names the variables that the daemons must inherit from us.
func passed(env []string) string {
	var names []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "LD_PRELOAD", "LD_LIBRARY_PATH", "NSS_WRAPPER_PASSWD", "NSS_WRAPPER_GROUP", "SASL_PATH":
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// postfixServices is master.cf without its listeners: as it is delivered, but
// nothing runs in a chroot.
const postfixServices = `
pickup     unix n - n 60 1 pickup
cleanup    unix n - n - 0 cleanup
qmgr       unix n - n 300 1 qmgr
tlsmgr     unix - - n 1000? 1 tlsmgr
rewrite    unix - - n - - trivial-rewrite
bounce     unix - - n - 0 bounce
defer      unix - - n - 0 bounce
trace      unix - - n - 0 bounce
verify     unix - - n - 1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp       unix - - n - - smtp
relay      unix - - n - - smtp
showq      unix n - n - - showq
error      unix - - n - - error
retry      unix - - n - - error
discard    unix - - n - - discard
local      unix - n n - - local
virtual    unix - n n - - virtual
lmtp       unix - - n - - lmtp
anvil      unix - - n - 1 anvil
scache     unix - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
`
