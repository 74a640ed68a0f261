package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"postern/admin/health"
	"postern/cmd/postern/check"
	"postern/cmd/postern/screen"
)

func (a *app) checkCmd() *cobra.Command {
	var opts check.Options
	var addresses []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "examine this set-up and show what is wrong",
		Long: `Examines the configuration, the certificates, the listeners' addresses, the
database, the users, the routes, the upstreams with their accounts, and DNS, and
tests, as a client without a login, whether this server is an open relay. Each finding
that is not ok comes with its remedy; docs/check.md explains each by the name in
brackets. Run the check as the system user that runs the server.

The exit status is 1 when something failed. Nothing is changed, except for access tokens
due for renewal and, with --mx, the cached MTA-STS policies. No mail is sent, and a
running server is not disturbed; a private database that is not running is started for
the duration. The check takes at most about a minute.

The areas are ` + check.AreaNames() + `.`,
		Example: `  postern check
  postern check --only database,upstream
  postern check --address 198.51.100.7 --mx example.net`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.Addresses, err = parseAddresses(addresses); err != nil {
				return err
			}
			if err := opts.Validate(); err != nil {
				return usageError{err.Error()}
			}
			return a.check(cmd.Context(), opts, asJSON)
		},
	}
	cmd.Flags().StringSliceVar(&opts.Only, "only", nil, "examine only these `AREAS`, separated by commas")
	cmd.Flags().BoolVar(&opts.Offline, "offline", false, "query neither DNS nor upstreams")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "an `IP` address that mail leaves from; default: those of the hostname")
	cmd.Flags().StringSliceVar(&opts.MX, "mx", nil, "try the mail hosts of this `DOMAIN`, without sending mail")
	cmd.Flags().StringSliceVar(&opts.Connect, "connect", nil, "connect to this `HOST:PORT` as an outside client would, instead of to the listeners")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(check.Areas(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func parseAddresses(texts []string) (list []netip.Addr, err error) {
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, usagef("--address: %q is not an IP address", text)
		}
		list = append(list, addr.Unmap())
	}
	return list, nil
}

func (a *app) check(ctx context.Context, opts check.Options, asJSON bool) error {
	findings := check.Run(ctx, a.source, &a.database, opts)
	if asJSON {
		if err := screen.JSON(a.stdout, findings); err != nil {
			return err
		}
	} else if err := check.Print(a.stdout, findings); err != nil {
		return err
	}
	failed := 0
	for _, f := range findings {
		if f.Status == health.Failed {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("the check failed: %d of %d findings", failed, len(findings))
	}
	return nil
}
