package account

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/internal/units"
)

// DuplicatesFlag adds the flag, which must be given.
func DuplicatesFlag(cmd *cobra.Command, text *string) {
	cmd.Flags().StringVar(text, "duplicates", "", "`SPAN` such as 10m, off, or default for [queue] duplicates of the configuration")
	_ = cmd.MarkFlagRequired("duplicates")
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
