package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/check"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/trust"
	"postern/relay/connect"
	"postern/relay/transport"
)

func (a *app) transportCmd() *cobra.Command {
	return noun("transport", "manage what mail hosts must prove (DANE, MTA-STS)", a.transportShowCmd(), a.transportRefreshCmd(), a.transportOverrideCmd())
}

func (a *app) transportShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [DOMAIN]",
		Short: "show what a domain's mail hosts must prove, and why",
		Long: `Asks DNS for the mail hosts of a domain and shows what each must prove, and what demands
it: an override, TLSA records (DANE), MTA-STS, or nothing. A policy that is not cached
yet, or whose id has changed, is fetched and cached, as by a delivery. It connects to no
mail host.

Without DOMAIN it lists the overrides, the cached policies, and those that could not be
fetched.`,
		Example: "  postern transport show example.com",
		Args:    atMostOne("DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
					list, err := trust.ListAll(ctx, users.pool)
					switch {
					case err != nil:
						return err
					case asJSON:
						return screen.JSON(a.stdout, list)
					}
					return list.Print(a.stdout)
				})
			}
			domain, err := domainOf(args[0])
			if err != nil {
				return err
			}
			return a.withFinder(cmd.Context(), func(ctx context.Context, users *accounts, cfg connect.Config, _ *transport.Finder) error {
				shown, err := trust.Look(ctx, users.pool, cfg, domain)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, shown)
				}
				return shown.Print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// withFinder runs do with what finds policies as the nodes do, and with how they connect.
func (a *app) withFinder(ctx context.Context, do func(context.Context, *accounts, connect.Config, *transport.Finder) error) error {
	return a.withUsers(ctx, func(ctx context.Context, users *accounts) error {
		cfg, err := check.Dialling(a.source, 20*time.Second)
		if err != nil {
			return err
		}
		finder := transport.New(transport.Config{DB: users.pool, DNS: cfg.DNS, Fetch: cfg.Fetcher(), Node: "a postern command"})
		cfg.Policies = finder
		err = do(ctx, users, cfg, finder)
		_ = finder.Close(context.WithoutCancel(ctx)) // nothing is left to do
		return err
	})
}

func (a *app) transportRefreshCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh DOMAIN",
		Short: "fetch a domain's MTA-STS policy now",
		Long: `Fetches the MTA-STS policy of a domain even if the cached one has not expired and has the
same id: some domains change their policy without changing its id. All nodes follow
within ten seconds. If it cannot be fetched, the cached policy stays.`,
		Args: one("DOMAIN", "a domain"),
		RunE: func(cmd *cobra.Command, args []string) error {
			domain, err := domainOf(args[0])
			if err != nil {
				return err
			}
			return a.withFinder(cmd.Context(), func(ctx context.Context, users *accounts, _ connect.Config, finder *transport.Finder) error {
				if err := finder.Refresh(ctx, domain); err != nil {
					return err
				}
				kept, err := transport.Policies(ctx, users.pool, domain, 1)
				if err != nil || len(kept) == 0 {
					return err
				}
				return a.followed(domain, trust.STSText(&kept[0]))
			})
		},
	}
}

// followed says what holds for a domain once all nodes have read it.
func (a *app) followed(domain, text string) error {
	_, err := fmt.Fprintf(a.stdout, "%s: %s\nto do: if mail waits, run 'postern queue retry --domain %[1]s' in ten seconds\n", domain, screen.Printable(text))
	return err
}

func (a *app) transportOverrideCmd() *cobra.Command {
	var level, reason, span string
	var clear bool
	cmd := &cobra.Command{
		Use:   "override DOMAIN",
		Short: "demand less, or more, of a domain's mail hosts for a time",
		Long: `Sets, for a limited time, what the mail hosts of a domain must prove, in place of what the
domain publishes by DANE and MTA-STS: when its records are broken and mail must go there
anyway, or when you know that its hosts can do more. It applies to exactly this recipient domain. All nodes follow
within ten seconds.

  --level opportunistic  TLS if it is offered, with any certificate, else in clear
  --level encrypted      TLS, with any certificate
  --level verified       TLS, with a certificate for the host's name from a trusted CA`,
		Example: `  postern transport override example.com --level encrypted --for 2d --reason 'their certificate expired'
  postern transport override example.com --clear`,
		Args: one("DOMAIN", "a domain"),
		RunE: func(cmd *cobra.Command, args []string) error {
			domain, err := domainOf(args[0])
			if err != nil {
				return err
			}
			if clear {
				if cmd.Flags().Changed("for") || cmd.Flags().Changed("reason") {
					return usagef("--clear ends the override now: omit --for and --reason")
				}
				return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
					if err := transport.ClearOverride(ctx, users.pool, users.actor, domain); err != nil {
						return err
					}
					_, err := fmt.Fprintf(a.stdout, "cleared the override of %s\n", domain)
					return err
				})
			}
			if reason == "" {
				return usagef("--level needs --reason TEXT")
			}
			o := transport.Override{Domain: domain, Reason: reason}
			if o.Level, err = transport.ParseLevel(level); err != nil {
				return usagef("--level: %v", err)
			}
			lasts, err := spanFlag("for", span)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				o, err := transport.SetOverride(ctx, users.pool, users.actor, o, lasts)
				if err != nil {
					return err
				}
				return a.followed(domain, trust.OverrideText(&o))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&level, "level", "", "`LEVEL` to demand: "+strings.Join(transport.Levels(), ", "))
	f.StringVar(&reason, "reason", "", "`TEXT` for the audit and for colleagues")
	f.StringVar(&span, "for", "7d", "how long it lasts: a `SPAN` up to 366d")
	f.BoolVar(&clear, "clear", false, "end the override")
	cmd.MarkFlagsOneRequired("level", "clear")
	cmd.MarkFlagsMutuallyExclusive("level", "clear")
	return cmd
}
