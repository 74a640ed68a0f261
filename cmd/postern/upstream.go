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

	"postern/relay/route"
)

func (a *app) upstreamCmd() *cobra.Command {
	return noun("upstream", "the smarthosts that mail is forwarded to",
		a.upstreamAddCmd(), a.upstreamListCmd(), a.upstreamRemoveCmd())
}

// defaultPorts are used where --host names none (RFC 8314, RFC 6409, RFC 5321).
var defaultPorts = map[route.TLSMode]int{
	route.TLSImplicit: 465, route.TLSRequire: 587, route.TLSOpportunistic: 25, route.TLSNone: 25,
}

func (a *app) upstreamAddCmd() *cobra.Command {
	var (
		u             route.Upstream
		host, mode    string
		caFile        string
		passwordStdin bool
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

An account (--username with --password-stdin) needs require or implicit. Its
password is sealed with the key in secret_key_file before it is stored.`,
		Example: `  postern upstream add out --host smtp.example.net:587 --tls require
  postern upstream add ses --host smtp.example.com --tls implicit --username AKIA1 --password-stdin <secret.txt`,
		Args: exactly(1, "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u.Name, u.TLS = args[0], route.TLSMode(mode)
			if err := splitHost(host, &u); err != nil {
				return err
			}
			if (u.Username != "") != passwordStdin {
				return usagef("--username and --password-stdin go together")
			}
			if caFile != "" {
				pem, err := os.ReadFile(caFile)
				if err != nil {
					return fmt.Errorf("--ca-file: %w", err)
				}
				u.CA = string(pem)
			}
			if passwordStdin {
				secret, err := readSecret(a.stdin)
				if err != nil {
					return err
				}
				u.Password = secret
			}
			return a.addUpstream(cmd.Context(), u)
		},
	}
	f := cmd.Flags()
	f.StringVar(&host, "host", "", "`HOST[:PORT]` (default port 465 for implicit, 587 for require, else 25)")
	f.StringVar(&mode, "tls", string(route.TLSRequire), "none, opportunistic, require or implicit")
	f.StringVar(&u.Username, "username", "", "account name at the smarthost")
	f.BoolVar(&passwordStdin, "password-stdin", false, "read the account's password from standard input")
	f.StringVar(&caFile, "ca-file", "", "PEM `file` of the authorities to trust instead of the system's")
	f.IntVar(&u.MaxConnections, "connections", 0, "connections at once from each node (default: delivery.connections)")
	_ = cmd.MarkFlagRequired("host")
	return cmd
}

// splitHost takes HOST, HOST:PORT, [IPv6]:PORT or a bare IPv6 address.
func splitHost(host string, u *route.Upstream) error {
	u.Host, u.Port = strings.Trim(host, "[]"), defaultPorts[u.TLS]
	if h, p, err := net.SplitHostPort(host); err == nil {
		port, err := strconv.Atoi(p)
		if err != nil {
			return usagef("--host: port %q is no number", p)
		}
		u.Host, u.Port = h, port
	}
	if u.Port == 0 {
		u.Port = 25 // of a mode that Validate refuses
	}
	return nil
}

func (a *app) addUpstream(ctx context.Context, u route.Upstream) error {
	if err := u.Validate(); err != nil {
		return usageError{err.Error()}
	}
	cfg, _, err := a.loadConfig()
	if err != nil {
		return err
	}
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		var sealer *route.Sealer
		if u.Username != "" {
			if sealer, err = a.sealer(cfg); err != nil {
				return err
			}
		}
		if err := route.NewStore(pool, sealer).AddUpstream(ctx, u); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "added upstream %s: %s, TLS %s\n", u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), u.TLS)
		return err
	})
}

func (a *app) upstreamListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the smarthosts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				list, err := route.NewStore(pool, nil).ListUpstreams(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				t := table{head: []string{"NAME", "HOST", "TLS", "ACCOUNT", "CONNECTIONS"}}
				for _, u := range list {
					t.add(u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), string(u.TLS), orDash(u.Username), orDefault(u.MaxConnections))
				}
				return t.print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) upstreamRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a smarthost that no route uses",
		Args:  exactly(1, "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				return route.NewStore(pool, nil).RemoveUpstream(ctx, args[0])
			})
		},
	}
}

func (a *app) routeCmd() *cobra.Command {
	return noun("route", "which way mail goes",
		a.routeAddCmd(), a.routeListCmd(), a.routeRemoveCmd())
}

func (a *app) routeAddCmd() *cobra.Command {
	var via string
	cmd := &cobra.Command{
		Use:   "add --via UPSTREAM|mx",
		Short: "set the default route",
		Long: `Sets where mail goes: to an upstream, or with 'mx' straight to the servers of
each recipient's domain. A route is looked up at every attempt, so a new one also
moves mail that waits already.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rule := route.Rule{}
			if via == "" {
				return usagef("--via needs the name of an upstream, or mx")
			}
			if via != "mx" {
				rule.Upstreams = []string{via}
			}
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				id, err := route.NewStore(pool, nil).AddRoute(ctx, rule)
				if errors.Is(err, route.ErrExists) {
					return errors.New("there is a default route already: see 'postern route list', take it away with 'postern route remove ID'")
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "added route %d: all mail via %s\n", id, via)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&via, "via", "", "name of the `upstream`, or mx")
	_ = cmd.MarkFlagRequired("via")
	return cmd
}

func (a *app) routeListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the routes in the order in which they are tried",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				list, err := route.NewStore(pool, nil).ListRoutes(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				t := table{head: []string{"ID", "MATCH", "VIA"}}
				for _, r := range list {
					via := "mx"
					if !r.MX() {
						via = strings.Join(r.Upstreams, ", ")
					}
					t.add(strconv.FormatInt(r.ID, 10), matchText(r), via)
				}
				return t.print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func matchText(r route.Rule) string {
	var parts []string
	if r.UserID != 0 {
		parts = append(parts, "user "+strconv.FormatInt(r.UserID, 10))
	}
	if r.SenderDomain != "" {
		parts = append(parts, "from "+r.SenderDomain)
	}
	if r.RecipientDomain != "" {
		parts = append(parts, "to "+r.RecipientDomain)
	}
	if len(parts) == 0 {
		return "all mail"
	}
	return strings.Join(parts, ", ")
}

func (a *app) routeRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "remove a route",
		Args:  exactly(1, "the route's number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usagef("%q is no route number: see 'postern route list'", args[0])
			}
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				return route.NewStore(pool, nil).RemoveRoute(ctx, id)
			})
		},
	}
}
