package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/account"
	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func (a *app) credentialCmd() *cobra.Command {
	return noun("credential", "manage passwords and generated secrets",
		a.credentialAddCmd(), a.credentialListCmd(), a.credentialRevokeCmd(), a.credentialSetCmd())
}

func (a *app) credentialAddCmd() *cobra.Command {
	var (
		generate, asJSON bool
		label, expires   string
		networks         []string
	)
	cmd := &cobra.Command{
		Use:   "add USER --generate",
		Short: "generate a secret for an application to log in with",
		Long: `Generates a secret of 160 random bits and prints it once. An application logs in with
the user's name and this secret in place of the password. Generate one for each
application, so that each can be revoked separately. To set a password of the user's
choice, use 'user passwd'.`,
		Example: `  postern credential add app@example.com --generate --label billing
  postern credential add app@example.com --generate --label scanner --expires 90d --network 192.0.2.0/24`,
		Args: one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !generate {
				return usagef("--generate is needed: the secret is made here and shown once; 'postern user passwd' sets a password of the user's own choice")
			}
			n := auth.NewCredential{Label: label}
			var err error
			if n.Expires, err = account.ParseExpiry(expires, time.Now()); err == nil {
				n.Networks, err = account.ParseNetworks(networks)
			}
			if err != nil {
				return invalidUse(err)
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				c, secret, err := users.AddCredential(ctx, args[0], n)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, account.CredentialOf(c, secret))
				}
				_, err = fmt.Fprintf(a.stdout, "added credential %d of %s\nuser name: %s\nsecret: %s\n(it is not shown again)\n",
					c.ID, screen.Printable(c.User), screen.Printable(c.User), secret)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&generate, "generate", false, "generate the secret")
	f.StringVar(&label, "label", "", "`TEXT` that says what it is for")
	f.StringVar(&expires, "expires", "", "`WHEN` it expires: 90d, or a date such as 2027-01-31")
	f.StringArrayVar(&networks, "network", nil, "accept it only from this `CIDR`; may be repeated")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) credentialSetCmd() *cobra.Command {
	cmd, change := account.MailCommand()
	cmd.Args = one("number", "the number of a credential")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := parseCredential(args[0])
		if err != nil {
			return err
		}
		return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
			err := users.together(ctx, func(store *auth.Store, _ *desk.Admin) ([]int64, error) {
				c, err := change(ctx, store, id)
				return []int64{c.UserID}, err
			})
			if err == nil {
				_, err = fmt.Fprintf(a.stdout, "changed credential %d\n", id)
			}
			return err
		})
	}
	return cmd
}

func (a *app) credentialListCmd() *cobra.Command {
	return listing[account.Credential]{
		head: account.CredentialHead(), spare: []string{"DUPLICATES", "NETWORKS", "FROM", "KIND"}, row: account.Credential.Row,
		load: func(ctx context.Context, users *accounts, args []string, _ int) ([]account.Credential, error) {
			list, err := users.Credentials(ctx, args[0])
			return account.CredentialsOf(list), err
		},
	}.command(a, &cobra.Command{
		Use:   "list USER",
		Short: "list a user's credentials, including revoked ones",
		Args:  one("name", "the user's name"),
	})
}

// revoked is what became of a credential.
type revoked struct {
	account.Credential
	Held    int  `json:"held"`              // recipients of its mail that are held
	Already bool `json:"already,omitempty"` // it was revoked before, and nothing is changed
}

func (a *app) credentialRevokeCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke ID...",
		Short: "revoke credentials permanently, and hold the mail that was sent with them",
		Long: `Ends credentials on every node within 2 seconds, with the sessions that logged in with
them, and holds the waiting mail that was sent with them. If one of them cannot be
revoked, none is. Already revoked credentials and their mail are unchanged.
'postern credential list USER' shows their IDs.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := credentialIDs(args)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				list, err := revokeAll(ctx, users, ids)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, list)
				}
				return a.printRevoked(list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func credentialIDs(args []string) (ids []int64, err error) {
	if len(args) == 0 {
		return nil, usagef("'postern credential revoke' needs the numbers of credentials")
	}
	for _, arg := range args {
		id, err := parseCredential(arg)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids) // two admins lock in one order
	return slices.Compact(ids), nil
}

func parseCredential(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id <= 0 {
		return 0, usagef("%q is not the number of a credential: see 'postern credential list USER'", s)
	}
	return id, nil
}

// revokeAll revokes credentials, all or none.
func revokeAll(ctx context.Context, users *accounts, ids []int64) (list []revoked, err error) {
	err = users.together(ctx, func(store *auth.Store, q *desk.Admin) (whose []int64, err error) {
		for _, id := range ids {
			r, userID, err := revoke(ctx, store, q, id)
			if err != nil {
				return nil, err
			}
			if list = append(list, r); !r.Already {
				whose = append(whose, userID)
			}
		}
		return whose, nil
	})
	return list, err
}

// revoke revokes a credential and holds what came by it. An admin may have let that
// mail go since it was revoked: then it is not held again.
func revoke(ctx context.Context, store *auth.Store, q *desk.Admin, id int64) (r revoked, userID int64, err error) {
	c, err := store.Credential(ctx, id)
	if err != nil {
		return r, 0, err
	}
	if !c.RevokedAt.IsZero() {
		return revoked{Credential: account.CredentialOf(c, ""), Already: true}, c.UserID, nil
	}
	if c, err = store.RevokeCredential(ctx, id); err != nil {
		return r, 0, err
	}
	if _, err = q.HoldUser(ctx, c.UserID, c.ID, "credential revoked"+screen.Colon(c.Label)); err != nil {
		return r, 0, err
	}
	held, err := q.Release(ctx, desk.Filter{UserID: c.UserID, CredentialID: c.ID}, true)
	return revoked{Credential: account.CredentialOf(c, ""), Held: held}, c.UserID, err
}

func (a *app) printRevoked(list []revoked) error {
	text := ""
	for _, r := range list {
		if r.Already {
			text += fmt.Sprintf("credential %d was revoked already\n", r.ID)
			continue
		}
		text += fmt.Sprintf("revoked credential %d of %s\n", r.ID, screen.Printable(r.UserName)) + heldMail(r.UserName, r.Held)
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}
