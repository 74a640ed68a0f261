package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/account"
	"postern/cmd/postern/handout"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/secret"
	"postern/relay/queue/desk"
)

func (a *app) userCmd() *cobra.Command {
	return noun("user", "manage the users who may send mail",
		a.userAddCmd(), a.userSetCmd(), a.userListCmd(), a.userShowCmd(), a.userPasswdCmd(),
		a.userDisableCmd(), a.userEnableCmd(), a.userRemoveCmd(), a.userImportCmd())
}

// addedUser says what the new user is and may be told.
type addedUser struct {
	account.User
	Settings handout.Settings `json:"settings"`
}

func (a *app) userAddCmd() *cobra.Command {
	var (
		senders   []string
		password  secret.Source
		ifMissing bool
		asJSON    bool
		files     handout.Profiles
	)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a user",
		Long: `Adds a user, who may log in immediately, and prints the settings for a mail client.
The client logs in with NAME, normally an address. A password is generated and shown
once unless one is given.

--sender names addresses that the user may send as: an address, *@domain for every address
of a domain, *@*.domain for all of its subdomains, '<>' for the null sender of bounces.
Without --sender the user may send as NAME, which must then be an address.

` + handout.ProfilesHelp,
		Example: `  postern user add alice@example.com
  postern user add alice@example.com --sender '*@example.com' --password-stdin <password.txt
  postern user add alice@example.com --mobileconfig alice.mobileconfig --imap imap.example.com`,
		Args: one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := newUserName(args[0], senders)
			if err != nil {
				return err
			}
			a.warnOfNames(name)
			client, err := a.settingsOf(name)
			if err != nil {
				return err
			}
			if err := files.Check(client); err != nil {
				return usageError{err.Error()}
			}
			chosen, shown, err := a.newPassword(password)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				made, err := files.Make(client)
				if err != nil {
					return err
				}
				defer made.Drop()
				u, err := users.AddUser(ctx, auth.NewUser{Name: name, Password: chosen, Senders: senders})
				if ifMissing && errors.Is(err, auth.ErrExists) {
					if !asJSON {
						return a.thereAlready("user", name)
					}
					if u, err = users.User(ctx, name); err == nil {
						err = screen.JSON(a.stdout, addedUser{account.UserOf(u, ""), client})
					}
					return err
				}
				if err != nil {
					return err
				}
				if asJSON {
					err = screen.JSON(a.stdout, addedUser{account.UserOf(u, shown), client})
				} else {
					fmt.Fprintf(a.stdout, "added user %s, who may send as %s\n", u.Name, account.SendersText(u))
					err = errors.Join(a.showPassword(shown), client.Print(a.stdout))
				}
				return errors.Join(err, files.Put(a.stderr, made))
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&senders, "sender", nil, "`PATTERN` of addresses to send as; may be repeated")
	password.Flags(cmd, "password")
	f.BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	f.BoolVar(&asJSON, "json", false, "print JSON")
	files.Flags(cmd)
	return cmd
}

// settingsOf are the settings for a mail client of the user.
func (a *app) settingsOf(name string) (handout.Settings, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return handout.Settings{}, err
	}
	return handout.For(&cfg, name)
}

// newUserName is the canonical form of a name that is to be added with these patterns.
func newUserName(name string, senders []string) (string, error) {
	addresses := 0
	for _, p := range senders {
		if _, err := auth.CanonicalPattern(p); err != nil {
			return "", usagef("--sender: %v", err)
		}
		if p != auth.NullSender {
			addresses++
		}
	}
	canonical, err := auth.CanonicalName(name)
	if err != nil {
		return "", usageError{err.Error()}
	}
	if addresses == 0 && !strings.Contains(canonical, "@") {
		return "", usagef("%q is not an address: name with --sender the addresses that the user may send as", name)
	}
	return canonical, nil
}

// shortPassword is below what NIST SP 800-63B asks of a password that a person chose.
const shortPassword = 8

// newPassword reads a password or makes one; shown is what must be printed.
func (a *app) newPassword(from secret.Source) (password, shown string, err error) {
	if !from.Given() {
		password = auth.GeneratePassword()
		return password, password, nil
	}
	password, err = a.readSecret(&from)
	if err == nil && utf8.RuneCountInString(password) < shortPassword {
		fmt.Fprintf(a.stderr, "warning: the password has fewer than %d characters: it is easy to guess\n", shortPassword)
	}
	return password, "", err
}

// readSecret reads a secret from where its flags say.
func (a *app) readSecret(from *secret.Source) (string, error) {
	text, err := from.Read(a.stdin, a.warn)
	return text, invalidUse(err)
}

func (a *app) showPassword(shown string) error {
	if shown == "" {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "password: %s\n(it is not shown again)\n", shown)
	return err
}

func (a *app) userListCmd() *cobra.Command {
	var after string
	cmd := listing[account.User]{
		head: []string{"NAME", "STATE", "SENDERS", "CREDENTIALS", "LAST USE", "SINCE"}, spare: []string{"SINCE", "CREDENTIALS"},
		row: func(u account.User) []string {
			return []string{u.Name, u.State(), screen.OrDash(strings.Join(u.Senders, ", ")),
				strconv.Itoa(u.Credentials), screen.Moment(u.LastUsedAt), screen.LocalTime(u.CreatedAt)}
		},
		load: func(ctx context.Context, users *accounts, _ []string, limit int) ([]account.User, error) {
			list, err := users.ListUsers(ctx, after, limit)
			return screen.Each(list, func(u auth.User) account.User { return account.UserOf(u, "") }), err
		},
		limit: 1000, of: "users",
		next: func(list []account.User, _ int) string { return "--after " + list[len(list)-1].Name },
	}.command(a, &cobra.Command{Use: "list", Short: "list users by name", Args: noArguments})
	cmd.Flags().StringVar(&after, "after", "", "start after `NAME`")
	_ = cmd.RegisterFlagCompletionFunc("after", a.completer(usersLike, false))
	return cmd
}

func (a *app) userShowCmd() *cobra.Command {
	var asJSON bool
	var files handout.Profiles
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "show a user, its credentials and its mail in the queue",
		Long: `Shows a user with its credentials, its mail in the queue and the settings of a mail client.
'postern limit show NAME' shows its limits and their use, 'postern recipient list NAME' the
addresses that it may write to, and 'postern explain' whether a message would be accepted.

` + handout.ProfilesHelp,
		Args: one("name", "the user's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			shown, err := a.lookAtUser(ctx, users, args[0])
			if err != nil {
				return err
			}
			if err := files.Check(shown.Settings); err != nil {
				return usageError{err.Error()}
			}
			made, err := files.Make(shown.Settings)
			if err != nil {
				return err
			}
			defer made.Drop()
			if asJSON {
				err = screen.JSON(a.stdout, shown)
			} else {
				err = errors.Join(shown.Print(a.stdout), shown.Settings.Print(a.stdout))
				_, _ = io.WriteString(a.stderr, heldMail(shown.Name, shown.Queue[desk.StateHeld]))
			}
			return errors.Join(err, files.Put(a.stderr, made))
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	files.Flags(cmd)
	return cmd
}

func (a *app) lookAtUser(ctx context.Context, users *accounts, name string) (shown account.Shown, err error) {
	u, err := users.User(ctx, name)
	if err != nil {
		return shown, err
	}
	shown.User = account.UserOf(u, "")
	credentials, err := users.Credentials(ctx, u.Name)
	if err != nil {
		return shown, err
	}
	shown.Logins = account.CredentialsOf(credentials)
	if shown.Queue, err = users.queue().Counts(ctx, u.ID); err != nil {
		return shown, err
	}
	if shown.Holds, err = holdsOf(ctx, users.queue(), u.ID); err != nil {
		return shown, err
	}
	shown.Settings, err = a.settingsOf(u.Name)
	return shown, err
}

func (a *app) userSetCmd() *cobra.Command {
	var policy string
	cmd := &cobra.Command{
		Use:   "set NAME --in-doubt POLICY",
		Short: "change a user's settings",
		Long: `Sets the policy for mail of the user that may have been delivered, because the
connection broke before the next server confirmed it. The user's policy takes precedence
over that of the upstream; '' leaves it to the upstream.
` + account.DoubtHelp,
		Example: `  postern user set invoices@example.com --in-doubt hold`,
		Args:    one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if err := users.SetInDoubt(ctx, args[0], policy); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.stdout, "changed user %s\n", screen.Printable(args[0]))
				return err
			})
		},
	}
	account.DoubtFlag(cmd, &policy)
	_ = cmd.MarkFlagRequired("in-doubt")
	return cmd
}

func (a *app) userPasswdCmd() *cobra.Command {
	var from secret.Source
	cmd := &cobra.Command{
		Use:   "passwd NAME",
		Short: "change a user's password",
		Long: `Changes the password. One is generated and shown once unless it is given.
The old password stops working on every node within 2 seconds, and sessions that
logged in with it end.`,
		Args: one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !from.Given() && secret.Waits(a.stdin) {
				return usagef("standard input is only read with --password-stdin; leave it empty (</dev/null) to have a password generated")
			}
			password, shown, err := a.newPassword(from)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if err := users.SetPassword(ctx, args[0], password); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "changed the password of %s\n", screen.Printable(args[0]))
				return a.showPassword(shown)
			})
		},
	}
	from.Flags(cmd, "password")
	return cmd
}

func (a *app) userDisableCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable NAME",
		Short: "keep a user from sending, and hold its mail",
		Long: `Refuses the user's logins on every node within 2 seconds, ends its sessions, and
holds its mail that waits in the queue. Held mail waits until it is released or
cancelled; enabling the user again does not release it. If the user is already
disabled, only the reason changes, if a new one is given.`,
		Args: one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkReason(reason); err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				return a.disableUser(ctx, users, args[0], reason)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, shown by 'user list' and 'user show', not to clients")
	return cmd
}

// disableUser keeps a user out and holds the mail. An admin may have let the mail of
// a disabled user go: then it is not held again.
func (a *app) disableUser(ctx context.Context, users *accounts, name, reason string) error {
	var before, u auth.User
	held := 0
	err := users.together(ctx, func(store *auth.Store, q *desk.Admin) (whose []int64, err error) {
		if before, err = store.User(ctx, name); err != nil {
			return nil, err
		}
		if u = before; !before.Enabled && (reason == "" || reason == before.DisabledReason) {
			return nil, nil
		}
		if err = store.SetEnabled(ctx, name, false, reason); err != nil {
			return nil, err
		}
		if u, err = store.User(ctx, name); err != nil || !before.Enabled {
			return nil, err
		}
		if _, err = q.HoldUser(ctx, u.ID, 0, "user disabled"+screen.Colon(reason)); err != nil {
			return nil, err
		}
		held, err = q.Release(ctx, desk.Filter{UserID: u.ID}, true)
		return []int64{u.ID}, err
	})
	switch {
	case err != nil:
		return err
	case before.Enabled:
		_, err = fmt.Fprintf(a.stdout, "disabled user %s\n%s", screen.Printable(u.Name), heldMail(u.Name, held))
	case u.DisabledReason != before.DisabledReason:
		_, err = fmt.Fprintf(a.stdout, "user %s was disabled already; the reason is changed\n", screen.Printable(u.Name))
	default:
		_, err = fmt.Fprintf(a.stdout, "user %s was disabled already\n", screen.Printable(u.Name))
	}
	return err
}

func (a *app) userEnableCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "enable NAME",
		Short: "let a disabled user log in again",
		Long: `Lets the user log in again. Its mail that is held stays held, and new mail is held
as well, until 'postern queue release --user' or 'postern queue cancel --user'.`,
		Args: one("name", "the user's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			if err := users.SetEnabled(ctx, args[0], true, ""); err != nil {
				return err
			}
			u, err := users.User(ctx, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "enabled user %s\n", screen.Printable(u.Name))
			return a.tellHeld(ctx, users, u)
		}),
	}
}

// tellHeld says what of a user's mail is still held, and that new mail is.
func (a *app) tellHeld(ctx context.Context, users *accounts, u auth.User) error {
	held, err := users.queue().Release(ctx, desk.Filter{UserID: u.ID}, true)
	if err != nil {
		return err
	}
	holds, err := holdsOf(ctx, users.queue(), u.ID)
	if err != nil {
		return err
	}
	text := heldMail(u.Name, held)
	if text == "" && len(holds) > 0 {
		text = fmt.Sprintf("none of its mail is held, but what it sends will be: 'postern queue release --user %s' ends that\n", u.Name)
	} else if len(holds) > 0 {
		text += "until then, what it sends is held too\n"
	}
	_, err = io.WriteString(a.stdout, text)
	return err
}

func (a *app) userRemoveCmd() *cobra.Command {
	var cancelMail bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a user permanently",
		Long: `Removes a user with its credentials, sender patterns, limits and routes; its sessions
end. The removed routes are listed: without them, the user's mail would take another
route. The history of its mail stays for as long as queue.history says.

A user who still has mail in the queue is not removed, unless --cancel-mail deletes the
waiting and held mail, without notifying the sender. Mail that a node is sending at that
moment is still sent. To lock a user out and decide about the mail later, use 'user
disable'.`,
		Args: one("name", "the user's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			return a.removeUser(ctx, users, args[0], cancelMail)
		}),
	}
	cmd.Flags().BoolVar(&cancelMail, "cancel-mail", false, "delete its waiting and held mail")
	return cmd
}

func (a *app) removeUser(ctx context.Context, users *accounts, name string, cancelMail bool) error {
	u, err := users.User(ctx, name)
	if err != nil {
		return err
	}
	routes, who, err := readRoutes(ctx, users)
	if err != nil {
		return err
	}
	cancelled := 0
	err = users.together(ctx, func(store *auth.Store, q *desk.Admin) ([]int64, error) {
		// The removal comes first: it locks the user's row, and with it what could be
		// changed about the user meanwhile.
		if err := store.RemoveUser(ctx, u.Name); err != nil {
			return nil, err
		}
		if cancelMail {
			if cancelled, err = q.Cancel(ctx, desk.Filter{UserID: u.ID, UserName: u.Name}, false); err != nil {
				return nil, err
			}
		} else if err := nothingLeft(ctx, q, u); err != nil {
			return nil, err
		}
		holds, err := holdsOf(ctx, q, u.ID)
		if err == nil && len(holds) > 0 {
			_, err = q.CancelUser(ctx, u.ID) // ends them; nothing is left that they hold
		}
		if err == nil {
			err = q.ForgetUser(ctx, u.ID)
		}
		return []int64{u.ID}, err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "removed user %s\n", screen.Printable(u.Name))
	for _, r := range routes {
		if r.UserID == u.ID {
			fmt.Fprintf(a.stdout, "removed route %d: %s\n", r.ID, ruleText(r, who))
		}
	}
	if cancelled > 0 {
		_, err = fmt.Fprintf(a.stdout, "deleted mail for %s\n", screen.Count(cancelled, "recipient"))
	}
	return err
}

// nothingLeft refuses while a user has mail in the queue.
func nothingLeft(ctx context.Context, q *desk.Admin, u auth.User) error {
	counts, err := q.Counts(ctx, u.ID)
	if err != nil {
		return err
	}
	var parts []string
	for _, s := range []desk.State{desk.StateWaiting, desk.StateSending, desk.StateHeld} {
		if n := counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("user %s has mail in the queue (%s): let it be delivered, or delete it with --cancel-mail", u.Name, strings.Join(parts, ", "))
}
