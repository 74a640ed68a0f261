package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
)

func (a *app) userCmd() *cobra.Command {
	return noun("user", "who may send mail",
		a.userAddCmd(), a.userListCmd(), a.userPasswdCmd(), a.userDisableCmd(), a.userEnableCmd())
}

func (a *app) userAddCmd() *cobra.Command {
	var (
		senders       []string
		passwordStdin bool
		asJSON        bool
	)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a user",
		Long: `Adds a user, who may log in at once. NAME is what the client logs in with,
normally an address. Without --password-stdin a password is generated and shown
once.

--sender says which addresses the user may send as: an address, *@domain for all
of a domain, *@*.domain for all of its subdomains. Without it, NAME alone, which
then must be an address.`,
		Example: `  postern user add alice@example.com
  postern user add alice@example.com --sender '*@example.com' --password-stdin <password.txt`,
		Args: exactly(1, "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range senders {
				if _, err := auth.CanonicalPattern(p); err != nil {
					return usageError{err.Error()}
				}
			}
			if _, err := auth.CanonicalName(args[0]); err != nil {
				return usageError{err.Error()}
			}
			if len(senders) == 0 && !strings.Contains(args[0], "@") {
				return usagef("%q is no address: say with --sender which addresses the user may send as", args[0])
			}
			password, shown, err := a.newPassword(passwordStdin)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *auth.Store) error {
				u, err := users.AddUser(ctx, auth.NewUser{Name: args[0], Password: password, Senders: senders})
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, userJSON(u, shown))
				}
				fmt.Fprintf(a.stdout, "added user %s, who may send as %s\n", u.Name, sendersText(u))
				return a.showPassword(shown)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&senders, "sender", nil, "`PATTERN` of addresses to send as; may be repeated")
	f.BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newPassword reads a password or makes one; shown is what must be printed.
func (a *app) newPassword(stdin bool) (password, shown string, err error) {
	if stdin {
		password, err = readSecret(a.stdin)
		return password, "", err
	}
	password = auth.GeneratePassword()
	return password, password, nil
}

func (a *app) showPassword(shown string) error {
	if shown == "" {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "password: %s\n(it is not shown again)\n", shown)
	return err
}

func (a *app) withUsers(ctx context.Context, do func(ctx context.Context, users *auth.Store) error) error {
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		return userError(do(ctx, auth.NewStore(pool)))
	})
}

// userError marks what is wrong with the arguments as wrong use.
func userError(err error) error {
	for _, kind := range []error{auth.ErrName, auth.ErrPattern, auth.ErrPassword} {
		if errors.Is(err, kind) {
			return usageError{err.Error()}
		}
	}
	return err
}

// userView is a user as --json prints it.
type userView struct {
	Name           string    `json:"name"`
	Enabled        bool      `json:"enabled"`
	DisabledReason string    `json:"disabled_reason,omitempty"`
	HasPassword    bool      `json:"has_password"`
	Senders        []string  `json:"senders"`
	CreatedAt      time.Time `json:"created_at"`
	Password       string    `json:"password,omitempty"` // only when it was just generated
}

func userJSON(u auth.User, shown string) userView {
	return userView{u.Name, u.Enabled, u.DisabledReason, u.HasPassword, emptyList(u.Senders), u.CreatedAt, shown}
}

func sendersText(u auth.User) string {
	if len(u.Senders) == 0 {
		return u.Name
	}
	return strings.Join(u.Senders, ", ")
}

func (a *app) userListCmd() *cobra.Command {
	var asJSON bool
	var after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list users by name",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *auth.Store) error {
				list, err := users.ListUsers(ctx, after, limit)
				if err != nil {
					return err
				}
				if asJSON {
					views := []userView{}
					for _, u := range list {
						views = append(views, userJSON(u, ""))
					}
					return printJSON(a.stdout, views)
				}
				return a.printUsers(list, limit)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.IntVar(&limit, "limit", 1000, "print at most `N` users")
	f.StringVar(&after, "after", "", "begin after this `name`")
	return cmd
}

func (a *app) printUsers(list []auth.User, limit int) error {
	t := table{head: []string{"NAME", "STATE", "SENDERS", "SINCE"}}
	for _, u := range list {
		state := "enabled"
		if !u.Enabled {
			state = "disabled"
			if u.DisabledReason != "" {
				state += ": " + u.DisabledReason
			}
		}
		t.add(u.Name, state, sendersText(u), localTime(u.CreatedAt))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(list) == limit {
		fmt.Fprintf(a.stderr, "there may be more: --after %s\n", list[len(list)-1].Name)
	}
	return nil
}

func (a *app) userPasswdCmd() *cobra.Command {
	var passwordStdin bool
	cmd := &cobra.Command{
		Use:   "passwd NAME",
		Short: "change a user's password",
		Long: `Changes the password. Without --password-stdin one is generated and shown once.
The old password stops working on every node within 5 seconds.`,
		Args: exactly(1, "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, shown, err := a.newPassword(passwordStdin)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *auth.Store) error {
				if err := users.SetPassword(ctx, args[0], password); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "changed the password of %s\n", args[0])
				return a.showPassword(shown)
			})
		},
	}
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

func (a *app) userDisableCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable NAME",
		Short: "keep a user from logging in",
		Long: `Refuses the user's logins on every node within 5 seconds. Sessions that are open
go on until they end, and mail that was accepted is delivered.`,
		Args: exactly(1, "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setEnabled(cmd.Context(), args[0], false, reason)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for 'user list'; clients are not told")
	return cmd
}

func (a *app) userEnableCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "enable NAME",
		Short: "let a disabled user log in again",
		Args:  exactly(1, "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setEnabled(cmd.Context(), args[0], true, "")
		},
	}
}

func (a *app) setEnabled(ctx context.Context, name string, on bool, reason string) error {
	return a.withUsers(ctx, func(ctx context.Context, users *auth.Store) error {
		if err := users.SetEnabled(ctx, name, on, reason); err != nil {
			return err
		}
		state := "disabled"
		if on {
			state = "enabled"
		}
		_, err := fmt.Fprintf(a.stdout, "%s user %s\n", state, name)
		return err
	})
}
