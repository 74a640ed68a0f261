package check

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"postern/admin"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/internal/owned"
	"postern/relay/seal"
)

var configKinds = []kind{
	{"config.ok", OK, "The configuration file can be used: every key in it is known.", ""},
	{"config.invalid", Failed, "The configuration file cannot be read, everybody may change it, or it has a key or a value that is not known.",
		"mend what it says; configs/postern.toml has every key with its default"},
	{"config.missing", Warning, "There is no configuration file.",
		"write one, 'postern serve' needs it; configs/postern.toml has every key with its default"},
	{"config.readable", Warning, "Every user of this machine may read the password of the database, or the key that stands for it: it is in the configuration, or in a file that the database's URL leads to.",
		"chmod 640 the file and give it to the server's group"},
	{"config.hostname", Warning, "The hostname is no name that others can look up.",
		"set hostname to the public DNS name of this server: it is the name in EHLO, which many servers look up"},
	{"config.private-mx", Warning, "Mail may be delivered to private addresses: whoever chooses a recipient's domain reaches hosts of your own network.",
		"remove allow_private_mx, it is for tests"},
	{"config.mx-port", Warning, "Mail goes to another port of mail hosts than 25.", "remove mx_port, it is for tests"},
	{"config.message-size", Warning, "Messages of an ordinary size are refused.",
		"set message_size to 10MB or more, unless that is what is wanted"},
	{"config.header-size", Warning, "Header sections of an ordinary size are refused.", "set header_size to 64KiB or more"},
	{"config.spool-size", Warning, "The largest message that is allowed does not fit into the room for temporary files, so it is never accepted.",
		"set spool to several times message_size"},
	{"config.lifetime", Warning, "Delivery is given up earlier than RFC 5321 section 4.5.4.1 advises.",
		"set lifetime to 4d or 5d: servers of recipients are sometimes down over a weekend"},
	{"config.delay-notice", Warning, "Senders are told of a delay only when delivery has been given up.",
		"set delay_notice to less than lifetime"},
	{"config.files", Info, "The limit of open files allows fewer connections than configured, of clients, to destinations or to the database, if the server has the limit of this shell.",
		"raise it for the server (ulimit -n, LimitNOFILE), or lower connections"},
	{"spool.ok", OK, "Temporary files can be written, and there is room for them.", ""},
	{"spool.unusable", Failed, "Temporary files cannot be written, so no message over 1 MiB is accepted.",
		"make spool_dir a folder that the server's user may write to"},
	{"spool.full", Failed, "There is less room for temporary files than the largest message needs.",
		"free room, or set spool_dir to a larger file system"},
	{"spool.small", Warning, "There is less room for temporary files than spool promises.",
		"free room, set spool_dir to a larger file system, or lower spool"},
	{"key.ok", OK, "The key that seals upstream passwords and the keys of certificates by ACME can be used.", ""},
	{"key.none", Info, "There is no key yet that seals upstream passwords and the keys of certificates by ACME; it is made when it is first needed.", ""},
	{"key.readable", Failed, "Others may read or change the key that seals upstream passwords and the keys of certificates by ACME, so it is not used.",
		"chmod 600 it, and give it to the server's user"},
	{"key.denied", Failed, "The key that seals upstream passwords and the keys of certificates by ACME may not be read.",
		"chown it to the server's user, and its folder, if it is only that one's; or run the check as that user"},
	{"key.no-file", Failed, "What should be the key that seals upstream passwords and the keys of certificates by ACME is a folder, a pipe or a device.",
		"set secret_key_file to the file that holds the key, or move this out of its way"},
	{"key.unusable", Failed, "The key that seals upstream passwords and the keys of certificates by ACME cannot be used.",
		"copy it again from another node or from a backup; docs/certificates.md says how to go on without it"},
}

func (c *checkup) lookAtConfig(_ context.Context, r *report) {
	switch {
	case c.bad != nil:
		r.add("config.invalid", "configuration", "%v", c.bad)
	case !c.found:
		r.add("config.missing", "configuration", "no file")
	default:
		r.add("config.ok", "configuration", "every key is known")
	}
	if c.bad == nil {
		c.configFile(r)
		c.hostnameForm(r)
		c.dangerousValues(r)
		c.spool(r)
		c.secretKey(r)
	}
}

// configFile looks at who may read the secrets of the database.
func (c *checkup) configFile(r *report) {
	for _, err := range c.source.Exposed(c.cfg.Database.URL) {
		r.add("config.readable", "configuration", "%v", err)
	}
}

// hostnameForm looks whether the name can be one that others know; DNS is another area.
func (c *checkup) hostnameForm(r *report) {
	name, err := c.cfg.ServerName()
	if err != nil {
		r.add("config.hostname", "hostname", "%v", err)
		return
	}
	_, err = netip.ParseAddr(name)
	lower := strings.ToLower(name)
	if err == nil || !strings.Contains(name, ".") || strings.HasSuffix(lower, ".local") ||
		strings.HasSuffix(lower, ".localdomain") || strings.HasSuffix(lower, ".internal") {
		r.add("config.hostname", "hostname", "%s", name)
	}
}

func (c *checkup) dangerousValues(r *report) {
	s, q, d := c.cfg.Submission, c.cfg.Queue, c.cfg.Delivery
	if d.AllowPrivateMX {
		r.add("config.private-mx", "configuration", "delivery.allow_private_mx is true")
	}
	if d.MXPort != 25 {
		r.add("config.mx-port", "configuration", "delivery.mx_port is %d", d.MXPort)
	}
	if s.MessageSize < 1<<20 {
		r.add("config.message-size", "configuration", "submission.message_size is %s", screen.Octets(int64(s.MessageSize)))
	}
	if s.HeaderSize < 16<<10 {
		r.add("config.header-size", "configuration", "submission.header_size is %s", screen.Octets(int64(s.HeaderSize)))
	}
	if s.Spool < s.MessageSize {
		r.add("config.spool-size", "configuration", "submission.spool is %s, message_size %s", screen.Octets(int64(s.Spool)), screen.Octets(int64(s.MessageSize)))
	}
	if time.Duration(q.Lifetime) < 48*time.Hour {
		r.add("config.lifetime", "configuration", "queue.lifetime is %s", time.Duration(q.Lifetime))
	}
	if q.DelayNotice >= q.Lifetime {
		r.add("config.delay-notice", "configuration", "queue.delay_notice is %s, lifetime %s", time.Duration(q.DelayNotice), time.Duration(q.Lifetime))
	}
	if cuts := c.cfg.Cuts(c.cfg.Fit(config.OpenLimit())); cuts != "" {
		r.add("config.files", "configuration", "room for %s", cuts)
	}
}

// spool makes a temporary file as the server does, which nobody else sees for long.
func (c *checkup) spool(r *report) {
	if len(c.cfg.Listeners) == 0 {
		return // nothing is accepted here
	}
	s := c.cfg.Submission
	dir := s.TempDir()
	f, err := os.CreateTemp(dir, "postern-check-*")
	if err != nil {
		r.add("spool.unusable", "spool", "%v", err)
		return
	}
	_ = os.Remove(f.Name())
	_ = f.Close()
	free, err := admin.FreeSpace(dir)
	switch {
	case err != nil:
		r.add("spool.unusable", "spool", "cannot tell the room in %s: %v", dir, err)
	case free < int64(s.MessageSize):
		r.add("spool.full", "spool", "%s free in %s, and a message may have %s", screen.Octets(free), dir, screen.Octets(int64(s.MessageSize)))
	case free < int64(s.Spool):
		r.add("spool.small", "spool", "%s free in %s, and spool is %s", screen.Octets(free), dir, screen.Octets(int64(s.Spool)))
	default:
		r.add("spool.ok", "spool", "%s free in %s", screen.Octets(free), dir)
	}
}

// secretKey looks at the key, and makes none.
func (c *checkup) secretKey(r *report) {
	path := c.source.SecretKeyPath(c.cfg)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.add("key.none", "secret key", "%s is not there", path)
		return
	case err == nil && !info.Mode().IsRegular():
		r.add("key.no-file", "secret key", "%s is not a regular file", path)
		return
	}
	if _, err = seal.LoadOrCreateKey(path); err != nil {
		r.add(keyTrouble(err), "secret key", "%v", err)
		return
	}
	r.add("key.ok", "secret key", "%s", path)
}

// keyTrouble is the finding about a key that cannot be used.
func keyTrouble(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "key.denied"
	case owned.IsFault(err):
		return "key.readable"
	}
	return "key.unusable"
}
