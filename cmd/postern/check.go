package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/relay/queue"
	"postern/relay/route"
)

// finding is one line of what 'postern check' says.
type finding struct {
	Subject string `json:"subject"`
	Status  string `json:"status"` // ok, warning or failed
	Text    string `json:"text"`   // what was found and, unless ok, what to do
}

// checkup collects findings.
type checkup struct {
	app      *app
	cfg      config
	findings []finding
}

func (a *app) checkCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "tell what is wrong with this set-up",
		Long: `Looks at the configuration, the certificate, the listeners' addresses, the
database with its durability settings and schema, the routes and the upstreams.
The exit status is 1 when something failed. Nothing is changed, and a running
server is not disturbed; a private database that is not up is started for the time.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := &checkup{app: a}
			c.run(cmd.Context())
			if asJSON {
				if err := printJSON(a.stdout, c.findings); err != nil {
					return err
				}
			} else if err := c.print(); err != nil {
				return err
			}
			for _, f := range c.findings {
				if f.Status == "failed" {
					return errors.New("the check failed")
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *checkup) ok(subject, format string, args ...any) {
	c.findings = append(c.findings, finding{subject, "ok", fmt.Sprintf(format, args...)})
}

func (c *checkup) warn(subject, format string, args ...any) {
	c.findings = append(c.findings, finding{subject, "warning", fmt.Sprintf(format, args...)})
}

func (c *checkup) fail(subject, format string, args ...any) {
	c.findings = append(c.findings, finding{subject, "failed", oneLine(fmt.Sprintf(format, args...))})
}

func (c *checkup) print() error {
	t := table{head: []string{"", "SUBJECT", "FINDING"}}
	for _, f := range c.findings {
		t.add(f.Status, f.Subject, f.Text)
	}
	return t.print(c.app.stdout)
}

func (c *checkup) run(ctx context.Context) {
	cfg, found, err := c.app.loadConfig()
	if err != nil {
		c.fail("configuration", "%v", err)
		return
	}
	c.cfg = cfg
	if !found {
		c.warn("configuration", "no file: 'postern serve' needs one, see configs/postern.toml")
	} else {
		c.ok("configuration", "every key is known")
	}
	if len(cfg.Listeners) > 0 {
		c.certificate()
		c.listeners()
	} else if found {
		c.warn("listeners", "there is no [[listener]]: only 'postern serve --only delivery' starts so")
	}
	err = c.app.withDatabaseOf(ctx, cfg, func(ctx context.Context, url string) error {
		c.database(ctx, url)
		return nil
	})
	if err != nil {
		c.fail("database", "%v", err)
	}
}

func (c *checkup) certificate() {
	t := c.cfg.TLS
	if t.SelfSigned {
		c.warn("certificate", "self-signed: clients will not trust it; set certificate and key in [tls]")
		return
	}
	if t.Certificate == "" && c.cfg.ACME.on() {
		c.ok("certificate", "by ACME: 'postern certificate list' tells of it")
		return
	}
	if t.Certificate == "" {
		c.fail("certificate", "none: set certificate and key in [tls]")
		return
	}
	pair, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
	if err != nil {
		c.fail("certificate", "%v", err)
		return
	}
	hostname, err := c.cfg.hostname()
	if err != nil {
		c.fail("certificate", "%v", err)
		return
	}
	left := time.Until(pair.Leaf.NotAfter)
	switch {
	case left <= 0:
		c.fail("certificate", "%s expired on %s: renew it; a running server takes the new file by itself", t.Certificate, localTime(pair.Leaf.NotAfter))
	case pair.Leaf.VerifyHostname(hostname) != nil:
		c.warn("certificate", "it is for %s and not for the hostname %s: clients that use that name will refuse it", strings.Join(pair.Leaf.DNSNames, ", "), hostname)
	case left < 14*24*time.Hour:
		c.warn("certificate", "it expires on %s: renew it", localTime(pair.Leaf.NotAfter))
	default:
		c.ok("certificate", "for %s, until %s", hostname, localTime(pair.Leaf.NotAfter))
	}
}

func (c *checkup) listeners() {
	for _, l := range c.cfg.Listeners {
		ln, err := net.Listen("tcp", l.Address)
		switch {
		case err == nil:
			_ = ln.Close()
			c.ok("listener", "%s is free", l.Address)
		case errors.Is(err, syscall.EADDRINUSE):
			c.warn("listener", "%s is in use: by the running server, or by another program that must go", l.Address)
		default:
			c.fail("listener", "cannot listen on %s: %v", l.Address, listenReason(err))
		}
	}
}

func (c *checkup) database(ctx context.Context, url string) {
	conn, err := connect(ctx, url)
	if err != nil {
		c.fail("database", "%v", err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	c.ok("database", "%s answers", redactURL(url))
	c.durability(ctx, conn)
	if err := requireSchema(ctx, conn); err != nil {
		c.fail("schema", "%v", err)
		return
	}
	c.ok("schema", "current")
	pool, err := openPool(ctx, url, "check", 1, nil)
	if err != nil {
		c.fail("database", "%v", err)
		return
	}
	defer pool.Close()
	c.routes(ctx, pool)
}

func (c *checkup) durability(ctx context.Context, conn *pgx.Conn) {
	findings, err := queue.CheckServer(ctx, conn)
	if err != nil {
		c.fail("durability", "%v", err)
		return
	}
	for _, f := range findings {
		c.fail("durability", "%s is %s: %s", f.Setting, f.Value, f.Advice)
	}
	if len(findings) == 0 {
		c.ok("durability", "the database keeps what it commits")
	}
}

func (c *checkup) routes(ctx context.Context, pool *pgxpool.Pool) {
	sealer, keyErr := c.app.presentSealer(c.cfg)
	store := route.NewStore(pool, sealer)
	rules, err := store.ListRoutes(ctx)
	if err != nil {
		c.fail("route", "%v", err)
		return
	}
	if len(rules) == 0 {
		c.fail("route", "none: mail waits until one is added with 'postern route add'")
		return
	}
	c.ok("route", "mail has a way; 'postern route list' shows it")
	upstreams, err := store.ListUpstreams(ctx)
	if err != nil {
		c.fail("upstream", "%v", err)
		return
	}
	for _, u := range upstreams {
		c.upstream(ctx, u)
	}
	c.passwords(ctx, store, keyErr)
}

// passwords looks whether the key of this node opens what is sealed in the database.
func (c *checkup) passwords(ctx context.Context, store *route.Store, keyErr error) {
	bad, err := store.Unusable(ctx)
	if err != nil {
		c.fail("upstream", "%v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		if keyErr != nil {
			c.fail("upstream", "%s: its password cannot be opened: %v", name, keyErr)
			continue
		}
		c.fail("upstream", "%s: the key %s does not open its password: copy the key of the node where the upstream was added, or add it again here",
			name, c.app.secretKeyPath(c.cfg))
	}
}

// upstream only opens a connection: whether the account is good shows at the
// first delivery.
func (c *checkup) upstream(ctx context.Context, u route.Account) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Host, fmt.Sprint(u.Port)))
	if err != nil {
		c.warn("upstream", "%s does not answer: %v", u.Name, err)
		return
	}
	_ = conn.Close()
	c.ok("upstream", "%s accepts connections at %s; TLS and its account are tried at the first delivery", u.Name, conn.RemoteAddr())
}
