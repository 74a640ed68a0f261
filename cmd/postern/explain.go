package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/explain"
	"postern/cmd/postern/receiver"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/smtp"
	"postern/relay/transport"
)

func (a *app) explainCmd() *cobra.Command {
	var (
		user, credential, from, octets string
		headerFrom, resentFrom         string
		to                             []string
		asJSON                         bool
	)
	cmd := &cobra.Command{
		Use:   "explain --user U --from A --to B",
		Short: "show whether a message would be accepted, why, and where it would go",
		Long: `Shows how the server would treat a message if it came now: whether the user may log in
and send as that address, what is left of each limit, whether the message would be held,
its route, what the mail hosts of the recipients' domains must prove before they get it,
and what a receiver would find: SPF, DKIM, DMARC and the name of this server's address,
each aligned or not with the author's domain and why, with the record that helps. It
queries DNS, and fetches and caches MTA-STS policies as a delivery would. Nothing is sent
and nothing is counted.

The exit status is 0 when the message would be accepted and 1 when it would not.

The header's From field is --from unless --header-from names another address;
--resent-from asks about redirected mail. '<>' is the null sender of bounces. With
--credential the limits of that credential count too. The server's own limits are those
of the configuration on this machine.`,
		Example: `  postern explain --user alice@example.com --from sales@example.com --to bob@example.net
  postern explain --user app@example.com --credential 12 --from app@example.com --to bob@example.net --size 30MB`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := auth.CanonicalName(user)
			if err != nil {
				return usageError{err.Error()}
			}
			q, err := parseQuestion(credential, from, octets, to)
			if err == nil && headerFrom != "" {
				q.HeaderFrom, err = addressFlag("header-from", headerFrom, smtp.ParseAddress)
			}
			if err == nil && resentFrom != "" {
				q.ResentFrom, err = addressFlag("resent-from", resentFrom, smtp.ParseAddress)
			}
			if err != nil {
				return err
			}
			return a.withFinder(cmd.Context(), func(ctx context.Context, users *accounts, connecting connect.Config, _ *transport.Finder) error {
				e, err := a.explain(ctx, users, connecting, name, q)
				if err != nil {
					return err
				}
				if asJSON {
					err = screen.JSON(a.stdout, e)
				} else {
					err = e.Print(a.stdout)
				}
				if err == nil && !e.Accepted {
					err = errors.New("the message would be refused")
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "`NAME` of the user who sends")
	f.StringVar(&credential, "credential", "", "`ID` of the credential used to log in")
	f.StringVar(&from, "from", "", "`ADDRESS` of the sender")
	f.StringVar(&headerFrom, "header-from", "", "`ADDRESS` in the From field, when it is not --from")
	f.StringVar(&resentFrom, "resent-from", "", "`ADDRESS` in the Resent-From field of a redirected message")
	f.StringArrayVar(&to, "to", nil, "`ADDRESS` of a recipient; may be repeated")
	f.StringVar(&octets, "size", "10KB", "`SIZE` of the message")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	for _, name := range []string{"user", "from", "to"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// parseQuestion reads the flags of the credential and of the envelope.
func parseQuestion(credential, from, octets string, to []string) (q explain.Question, err error) {
	if credential != "" {
		if q.Credential, err = parseCredential(credential); err != nil {
			return q, err
		}
	}
	if q.From, err = senderFlag(from); err != nil {
		return q, err
	}
	known := map[smtp.Address]bool{}
	for _, s := range to {
		address, err := addressFlag("to", s, smtp.ParseRecipient)
		if err != nil {
			return q, err
		}
		if key := (smtp.Address{Local: address.Local, Domain: address.DomainKey()}); !known[key] {
			known[key], q.To = true, append(q.To, address)
		}
	}
	n, err := config.ParseSize(octets)
	if err != nil {
		return q, usagef("--size: %v", err)
	}
	q.Size = int64(n)
	return q, nil
}

// explain answers a question about a user's message.
func (a *app) explain(ctx context.Context, users *accounts, connecting connect.Config, name string, q explain.Question) (*explain.Message, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return nil, err
	}
	if q.User, err = users.User(ctx, name); err != nil {
		return nil, err
	}
	holds, err := holdsOver(ctx, users.queue(), q.User.ID, q.Credential)
	if err != nil {
		return nil, err
	}
	if len(holds) > 0 {
		q.Hold = screen.OrDash(holds[0].Reason)
	}
	routes, err := a.routingTable(users, cfg)
	if err != nil {
		return nil, err
	}
	hostname, _ := cfg.ServerName() // without one, SPF and PTR are not known here
	e, err := explain.Relay{
		Pool: users.pool, Server: cfg.Submission, Routes: routes, Signs: dkim.Mode(cfg.Delivery.DKIM), Connect: connecting,
		Receiver: receiver.Receiver{DNS: connecting.DNS, Hello: hostname, Looks: new(receiver.Looks)},
	}.Message(ctx, q)
	return e, invalidUse(err)
}
