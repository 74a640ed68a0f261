package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/cmd/postern/receiver"
	"postern/relay/connect"
	"postern/relay/resolver"
	"postern/relay/smtp"
)

// Options are what the flags of 'postern check' say.
type Options struct {
	Only      []string
	Offline   bool
	Addresses []netip.Addr // that mail leaves from; empty: those of the hostname
	MX        []string     // domains whose mail hosts are tried
	Connect   []string     // host:port to try as an outsider, in the place of our listeners
}

// checkup is one run of the check. Its areas only read what is here, and each writes
// a report of its own.
type checkup struct {
	source  config.Source
	dialer  *database.Connector // of the database
	opts    Options
	cfg     config.Config
	found   bool  // there is a configuration file
	bad     error // it cannot be used, so nothing else is looked at
	running bool  // a node asks, see Running

	now   func() time.Time
	dns   *resolver.Resolver
	roots *x509.CertPool // of certificates; nil: the system's
	// policies say what mail hosts have to prove; nil: as the database has it
	policies connect.Policies
	limit    time.Duration // of the whole check
	bounds   bounds

	database   future[string] // its URL
	mail       future[*mailView]
	looks      receiver.Looks
	over       chan struct{}  // closed when all areas are done
	background sync.WaitGroup // what ends then
}

// checkTime bounds the whole check.
const checkTime = time.Minute

// Run looks at what opts choose, and returns what was found in the order of the areas. The
// configuration is from's; dialer connects to the database.
func Run(ctx context.Context, from config.Source, dialer *database.Connector, opts Options) []health.Finding {
	return newCheckup(from, dialer, opts).run(ctx)
}

// Running is what a running node asks of itself, the database and what all nodes have found, as Run
// does: it tries neither its own listeners nor upstreams, and asks other sites only about DKIM records.
func Running(ctx context.Context, cfg config.Config, from config.Source, dialer *database.Connector, url string) []health.Finding {
	c := newCheckup(from, dialer, Options{})
	c.cfg, c.bad, c.running = cfg, nil, true
	_, _ = c.database.get(ctx, func() (string, error) { return url, nil })
	return c.run(ctx)
}

func newCheckup(from config.Source, dialer *database.Connector, opts Options) *checkup {
	c := &checkup{source: from, dialer: dialer, opts: opts, now: time.Now, limit: checkTime, bounds: defaultBounds()}
	c.cfg, c.found, c.bad = from.Load()
	asking, _ := c.cfg.DNS.Config() // it was validated, or is not used
	c.dns = resolver.New(asking)
	return c
}

// Validate returns what is wrong with the flags.
func (o *Options) Validate() error {
	for _, name := range o.Only {
		if !slices.Contains(Areas(), name) {
			return fmt.Errorf("--only: there is no area %q; the areas are %s", name, AreaNames())
		}
	}
	if err := o.together(); err != nil {
		return err
	}
	for _, domain := range o.MX {
		if !smtp.ValidDomain(domain) {
			return fmt.Errorf("--mx: %q is not a domain name", domain)
		}
	}
	for _, at := range o.Connect {
		if host, port, err := net.SplitHostPort(at); err != nil || host == "" || port == "" {
			return fmt.Errorf("--connect: %q is not host:port", at)
		}
	}
	return nil
}

// together refuses flags that leave an area nothing to look at, and those that no area
// looks at: the check would succeed without having done what was asked for.
func (o *Options) together() error {
	for _, a := range areas() {
		switch {
		case !slices.Contains(o.Only, a.name):
		case a.online && o.Offline:
			return fmt.Errorf("--only %s queries other servers, which --offline forbids: omit one of them", a.name)
		case a.name == "mx" && len(o.MX) == 0:
			return fmt.Errorf("--only mx needs --mx DOMAIN: it tries the mail hosts of that domain")
		}
	}
	for _, f := range []struct {
		flag   string
		given  bool
		areas  []string
		online bool
	}{
		{"mx", len(o.MX) > 0, []string{"mx"}, true},
		{"address", len(o.Addresses) > 0, []string{"dns", "spf"}, true},
		{"connect", len(o.Connect) > 0, []string{"relay"}, false},
	} {
		looks := func(name string) bool { return slices.Contains(f.areas, name) }
		switch {
		case !f.given:
		case f.online && o.Offline:
			return fmt.Errorf("--%s queries other servers, which --offline forbids: omit one of them", f.flag)
		case len(o.Only) > 0 && !slices.ContainsFunc(o.Only, looks):
			return fmt.Errorf("--%s is for %s, which --only leaves out", f.flag, strings.Join(f.areas, " and "))
		}
	}
	return nil
}
