package account

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/internal/units"
)

// MailFlags adds the flags about mail by a credential, of which one must be given.
func MailFlags(cmd *cobra.Command, duplicates, suppressed *string) {
	words := []string{string(auth.RefuseSuppressed), string(auth.AcceptSuppressed), string(auth.IgnoreSuppressed)}
	cmd.Flags().StringVar(duplicates, "duplicates", "", "`SPAN` such as 10m, off, or default for [queue] duplicates of the configuration")
	cmd.Flags().StringVar(suppressed, "suppressed", "", "`WHAT` becomes of suppressed recipients: "+strings.Join(words, ", "))
	cmd.MarkFlagsOneRequired("duplicates", "suppressed")
	_ = cmd.RegisterFlagCompletionFunc("suppressed", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
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

// ParseDuplicates reads what DuplicatesText writes, and other spans of up to 7 days.
func ParseDuplicates(s string) (*time.Duration, error) {
	var span time.Duration
	switch s {
	case "default":
		return nil, nil
	case "off":
		return &span, nil
	}
	span, err := units.ParseSpan(s)
	if err != nil || span < time.Second || span > auth.MaxDuplicates {
		return nil, fmt.Errorf("--duplicates: %q is neither off nor default, nor a span of 1s to 7d", s)
	}
	return &span, nil
}
