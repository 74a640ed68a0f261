package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/check"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/smtp"
	"postern/relay/transport"
)

func (a *app) transportCmd() *cobra.Command {
	return noun("transport", "what the mail hosts of domains must prove: DANE, MTA-STS", a.transportShowCmd(), a.transportRefreshCmd(), a.transportOverrideCmd())
}

// mostPolicies are listed by 'transport show'.
const mostPolicies = 1000

// domainArg reads a domain as recipients have it.
func domainArg(text string) (string, error) {
	address, err := smtp.ParseAddress("postmaster@" + text)
	if err != nil || strings.HasPrefix(text, "[") {
		return "", usagef("%q is not a domain", text)
	}
	return address.DomainKey(), nil
}

// shownDomain is 'transport show DOMAIN' as --json prints it.
type shownDomain struct {
	Domain    string              `json:"domain"`
	Override  *transport.Override `json:"override"`
	STS       *transport.Kept     `json:"mta_sts"`
	Validated bool                `json:"mx_validated"`
	Hosts     []shownHost         `json:"hosts"`
}

type shownHost struct {
	Host    string           `json:"host"`
	Source  transport.Source `json:"policy"`
	Demands string           `json:"demands"`
	Trouble string           `json:"trouble,omitempty"`
}

func (a *app) transportShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [DOMAIN]",
		Short: "show what a domain's mail hosts must prove, and why",
		Long: `Asks DNS for the mail hosts of a domain and shows what each must prove before it gets a
message: by an override, by TLSA records (DANE), by the domain's MTA-STS policy, or nothing.
A policy that is not kept yet, or that has another id now, is fetched and kept, as a delivery would
do. No mail host is connected to. Without DOMAIN it lists the overrides and the MTA-STS policies
that are kept.`,
		Example: "  postern transport show example.com",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("'%s' takes one DOMAIN, not %d", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listTransport(cmd.Context(), asJSON)
			}
			domain, err := domainArg(args[0])
			if err != nil {
				return err
			}
			return a.withFinder(cmd.Context(), func(ctx context.Context, users *accounts, cfg connect.Config, _ *transport.Finder) error {
				shown, err := showDomain(ctx, users, cfg, domain)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, shown)
				}
				return a.printDomain(shown)
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
		finder := transport.New(transport.Config{DB: users.pool, DNS: cfg.DNS, Fetch: cfg.Fetcher(), Node: "postern transport"})
		cfg.Policies = finder
		err = do(ctx, users, cfg, finder)
		_ = finder.Close(context.WithoutCancel(ctx)) // nothing is left to do
		return err
	})
}

func showDomain(ctx context.Context, users *accounts, cfg connect.Config, domain string) (*shownDomain, error) {
	shown := &shownDomain{Domain: domain}
	hosts, err := connect.NewProber(cfg).Demands(ctx, domain)
	if err != nil {
		return nil, err
	}
	overrides, err := transport.Overrides(ctx, users.pool, domain, 1)
	if err != nil {
		return nil, err
	}
	kept, err := transport.Policies(ctx, users.pool, domain, 1)
	if err != nil {
		return nil, err
	}
	if len(overrides) > 0 {
		shown.Override = &overrides[0]
	}
	if len(kept) > 0 {
		shown.STS = &kept[0]
	}
	for _, h := range hosts {
		shown.Validated = h.MXSecure
		one := shownHost{Host: h.Host, Source: h.Policy.Source, Demands: h.Policy.Demands()}
		if h.Err != nil {
			one.Demands, one.Trouble = "", h.Err.Error()
		}
		shown.Hosts = append(shown.Hosts, one)
	}
	return shown, nil
}

func (a *app) printDomain(d *shownDomain) error {
	t := screen.Table{Head: []string{"DOMAIN", d.Domain}}
	t.Add("override", "none")
	if o := d.Override; o != nil {
		t = screen.Table{Head: t.Head}
		t.Add("override", overrideText(o))
	}
	if d.STS != nil {
		t.Add("mta-sts", stsText(d.STS))
	} else {
		t.Add("mta-sts", "no policy is kept")
	}
	validated := map[bool]string{true: "validated by DNSSEC", false: "not validated by DNSSEC"}
	t.Add("mx records", validated[d.Validated])
	if err := t.Print(a.stdout); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	hosts := screen.TableOf([]string{"HOST", "POLICY", "DEMANDS"}, func(h shownHost) []string {
		if h.Trouble != "" {
			return []string{h.Host, string(h.Source), "no mail goes there now: " + h.Trouble}
		}
		return []string{h.Host, string(h.Source), h.Demands}
	}, d.Hosts)
	hosts.Wraps = true
	return hosts.Print(a.stdout)
}

func overrideText(o *transport.Override) string {
	level, _ := o.Level.MarshalText()
	return fmt.Sprintf("%s until %s: %s (%s)", level, screen.LocalTime(o.ExpiresAt), o.Reason, o.SetBy)
}

func stsText(k *transport.Kept) string {
	text := fmt.Sprintf("%s until %s, id %s", k.Mode, screen.LocalTime(k.ExpiresAt), k.ID)
	if len(k.MX) > 0 {
		text += ", mx " + strings.Join(k.MX, " ")
	}
	if k.FailingSince != nil {
		text += fmt.Sprintf("; cannot be renewed since %s: %s", screen.LocalTime(*k.FailingSince), k.LastError)
	}
	return text
}

func (a *app) listTransport(ctx context.Context, asJSON bool) error {
	return a.withUsers(ctx, func(ctx context.Context, users *accounts) error {
		overrides, err := transport.Overrides(ctx, users.pool, "", mostPolicies)
		if err != nil {
			return err
		}
		kept, err := transport.Policies(ctx, users.pool, "", mostPolicies)
		if err != nil {
			return err
		}
		if asJSON {
			return screen.JSON(a.stdout, struct {
				Overrides []transport.Override `json:"overrides"`
				STS       []transport.Kept     `json:"mta_sts"`
			}{append([]transport.Override{}, overrides...), append([]transport.Kept{}, kept...)})
		}
		t := screen.Table{Head: []string{"DOMAIN", "POLICY", "TERMS"}, Wraps: true}
		for _, o := range overrides {
			t.Add(o.Domain, string(transport.SourceOverride), overrideText(&o))
		}
		for _, k := range kept {
			t.Add(k.Domain, string(transport.SourceSTS), stsText(&k))
		}
		return t.Print(a.stdout)
	})
}

func (a *app) transportRefreshCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh DOMAIN",
		Short: "fetch a domain's MTA-STS policy now",
		Long: `Fetches the MTA-STS policy of a domain, though the one that is kept has not ended, and its id
is the same; some domains change their policy without a new id. All nodes follow within ten
seconds. If it cannot be fetched, the kept policy stays.`,
		Args: one("DOMAIN", "a domain"),
		RunE: func(cmd *cobra.Command, args []string) error {
			domain, err := domainArg(args[0])
			if err != nil {
				return err
			}
			return a.withFinder(cmd.Context(), func(ctx context.Context, users *accounts, _ connect.Config, finder *transport.Finder) error {
				if err := finder.Refresh(ctx, domain); err != nil {
					return err
				}
				kept, err := transport.Policies(ctx, users.pool, domain, 1)
				if err == nil && len(kept) > 0 {
					_, err = fmt.Fprintf(a.stdout, "%s: %s\n", domain, screen.Printable(stsText(&kept[0])))
				}
				return err
			})
		},
	}
}

func (a *app) transportOverrideCmd() *cobra.Command {
	var level, reason, span string
	var clear bool
	cmd := &cobra.Command{
		Use:   "override DOMAIN",
		Short: "demand less, or more, of a domain's mail hosts for a time",
		Long: `Sets what the mail hosts of a domain must prove, in place of what it publishes by DANE and
MTA-STS, until a time: when its records are broken and its mail must go, or when you know
that its hosts can do more. It is for exactly this domain of recipients. All nodes follow
within ten seconds.

  --level opportunistic  TLS if it is offered, with any certificate, else in clear
  --level encrypted      TLS, with any certificate
  --level verified       TLS, with a certificate for the host's name from a known authority`,
		Example: `  postern transport override example.com --level encrypted --for 2d --reason 'their certificate expired'
  postern transport override example.com --clear`,
		Args: one("DOMAIN", "a domain"),
		RunE: func(cmd *cobra.Command, args []string) error {
			domain, err := domainArg(args[0])
			if err != nil {
				return err
			}
			if clear {
				return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
					if err := transport.ClearOverride(ctx, users.pool, users.actor, domain); err != nil {
						return err
					}
					_, err := fmt.Fprintf(a.stdout, "cleared the override of %s\n", domain)
					return err
				})
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
				_, err = fmt.Fprintf(a.stdout, "%s: %s\nto do: 'postern queue retry --domain %s', if mail waits\n", domain, screen.Printable(overrideText(&o)), domain)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&level, "level", "", "`LEVEL` to demand: "+strings.Join(transport.Levels(), ", "))
	f.StringVar(&reason, "reason", "", "`TEXT` for the audit and for colleagues")
	f.StringVar(&span, "for", "7d", "`SPAN` that it lasts, up to 366d")
	f.BoolVar(&clear, "clear", false, "end the override")
	cmd.MarkFlagsOneRequired("level", "clear")
	cmd.MarkFlagsMutuallyExclusive("level", "clear")
	cmd.MarkFlagsRequiredTogether("level", "reason")
	return cmd
}
