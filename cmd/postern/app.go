package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/alerts"
	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// app is what every command shares: the process's surroundings and the flags
// that say which configuration and database to use.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	source         config.Source // of the configuration
	database       database.Connector
	completionTime time.Duration // that a shell waits for one at most

	started bool // a command's own code began: errors are failures, not wrong use
}

// usageError is wrong use found by a command's own code: exit status 2.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return usageError{fmt.Sprintf(format, args...)}
}

func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := wrongWord(root, args)
	if err == nil {
		cmd, err = root.ExecuteContextC(ctx)
	}
	if err == nil {
		return exitDone
	}
	if !a.started {
		err = plainUse(cmd, err)
	}
	fmt.Fprintf(a.stderr, "postern: %s\n", screen.OneLine(err.Error()))
	var usage usageError
	if !a.started || errors.As(err, &usage) {
		fmt.Fprintf(a.stderr, "see '%s --help'\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "an authenticated submission relay on PostgreSQL",
		Long: `Postern accepts mail from authenticated users on ports 587 (STARTTLS) and 465
(implicit TLS), stores it durably in PostgreSQL, and forwards it to a smarthost
or to the recipients' MX hosts.

The database comes from --database-url, POSTERN_DATABASE_URL or the config file,
in that order. Exit status: 0 success, 1 failure, 2 usage error. The hidden
command 'postern man DIR' writes the manual pages.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&a.source.Path, "config", "", "configuration `FILE` (default ./postern.toml, then /etc/postern/postern.toml)")
	root.PersistentFlags().StringVar(&a.source.DatabaseURL, "database-url", "", "PostgreSQL `URL`, without a password; overrides POSTERN_DATABASE_URL and the config file")
	root.AddCommand(
		a.serveCmd(), a.demoCmd(), a.checkCmd(), a.healthcheckCmd(), a.migrateCmd(), a.versionCmd(),
		a.userCmd(), a.credentialCmd(), a.senderCmd(), a.recipients().Recipient(), a.recipients().Suppression(), a.limitCmd(), a.explainCmd(), a.anomalyCmd(), a.auditCmd(),
		a.eventsCmd(), a.webhook().Webhook(), alerts.Command(a.stdout, a.recipients().With, noun, noArguments),
		a.upstreamCmd(), a.routeCmd(), a.queueCmd(), a.traceCmd(), a.dkimCmd(), a.transportCmd(), a.certificateCmd(), a.keyCmd(), a.completionCmd(), a.manCmd(),
	)
	root.CompletionOptions.DisableDefaultCmd = true // ours is a noun as the others
	root.Version = versionString()
	root.SetVersionTemplate("postern {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	strictHelp(root)
	a.complete(root)
	a.markStart(root)
	return root
}

func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	names := screen.Each(root.Commands(), (*cobra.Command).Name)
	return usagef("unknown command %q for %q%s", args[0], root.Name(), screen.DidYouMean(args[0], names))
}

// wrongWord refuses a word that is not a command even with --help, for which cobra shows the help of
// what stands before it.
func wrongWord(root *cobra.Command, args []string) (*cobra.Command, error) {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() || !slices.Contains(rest, "--help") && !slices.Contains(rest, "-h") {
		return root, nil
	}
	for i := 0; i < len(rest); i++ {
		switch word := rest[i]; {
		case word == "--config" || word == "--database-url":
			i++ // its value
		case strings.HasPrefix(word, "-"):
		case cmd == root:
			return cmd, unknownCommand(root, []string{word})
		default:
			return cmd, cmd.RunE(cmd, []string{word})
		}
	}
	return cmd, nil
}

// strictHelp makes 'help' fail for an unknown command.
func strictHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			continue
		}
		cmd.Short, cmd.Run = "help about any command", nil
		cmd.RunE = func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("unknown command %q for 'postern help'", strings.Join(args, " "))
			}
			return about.Help()
		}
	}
}

// markStart notes when a command's own code begins: what goes wrong before that
// (flags, arguments) is wrong use.
func (a *app) markStart(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			if config.HasPassword(a.source.DatabaseURL) {
				a.warn(errors.New("every user of this machine can read the password in --database-url, from the list of processes: " +
					"put the URL into POSTERN_DATABASE_URL or the configuration, or leave the password to ~/.pgpass"))
			}
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.markStart(sub)
	}
}

// noun makes a command that only groups verbs: alone, or with an unknown verb, that is
// a usage error.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			names := screen.Each(verbs, (*cobra.Command).Name)
			if len(args) > 0 {
				return usagef("unknown subcommand %q for '%s'%s: use %s", args[0], cmd.CommandPath(), screen.DidYouMean(args[0], names), strings.Join(names, ", "))
			}
			return usagef("'%s' needs a subcommand: %s", cmd.CommandPath(), strings.Join(names, ", "))
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func envMap(environ []string) map[string]string {
	m := make(map[string]string, len(environ))
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return m
}

// warn says on the error output what does not keep a command from its work.
func (a *app) warn(err error) { fmt.Fprintf(a.stderr, "warning: %s\n", screen.OneLine(err.Error())) }

// one wants one argument: what is missing, and the word for one of it.
func one(word, missing string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usagef("'%s' needs %s", cmd.CommandPath(), missing)
		case len(args) > 1:
			return usagef("'%s' takes one %s, not %d", cmd.CommandPath(), word, len(args))
		}
		return nil
	}
}

// atMostOne wants one argument or none.
func atMostOne(word string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return one(word, "")(cmd, args)
	}
}

// noArguments refuses what stands behind a command that takes only flags.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("'%s' takes only flags, not %q", cmd.CommandPath(), args[0])
	}
	return nil
}
