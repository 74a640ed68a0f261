package account

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/internal/refusal"
	"postern/internal/units"
)

// MailCommand is 'credential set' without what it runs. Change does to a credential what its flags say.
func MailCommand() (cmd *cobra.Command, change func(context.Context, *auth.Store, int64) (auth.Credential, error)) {
	var duplicates, suppressed string
	cmd = &cobra.Command{
		Use:   "set ID",
		Short: "change how mail sent with a credential is treated",
		Long: `Changes how mail sent with a credential is treated.

--duplicates is how long a copy of a message is recognised, so that it is not sent again.

--suppressed is what happens to a recipient on the user's suppression list ('postern
suppression'):
  refuse  refuse it at RCPT
  accept  accept it, send nothing, and tell the sender by a notice
  ignore  send to it all the same, unless it is suppressed for all users`,
		Example: "  postern credential set 12 --duplicates 10m --suppressed ignore",
	}
	words := []string{string(auth.RefuseSuppressed), string(auth.AcceptSuppressed), string(auth.IgnoreSuppressed)}
	cmd.Flags().StringVar(&duplicates, "duplicates", "", "`SPAN` such as 10m, off, or default for queue.duplicates of the configuration")
	cmd.Flags().StringVar(&suppressed, "suppressed", "", "`ACTION` for suppressed recipients: "+strings.Join(words, ", "))
	cmd.MarkFlagsOneRequired("duplicates", "suppressed")
	_ = cmd.RegisterFlagCompletionFunc("suppressed", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	return cmd, func(ctx context.Context, store *auth.Store, id int64) (c auth.Credential, err error) {
		if cmd.Flags().Changed("duplicates") {
			var span *time.Duration
			if span, err = parseDuplicates(duplicates); err == nil {
				c, err = store.SetDuplicates(ctx, id, span)
			}
		}
		if err == nil && cmd.Flags().Changed("suppressed") {
			c, err = store.SetSuppressed(ctx, id, auth.Suppressed(suppressed))
		}
		return c, err
	}
}

// DuplicatesText writes how long copies of mail are recognised.
func DuplicatesText(span *time.Duration) string {
	switch {
	case span == nil:
		return "default"
	case *span == 0:
		return "off"
	}
	return units.FormatSpan(*span)
}

// parseDuplicates reads what DuplicatesText writes, and other spans of up to 7 days.
func parseDuplicates(s string) (*time.Duration, error) {
	var span time.Duration
	switch s {
	case "default":
		return nil, nil
	case "off":
		return &span, nil
	}
	span, err := units.ParseSpan(s)
	if err != nil || span < time.Second || span > auth.MaxDuplicates {
		return nil, refusal.Invalid("--duplicates: %q is neither off nor default, nor a span of 1s to 7d", s)
	}
	return &span, nil
}
