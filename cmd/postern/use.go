package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern/cmd/postern/screen"
	"postern/internal/units"
)

// flagError says what is wrong with a command's flags in the words of this program.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	var (
		unknown *pflag.NotExistError
		bare    *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
		syntax  *pflag.InvalidSyntaxError
	)
	switch {
	case errors.As(err, &unknown):
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		name := flagName(unknown.GetSpecifiedName(), unknown.GetSpecifiedShortnames())
		return usagef("'%s' has no flag %s%s", cmd.CommandPath(), name, screen.DidYouMean(name, names))
	case errors.As(err, &bare):
		return usagef("%s needs a value", flagName(bare.GetSpecifiedName(), bare.GetSpecifiedShortnames()))
	case errors.As(err, &invalid):
		f := invalid.GetFlag()
		switch f.Value.Type() {
		case "int":
			return usagef("--%s: %q is not a whole number", f.Name, invalid.GetValue())
		case "bool":
			return usagef("--%s: %q is neither true nor false", f.Name, invalid.GetValue())
		}
		return usagef("--%s: %v", f.Name, errors.Unwrap(invalid))
	case errors.As(err, &syntax):
		return usagef("%q is not a flag", syntax.GetSpecifiedFlag())
	}
	return usageError{err.Error()}
}

func flagName(name, shortnames string) string {
	if shortnames != "" {
		return "-" + shortnames
	}
	return "--" + name
}

// plainUse rewords what cobra found wrong before a command began.
func plainUse(cmd *cobra.Command, err error) error {
	if _, set, ok := strings.Cut(err.Error(), "] are set none of the others can be; ["); ok {
		set, _, _ = strings.Cut(set, "]")
		return usagef("'%s' takes only one of --%s", cmd.CommandPath(), strings.Join(strings.Fields(set), " and --"))
	}
	if _, set, ok := strings.Cut(err.Error(), "at least one of the flags in the group ["); ok {
		set, _, _ = strings.Cut(set, "]")
		return usagef("'%s' needs --%s", cmd.CommandPath(), strings.Join(strings.Fields(set), " or --"))
	}
	missing, ok := strings.CutPrefix(err.Error(), "required flag(s) ")
	if !ok {
		return err
	}
	missing = strings.TrimSuffix(missing, " not set")
	names := strings.Split(strings.ReplaceAll(missing, `"`, ""), ", ")
	return usagef("'%s' needs --%s", cmd.CommandPath(), strings.Join(names, " and --"))
}

// spanFlag reads a span of time; a flag that is not given, "", is 0.
func spanFlag(name, text string) (time.Duration, error) {
	d, err := units.ParseSpan(text)
	if text != "" && (err != nil || d < time.Microsecond) {
		return 0, usagef("--%s: %q is not a span of time such as 90m, 4h or 7d", name, text)
	}
	return d, nil
}
