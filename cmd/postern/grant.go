package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/secret"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

func (a *app) upstreamLoginCmd() *cobra.Command {
	var device bool
	cmd := &cobra.Command{
		Use:   "login NAME",
		Short: "log in to a smarthost's account that uses a refresh token",
		Long: `Logs in with the account of an upstream that was added with --oauth refresh-token,
and stores the refresh token for all nodes.

Open the address that is shown in a browser and log in as the upstream's user.
The browser ends at an address that begins with http://localhost and cannot be
shown: paste that address here. With --device, log in at Microsoft on another
device with the code that is shown; a tenant may forbid that.`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var up upstream.Account
			err := a.withUpstreams(cmd.Context(), true, func(ctx context.Context, _ *accounts, store *upstream.Store) (err error) {
				up, err = store.Open(ctx, args[0])
				return err
			})
			if err != nil {
				return err
			}
			cfg, _, err := a.source.Load()
			if err != nil {
				return err
			}
			by, err := cfg.OAuth.Config()
			if err != nil {
				return err
			}
			login, err := oauth.NewLogin(by, up.OAuth())
			if err != nil {
				return err
			}
			if err := a.logIn(cmd.Context(), login, device); err != nil {
				return err
			}
			// A person takes their time: which key is current is asked again.
			return a.withUpstreams(cmd.Context(), true, func(ctx context.Context, _ *accounts, store *upstream.Store) error {
				if err := store.SaveLogin(ctx, up.OAuth(), login); err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "logged in for upstream %s as %s\n", up.Name, up.Username)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&device, "device", false, "log in on another device, with a code")
	return cmd
}

// hintLogin says what is still to be done for an account that a person logs in for.
func (a *app) hintLogin(up upstream.Account) {
	if up.Grant.Kind == oauth.RefreshToken {
		fmt.Fprintf(a.stderr, "its mail waits until somebody logs in: 'postern upstream login %s'\n", up.Name)
	}
}

// logIn leads a person through a login.
func (a *app) logIn(ctx context.Context, login *oauth.Login, device bool) error {
	if device {
		return login.Device(ctx, func(address, code string, until time.Time) {
			fmt.Fprintf(a.stdout, "Open %s until %s and type the code %s\n", address, screen.LocalTime(until), code)
		})
	}
	fmt.Fprintf(a.stdout, "Open this address in a browser and log in:\n\n%s\n\nThen paste the address at which the browser ended:\n", login.URL())
	line, err := secret.Pasted(a.stdin)
	if err != nil {
		return invalidUse(err)
	}
	return login.Paste(ctx, line)
}
