package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream/breaker"
)

// routingTable is the routing table of the nodes, as far as this machine has their key.
func (a *app) routingTable(users *accounts, cfg config.Config) (*route.Table, error) {
	sealer, err := a.source.PresentSealer(cfg)
	if err != nil {
		return nil, err
	}
	return route.NewTable(route.NewStore(users.pool), users.upstreams(sealer), time.Minute), nil
}

func (a *app) routeTestCmd() *cobra.Command {
	var user, from, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test --user U --from A --to B",
		Short: "show which way mail would go, and why",
		Long: `Shows the route of a recipient, its ways in their order and why one would be skipped
now, and the earlier routes with the part that does not match. Nothing is sent; 'postern
explain' also says whether the message would be accepted. '<>' is the null sender of
bounces. Without --user it is the relay's own mail, such as a notice.`,
		Example: "  postern route test --user alice@example.com --from alice@example.com --to bob@example.net",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sender, err := senderFlag(from)
			if err != nil {
				return err
			}
			recipient, err := addressFlag("to", to, smtp.ParseRecipient)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				var id int64
				if user != "" {
					if id, _, err = userNamed(ctx, users.pool, user); err != nil {
						return err
					}
				}
				cfg, _, err := a.source.Load()
				if err != nil {
					return err
				}
				table, err := a.routingTable(users, cfg)
				if err != nil {
					return err
				}
				rules, who, err := readRoutes(ctx, users)
				if err != nil {
					return err
				}
				breakers, err := breaker.List(ctx, users.pool)
				if err != nil {
					return err
				}
				budgets, err := users.upstreams(nil).Budgets(ctx)
				if err != nil {
					return err
				}
				t, err := explain.Routes{Table: table, Rules: rules, Names: who, Breakers: breakers, Budgets: budgets}.Find(ctx, id, sender, recipient)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, t)
				}
				return t.Print(a.stdout)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "`NAME` of the user who sends")
	f.StringVar(&from, "from", "", "`ADDRESS` of the sender")
	f.StringVar(&to, "to", "", "`ADDRESS` of the recipient")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	_, _ = cmd.MarkFlagRequired("from"), cmd.MarkFlagRequired("to")
	return cmd
}

// addressFlag reads the address of a flag.
func addressFlag(flag, text string, parse func(string) (smtp.Address, error)) (smtp.Address, error) {
	address, err := parse(text)
	if err != nil {
		return address, usagef("--%s: %q is not an address: %v", flag, text, err)
	}
	return address, nil
}

// senderFlag reads --from: an address, or the null sender.
func senderFlag(text string) (smtp.Address, error) {
	if text == auth.NullSender {
		return smtp.Address{}, nil
	}
	return addressFlag("from", text, smtp.ParseAddress)
}
