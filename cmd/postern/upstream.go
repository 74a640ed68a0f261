package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/relay/seal"
	"postern/relay/upstream"
)

func (a *app) upstreamCmd() *cobra.Command {
	return noun("upstream", "the smarthosts that mail is forwarded to",
		a.upstreamAddCmd(), a.upstreamListCmd(), a.upstreamRemoveCmd())
}

// tlsModes are the values of --tls.
var tlsModes = []string{string(upstream.TLSNone), string(upstream.TLSOpportunistic), string(upstream.TLSRequire), string(upstream.TLSImplicit)}

// defaultPorts are used where --host names none (RFC 8314, RFC 6409, RFC 5321).
var defaultPorts = map[upstream.TLSMode]int{
	upstream.TLSImplicit: 465, upstream.TLSRequire: 587, upstream.TLSOpportunistic: 25, upstream.TLSNone: 25,
}

func (a *app) upstreamAddCmd() *cobra.Command {
	var (
		u          upstream.Account
		host, mode string
		caFile     string
		from       passwordSource
		ifMissing  bool
	)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a smarthost",
		Long: `Adds a smarthost under a name that routes refer to.

--tls says how the connection is protected:
  none           never
  opportunistic  STARTTLS when it is offered, whatever the certificate
  require        STARTTLS with a verified certificate, or the mail waits
  implicit       TLS from the start with a verified certificate, or the mail waits

An account (--username with a password) needs require or implicit. Its
password is sealed with the key in secret_key_file before it is stored.`,
		Example: `  postern upstream add out --host smtp.example.net:587 --tls require
  postern upstream add ses --host smtp.example.com --tls implicit --username AKIA1 --password-stdin <secret.txt`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u.Name, u.TLS = args[0], upstream.TLSMode(mode)
			if err := splitHost(host, &u); err != nil {
				return err
			}
			if (u.Username != "") != from.given() {
				return usagef("--username and --password-stdin or --password-file go together")
			}
			if caFile != "" {
				pem, err := os.ReadFile(caFile)
				if err != nil {
					return fmt.Errorf("--ca-file: %w", err)
				}
				u.CA = string(pem)
			}
			if from.given() {
				secret, err := from.read(a.stdin, a.warn)
				if err != nil {
					return err
				}
				u.Password = secret
			}
			err := a.addUpstream(cmd.Context(), u)
			if ifMissing && errors.Is(err, refusal.ErrExists) {
				return a.thereAlready("upstream", u.Name)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&host, "host", "", "`HOST[:PORT]` (default port 465 for implicit, 587 for require, else 25)")
	f.StringVar(&mode, "tls", string(upstream.TLSRequire), "none, opportunistic, require or implicit")
	f.StringVar(&u.Username, "username", "", "account name at the smarthost")
	from.flags(cmd)
	f.StringVar(&caFile, "ca-file", "", "PEM `file` of the authorities to trust instead of the system's")
	f.IntVar(&u.MaxConnections, "connections", 0, "concurrent connections from each node (default: delivery.connections)")
	f.BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	_ = cmd.MarkFlagRequired("host")
	return cmd
}

// splitHost takes HOST, HOST:PORT, [IPv6]:PORT or a bare IPv6 address.
func splitHost(host string, u *upstream.Account) error {
	u.Host, u.Port = strings.Trim(host, "[]"), defaultPorts[u.TLS]
	if h, p, err := net.SplitHostPort(host); err == nil {
		port, err := strconv.Atoi(p)
		if err != nil {
			return usagef("--host: port %q is not a number", p)
		}
		u.Host, u.Port = h, port
	}
	if u.Port == 0 {
		u.Port = 25 // of a mode that Validate refuses
	}
	return nil
}

func (a *app) addUpstream(ctx context.Context, u upstream.Account) error {
	if err := u.Validate(); err != nil {
		return usageError{err.Error()}
	}
	cfg, _, err := a.source.Load()
	if err != nil {
		return err
	}
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		var sealer *seal.Sealer
		if u.Username != "" {
			if sealer, err = a.source.Sealer(cfg); err != nil {
				return err
			}
		}
		if err := upstream.NewStore(pool, sealer).As(a.actor()).Add(ctx, u); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "added upstream %s: %s, TLS %s\n", u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), u.TLS)
		return err
	})
}

func (a *app) upstreamListCmd() *cobra.Command {
	return listing[upstream.Listed]{
		head: []string{"NAME", "HOST", "TLS", "ACCOUNT", "CONNECTIONS"},
		row: func(u upstream.Listed) []string {
			return []string{u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), string(u.TLS), screen.OrDash(u.Username), orDefault(u.MaxConnections)}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]upstream.Listed, error) {
			return upstream.NewStore(users.pool, nil).List(ctx)
		},
	}.command(a, &cobra.Command{Use: "list", Short: "list the smarthosts", Args: noArguments})
}

func (a *app) upstreamRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a smarthost that no route uses",
		Args:  one("name", "the upstream's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			if err := upstream.NewStore(users.pool, nil).As(users.actor).Remove(ctx, args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "removed upstream %s\n", args[0])
			return err
		}),
	}
}
