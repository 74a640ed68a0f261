package check

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/internal/owned"
	"postern/internal/units"
	"postern/relay/connect"
	"postern/relay/seal"
)

var configKinds = []kind{
	{"config.ok", health.OK, "", ""},
	{"config.invalid", health.Failed, "The configuration cannot be read or used, or every local user may change it.",
		"correct what it names; configs/postern.toml lists every key with its default"},
	{"config.missing", health.Warning, "There is no configuration file.", "write one, such as configs/postern.toml; 'postern serve' needs it"},
	{"config.readable", health.Warning, "Every local user may read the database's password or client key.",
		"chmod 640 the file and give it to the server's group"},
	{"config.hostname", health.Warning, "Others cannot look up the hostname.",
		"set hostname to this server's public DNS name: many servers look up the name in EHLO"},
	{"config.private-mx", health.Warning, "Mail may go to private addresses, so others' MX records can lead into your network.",
		"remove allow_private_mx; it is for tests"},
	{"config.source", health.Failed, "This machine does not have the address from which mail is to leave, so mail waits.",
		"correct source in [delivery], or give this machine the address"},
	{"config.mx-port", health.Warning, "Mail goes to another port of mail hosts than 25.", "remove mx_port; it is for tests"},
	{"config.message-size", health.Warning, "Messages of ordinary size are refused.", "set message_size to at least 10MB, unless that is intended"},
	{"config.header-size", health.Warning, "Headers of ordinary size are refused.", "set header_size to at least 64KiB"},
	{"config.spool-size", health.Warning, "The largest message allowed does not fit into spool, so it is never accepted.",
		"set spool to several times message_size"},
	{"config.lifetime", health.Warning, "Delivery is given up earlier than RFC 5321 section 4.5.4.1 advises.",
		"set lifetime to 4d or 5d: servers may be down over a weekend"},
	{"config.delay-notice", health.Warning, "Senders hear of a delay only after delivery is given up.", "set delay_notice below lifetime"},
	{"config.files", health.Info, "This shell's limit of open files is too low for all configured connections.",
		"raise it for the server (ulimit -n, LimitNOFILE), or lower connections"},
	{"key.ok", health.OK, "", ""},
	{"key.none", health.Info, "The secret key does not exist yet; it is created when needed.", ""},
	{"key.readable", health.Failed, "Others may read or change the secret key of upstream passwords and ACME keys, so it is not used.",
		"chmod 600 it and give it to the server's user"},
	{"key.denied", health.Failed, "The secret key may not be read.", "chown it and its folder to the server's user, or run the check as that user"},
	{"key.no-file", health.Failed, "The path of the secret key leads to a folder, pipe or device.", "correct secret_key_file, or move this away"},
	{"key.unusable", health.Failed, "The secret key cannot be used.",
		"copy it from another node or a backup; docs/certificates.md says how to go on without it"},
}

func (c *checkup) lookAtConfig(_ context.Context, r *report) {
	switch {
	case c.bad != nil:
		r.add("config.invalid", "configuration", "%s", strings.TrimPrefix(c.bad.Error(), "configuration "))
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
	for _, to := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if source := d.Origin().SourceFor(to); source.IsValid() && !connect.IsLocal(source) {
			r.add("config.source", "configuration", "delivery.source is %s", source)
		}
	}
	if d.MXPort != 25 {
		r.add("config.mx-port", "configuration", "delivery.mx_port is %d", d.MXPort)
	}
	if s.MessageSize < 1<<20 {
		r.add("config.message-size", "configuration", "submission.message_size is %s", units.FormatOctets(int64(s.MessageSize)))
	}
	if s.HeaderSize < 16<<10 {
		r.add("config.header-size", "configuration", "submission.header_size is %s", units.FormatOctets(int64(s.HeaderSize)))
	}
	if s.Spool < s.MessageSize {
		r.add("config.spool-size", "configuration", "submission.spool is %s, message_size %s", units.FormatOctets(int64(s.Spool)), units.FormatOctets(int64(s.MessageSize)))
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
	r.take(health.Spool(dir, int64(s.MessageSize), int64(s.Spool)))
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
	if _, err = seal.LoadOrCreate(path); err != nil {
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
