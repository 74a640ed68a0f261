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
	return noun("certificate", "the certificates that an ACME authority issues", a.certificateListCmd(), a.certificateRenewCmd())
}

func (a *app) certificateRenewCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "renew NAME",
		Short: "order a new certificate before the old one is due for renewal",
		Long: `Asks the nodes to order a new certificate with a new key for NAME, as when the key may
have become known. After a failure the order is tried again immediately. The certificate
in use stays until the new one is there. The old one is not revoked: ask the authority
for that.`,
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
	Name        string     `json:"name"`
	Source      string     `json:"source"`
	State       string     `json:"state"`
	Issuer      string     `json:"issuer,omitempty"`
	Serial      string     `json:"serial,omitempty"`
	NotBefore   *time.Time `json:"not_before,omitempty"`
	NotAfter    *time.Time `json:"not_after,omitempty"`
	RenewedAt   *time.Time `json:"renewed_at,omitempty"`
	Node        string     `json:"node"`
	Failures    int        `json:"failures"`
	FailingFrom *time.Time `json:"failing_since,omitempty"`
	NextTry     *time.Time `json:"next_try,omitempty"`
	RenewAsked  *time.Time `json:"renew_asked,omitempty"`
	Error       string     `json:"error,omitempty"`
}

func (a *app) certificateListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list certificates that nodes get by ACME, with their expiry and state",
		Long: `Lists what the nodes have recorded in the database about each name in their [acme]
names: when its certificate expires, and, while the authority issues none, since when,
why, and when it is tried again. A certificate in files is not listed; 'postern check'
looks at that one.`,
		Args: noArguments,
		RunE: a.onUsers(func(ctx context.Context, users *accounts, _ []string) error {
			list, err := acme.List(ctx, users.pool)
			if err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, certificateLines(list))
			}
			return a.printCertificates(list)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func certificateLines(list []acme.Record) []certificateLine {
	lines := make([]certificateLine, 0, len(list))
	for _, r := range list {
		lines = append(lines, certificateLine{
			Name: r.Name, Source: r.Authority, State: r.State(time.Now()), Issuer: r.Issuer, Serial: r.Serial,
			NotBefore: jsonTime(r.NotBefore), NotAfter: jsonTime(r.NotAfter), RenewedAt: jsonTime(r.RenewedAt),
			Node: r.Node, Failures: r.Failures, FailingFrom: jsonTime(r.FailingSince),
			NextTry: jsonTime(r.NextTry), RenewAsked: jsonTime(r.RenewAsked), Error: r.LastError,
		})
	}
	return lines
}

func (a *app) printCertificates(list []acme.Record) error {
	t := screen.Table{Head: []string{"NAME", "SOURCE", "STATE", "UNTIL"}}
	for _, r := range list {
		t.Add(r.Name, r.Authority, r.State(time.Now()), screen.LocalTime(r.NotAfter))
	}
	if err := t.Print(a.stdout); err != nil {
		return err
	}
	for _, r := range list {
		if r.Failures > 0 {
			fmt.Fprintf(a.stdout, "%s: no certificate since %s, tried again at %s: %s\n", screen.Printable(r.Name),
				screen.LocalTime(r.FailingSince), screen.LocalTime(r.NextTry), screen.Printable(strings.TrimSpace(r.LastError)))
		}
	}
	return nil
}

// certificatesLike are the names for completion; the caller picks those with the prefix.
func certificatesLike(ctx context.Context, pool *pgxpool.Pool, _ string) (names []string, err error) {
	list, err := acme.List(ctx, pool)
	for _, r := range list {
		names = append(names, r.Name)
	}
	return names, err
}
