package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/acme"
)

func (a *app) certificateCmd() *cobra.Command {
	return noun("certificate", "list and renew the certificates from an ACME CA", a.certificateListCmd(), a.certificateRenewCmd())
}

func (a *app) certificateRenewCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "renew NAME",
		Short: "order a new certificate before the old one is due for renewal",
		Long: `Asks the nodes to order a new certificate with a new key for NAME, for instance because
the old key may have leaked. After a failure the order is tried again immediately. The
certificate in use stays until the new one is issued. The old one is not revoked: ask
the CA for that.`,
		Args: one("NAME", "the NAME of a certificate; 'postern certificate list' shows them"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			known, err := acme.AskRenewal(ctx, users.pool, args[0], users.actor)
			if err != nil {
				return err
			}
			if !known {
				return fmt.Errorf("no node has recorded a certificate for %s by ACME; 'postern certificate list' shows the recorded ones", screen.Printable(args[0]))
			}
			fmt.Fprintf(a.stdout, "%s will be renewed by a running node within 10 minutes, or immediately by a reload\n", screen.Printable(strings.ToLower(args[0])))
			return nil
		}),
	}
}

// certificateLine is how --json tells of a certificate.
type certificateLine struct {
	acme.Record
	Condition string `json:"state"`
}

func (a *app) certificateListCmd() *cobra.Command {
	return listing[certificateLine]{
		head: []string{"NAME", "SOURCE", "STATE", "UNTIL"},
		row: func(c certificateLine) []string {
			return []string{c.Name, c.Authority, c.Condition, screen.LocalTime(c.NotAfter)}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]certificateLine, error) {
			list, err := acme.List(ctx, users.pool)
			return screen.Each(list, func(r acme.Record) certificateLine { return certificateLine{r, r.State(time.Now())} }), err
		},
		after: func(c certificateLine) string {
			if c.Failures == 0 {
				return ""
			}
			return fmt.Sprintf("%s: no certificate since %s, tried again at %s: %s", c.Name,
				screen.LocalTime(c.FailingSince), screen.LocalTime(c.NextTry), strings.TrimSpace(c.LastError))
		},
	}.command(a, &cobra.Command{
		Use:   "list",
		Short: "list certificates that nodes get by ACME, with their expiry and state",
		Long: `Lists what the nodes have recorded in the database about each name in their [acme]
names: when its certificate expires, and, while the CA issues none, since when,
why, and when it is tried again. A certificate in files is not listed; 'postern check'
examines that one.`,
		Args: noArguments,
	})
}

// certificatesLike are the names for completion; the caller picks those with the prefix.
func certificatesLike(ctx context.Context, pool *pgxpool.Pool, _ string) ([]string, error) {
	list, err := acme.List(ctx, pool)
	return screen.Each(list, func(r acme.Record) string { return r.Name }), err
}
