package main

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

	"github.com/spf13/cobra"

	"postern/relay/delivery"
	"postern/relay/smtp"
)

// checkOptions are what the flags of 'postern check' say.
type checkOptions struct {
	only      []string
	offline   bool
	addresses []netip.Addr // that mail leaves from; empty: those of the hostname
	mx        []string     // domains whose mail hosts are tried
	connect   []string     // host:port to try as an outsider, in the place of our listeners
}

// checkup is one run of the check. Its areas only read what is here, and each writes
// a report of its own.
type checkup struct {
	app   *app
	opts  checkOptions
	cfg   config
	found bool  // there is a configuration file
	bad   error // it cannot be used, so nothing else is looked at

	now    func() time.Time
	dns    checkResolver
	roots  *x509.CertPool // of certificates; nil: the system's
	limit  time.Duration  // of the whole check
	bounds bounds

	database   future[string] // its URL
	mail       future[*mailView]
	over       chan struct{}  // closed when all areas are done
	background sync.WaitGroup // what ends then
}

// checkResolver asks DNS; *net.Resolver is one.
type checkResolver interface {
	delivery.Resolver
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupAddr(ctx context.Context, addr string) (names []string, err error)
}

// checkTime bounds the whole check.
const checkTime = time.Minute

func (a *app) newCheckup(opts checkOptions) *checkup {
	c := &checkup{app: a, opts: opts, now: time.Now, limit: checkTime, bounds: defaultBounds()}
	c.cfg, c.found, c.bad = a.loadConfig()
	c.dns = resolver(c.cfg.Delivery.DNSServer)
	return c
}

func (a *app) checkCmd() *cobra.Command {
	var opts checkOptions
	var addresses []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "tell what is wrong with this set-up",
		Long: `Looks at the configuration, the certificates, the listeners' addresses, the
database, the accounts, the routes, the upstreams with their accounts, and DNS, and
tries as an outsider whether this server is an open relay. Each finding that is not
ok comes with what to do; its name stands in brackets, and docs/check.md explains all
of them. Run it as the user that the server runs as.

The exit status is 1 when something failed. Nothing is changed, no mail is sent, and
a running server is not disturbed; a private database that is not up is started for
the time. It ends within a minute or so.

The areas are ` + areaNames() + `.`,
		Example: `  postern check
  postern check --only database,upstream
  postern check --address 198.51.100.7 --mx example.net`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.addresses, err = parseAddresses(addresses); err != nil {
				return err
			}
			if err := opts.validate(); err != nil {
				return err
			}
			return a.check(cmd.Context(), opts, asJSON)
		},
	}
	cmd.Flags().StringSliceVar(&opts.only, "only", nil, "look at these `areas` only, with commas between them")
	cmd.Flags().BoolVar(&opts.offline, "offline", false, "ask neither DNS nor upstreams")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "an `IP` address that mail leaves from; default: those of the hostname")
	cmd.Flags().StringSliceVar(&opts.mx, "mx", nil, "try the mail hosts of this `domain`, without sending mail")
	cmd.Flags().StringSliceVar(&opts.connect, "connect", nil, "try this `host:port` as an outsider, in the place of the listeners")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(areaList(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func parseAddresses(texts []string) (list []netip.Addr, err error) {
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, usagef("--address: %q is no IP address", text)
		}
		list = append(list, addr.Unmap())
	}
	return list, nil
}

func (o *checkOptions) validate() error {
	for _, name := range o.only {
		if !slices.Contains(areaList(), name) {
			return usagef("--only: there is no area %q; the areas are %s", name, areaNames())
		}
	}
	if err := o.together(); err != nil {
		return err
	}
	for _, domain := range o.mx {
		if !smtp.ValidDomain(domain) {
			return usagef("--mx: %q is no domain name", domain)
		}
	}
	for _, at := range o.connect {
		if host, port, err := net.SplitHostPort(at); err != nil || host == "" || port == "" {
			return usagef("--connect: %q is not host:port", at)
		}
	}
	return nil
}

// together refuses flags that leave an area nothing to look at, and those that no area
// looks at: the check would succeed without having done what was asked for.
func (o *checkOptions) together() error {
	for _, a := range areas() {
		switch {
		case !slices.Contains(o.only, a.name):
		case a.online && o.offline:
			return usagef("--only %s asks others, which --offline forbids: leave one of them out", a.name)
		case a.name == "mx" && len(o.mx) == 0:
			return usagef("--only mx needs --mx DOMAIN: it tries the mail hosts of that domain")
		}
	}
	for _, f := range []struct {
		flag   string
		given  bool
		areas  []string
		online bool
	}{
		{"mx", len(o.mx) > 0, []string{"mx"}, true},
		{"address", len(o.addresses) > 0, []string{"dns", "spf"}, true},
		{"connect", len(o.connect) > 0, []string{"relay"}, false},
	} {
		looks := func(name string) bool { return slices.Contains(f.areas, name) }
		switch {
		case !f.given:
		case f.online && o.offline:
			return usagef("--%s asks others, which --offline forbids: leave one of them out", f.flag)
		case len(o.only) > 0 && !slices.ContainsFunc(o.only, looks):
			return usagef("--%s is for %s, which --only leaves out", f.flag, strings.Join(f.areas, " and "))
		}
	}
	return nil
}

func (a *app) check(ctx context.Context, opts checkOptions, asJSON bool) error {
	findings := a.newCheckup(opts).run(ctx)
	if asJSON {
		if err := printJSON(a.stdout, findings); err != nil {
			return err
		}
	} else if err := a.printFindings(findings); err != nil {
		return err
	}
	failed := 0
	for _, f := range findings {
		if f.Status == statusFailed {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("the check failed: %d of %d findings", failed, len(findings))
	}
	return nil
}

// printFindings writes what is to be done under what was found: beside it the lines
// would be too long for a terminal.
func (a *app) printFindings(findings []finding) error {
	t := table{head: []string{"", "SUBJECT", "FINDING"}}
	for _, f := range findings {
		if f.Status == statusOK {
			t.add(string(f.Status), f.Subject, f.Text)
			continue
		}
		t.add(string(f.Status), f.Subject, f.Text+" ["+f.ID+"]")
		if f.Todo != "" {
			t.add("", "", "to do: "+f.Todo)
		}
	}
	return t.print(a.stdout)
}

// few lists the first few of many.
func few(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
