package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/trust"
	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/smtp"
)

func (a *app) dkimCmd() *cobra.Command {
	return noun("dkim", "manage the DKIM keys that sign mail of sender domains",
		a.dkimAddCmd(), a.dkimListCmd(), a.dkimShowCmd(), a.dkimRotateCmd(), a.dkimRetireCmd(), a.dkimRemoveCmd())
}

// onDKIM makes the RunE of a command that changes the keys of a DOMAIN. seals: it makes some.
func (a *app) onDKIM(seals bool, do func(ctx context.Context, admin *keys.Admin, domain, selector string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		domain, err := domainOf(args[0])
		if err != nil {
			return err
		}
		return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
			admin := &keys.Admin{Pool: users.pool, Actor: users.actor}
			if seals {
				if admin.Sealer, err = a.sealingKeys(ctx, users.pool); err != nil {
					return err
				}
			}
			return do(ctx, admin, domain, strings.Join(args[1:], ""))
		})
	}
}

// domainOf is a domain in A-labels and small letters.
func domainOf(arg string) (string, error) {
	address, err := smtp.ParseAddress("postmaster@" + arg)
	if err != nil || strings.HasPrefix(arg, "[") {
		return "", usagef("%q is not a domain", arg)
	}
	return address.DomainKey(), nil
}

// domainAndSelector wants a DOMAIN, and perhaps a SELECTOR.
func domainAndSelector(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		args = args[:1]
	}
	return one("DOMAIN", "the domain")(cmd, args)
}

func (a *app) dkimAddCmd() *cobra.Command {
	var algorithms []string
	var every string
	cmd := &cobra.Command{
		Use:   "add DOMAIN",
		Short: "make the first keys of a domain, and print the records to publish",
		Long: `Makes keys for a sender domain, and prints the records to publish in its DNS. Until all
authoritative name servers of the domain have returned a record twice, its key is pending
and signs nothing; then running nodes sign with it, without a further command. Mail is
sent unsigned meanwhile.

Mail is signed when the domain of its From field is DOMAIN or a subdomain. Without
--algorithm there are two keys, and two signatures: all receivers verify rsa, and some
ed25519, which is shorter.

With --every the next key is made 14 days before the current key reaches this age.
Publish its record then; 'postern check', an alert rule and 'postern dkim list' remind
you. The old key keeps signing until you do.`,
		Example: `  postern dkim add shop.example
  postern dkim add shop.example --algorithm rsa --every 180d`,
		Args: one("DOMAIN", "the domain"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := dkim.ParseAlgorithms(algorithms)
		if err != nil {
			return usagef("--algorithm: %v", err)
		}
		days, err := trust.Every(every)
		if err != nil {
			return usagef("--every: %v", err)
		}
		return a.onDKIM(true, func(ctx context.Context, admin *keys.Admin, domain, _ string) error {
			made, err := admin.Add(ctx, domain, list, days)
			if err != nil {
				return err
			}
			return trust.PrintRecords(a.stdout, made)
		})(cmd, args)
	}
	cmd.Flags().StringSliceVar(&algorithms, "algorithm", []string{"rsa", "ed25519"}, "`ALGORITHMS` of the keys: rsa, ed25519")
	cmd.Flags().StringVar(&every, "every", "", "`AGE` at which a key is rotated, in days, such as 180d; without it, rotate by hand")
	_ = cmd.RegisterFlagCompletionFunc("algorithm", cobra.FixedCompletions([]string{"rsa", "ed25519"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) dkimListCmd() *cobra.Command {
	return listing[trust.Key]{
		head: []string{"DOMAIN", "SELECTOR", "ALGORITHM", "STATE", "SINCE", "NOTE"}, spare: []string{"SINCE", "ALGORITHM"}, wraps: true,
		row: func(k trust.Key) []string {
			return []string{k.Domain, k.Selector, string(k.Algorithm), string(k.State), screen.LocalTime(k.Since), screen.OrDash(k.Note())}
		},
		load: func(ctx context.Context, users *accounts, args []string, _ int) (_ []trust.Key, err error) {
			domain := ""
			if len(args) > 0 {
				if domain, err = domainOf(args[0]); err != nil {
					return nil, err
				}
			}
			list, err := keys.List(ctx, users.pool, domain)
			return trust.KeysOf(list), err
		},
	}.command(a, &cobra.Command{
		Use:   "list [DOMAIN]",
		Short: "list the keys with their states, and what is wrong with their records",
		Long: `Lists the keys of a domain, or of all. A key is pending until its record is published,
then active: it signs. It is retiring while mail that it has signed is on its way, and its
record has to stay; when it is retired, the record may be removed.`,
		Args: atMostOne("DOMAIN"),
	})
}

func (a *app) dkimShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show DOMAIN",
		Short: "show the records of a domain's keys, and what is wrong with them",
		Long: `Shows each key of a domain with the record that is, or has to be, in DNS: as a line of a
zone file, and as the one line of text that web panels take. The note says what is wrong
with it, as the nodes saw it last.`,
		Args: one("DOMAIN", "the domain"),
	}
	cmd.RunE = a.onDKIM(false, func(ctx context.Context, admin *keys.Admin, domain, _ string) error {
		list, err := keys.List(ctx, admin.Pool, domain)
		switch {
		case err != nil:
			return err
		case len(list) == 0:
			return keys.Unknown(domain)
		}
		shown := trust.KeysOf(list)
		if asJSON {
			return screen.JSON(a.stdout, shown)
		}
		for i, k := range shown {
			if i > 0 {
				fmt.Fprintln(a.stdout)
			}
			if err := k.Print(a.stdout); err != nil {
				return err
			}
		}
		return nil
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) dkimRotateCmd() *cobra.Command {
	var every string
	cmd := &cobra.Command{
		Use:   "rotate DOMAIN",
		Short: "make the next keys of a domain, or set the age at which nodes make them",
		Long: `Makes a new key for each that signs, and prints the records to publish. Once a record is
published, its key signs, and the former one is retiring: its record has to stay until
'postern dkim list' says that it may be removed. Running it again before that makes no
further key.

With --every it makes no key now, but sets the age at which keys are rotated; 0 means
never.`,
		Example: `  postern dkim rotate shop.example
  postern dkim rotate shop.example --every 180d`,
		Args: one("DOMAIN", "the domain"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		days, err := trust.Every(every)
		if err != nil {
			return usagef("--every: %v", err)
		}
		sets := cmd.Flags().Changed("every")
		return a.onDKIM(!sets, func(ctx context.Context, admin *keys.Admin, domain, _ string) error {
			if sets {
				if err := admin.SetEvery(ctx, domain, days); err != nil {
					return err
				}
				said := "after " + screen.Count(days, "day")
				if days == 0 {
					said = "by 'postern dkim rotate' only"
				}
				_, err := fmt.Fprintf(a.stdout, "keys of %s are rotated %s\n", domain, said)
				return err
			}
			next, err := admin.Rotate(ctx, domain)
			if err != nil {
				return err
			}
			return trust.PrintRecords(a.stdout, next)
		})(cmd, args)
	}
	cmd.Flags().StringVar(&every, "every", "", "`AGE` at which a key is rotated, in days, such as 180d; 0: never")
	return cmd
}

func (a *app) dkimRetireCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "retire DOMAIN [SELECTOR]",
		Short: "stop signing with a key, or with all keys of a domain",
		Long: `Stops signing with a key, or with all keys of the domain; all nodes follow within two
seconds. The record has to stay while mail signed with the key is on its way: the key is
retiring for seven days, or for the queue's lifetime if that is longer. A pending
key is removed.`,
		Args: domainAndSelector,
		RunE: a.onDKIM(false, func(ctx context.Context, admin *keys.Admin, domain, selector string) error {
			done, err := admin.Retire(ctx, domain, selector)
			for _, k := range done {
				said := "is retiring: leave its record until 'postern dkim list' says that it may be removed"
				if k.State == keys.Pending {
					said = "is removed; it has signed nothing"
				}
				fmt.Fprintf(a.stdout, "key %s of %s %s\n", k.Selector, domain, said)
			}
			return err
		}),
	}
}

func (a *app) dkimRemoveCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove DOMAIN [SELECTOR]",
		Short: "delete a key, or all keys of a domain",
		Long: `Deletes a key that is pending or retired. Without SELECTOR it deletes all keys of the
domain, if all of them are pending or retired.
Nodes delete a retired key themselves, a day or two after its record was removed.`,
		Args: domainAndSelector,
		RunE: a.onDKIM(false, func(ctx context.Context, admin *keys.Admin, domain, selector string) error {
			done, err := admin.Remove(ctx, domain, selector, force)
			for _, k := range done {
				said := "may be removed"
				if k.State == keys.Active || k.State == keys.Retiring {
					said = "has to stay while mail that it signed is on its way"
				}
				fmt.Fprintf(a.stdout, "removed key %s of %s; its record %s %s\n", k.Selector, domain, k.Name(), said)
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete it even if mail signed with it may be on its way")
	return cmd
}

// signedDomainsLike are the domains with keys, for completion.
func signedDomainsLike(ctx context.Context, pool *pgxpool.Pool, _ string) (domains []string, err error) {
	list, err := keys.List(ctx, pool, "")
	return slices.Compact(screen.Each(list, func(k keys.Key) string { return k.Domain })), err
}
