// Command smtpbench measures a submission server: it sends mail into one end,
// takes it from the other, checks that what was acknowledged arrived once and
// unaltered, and says how fast and at what price.
//
// It works with any server that takes mail over TLS with AUTH PLAIN and forwards
// it in clear to the sink. Its wire code is its own and shares nothing with the
// relay's, so that a mistake cannot hide on both sides.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program. It returns the exit status: 0 all mail is accounted for, 1
// some is not or the run failed, 2 usage error.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	started := false
	root := &cobra.Command{
		Use:   "smtpbench",
		Short: "load a submission server, verify and measure what comes out",
		Long: `Sends mail into a submission server and takes it at a sink that the server
forwards to. Every acknowledged message must arrive once for each recipient, with
its envelope, and unaltered but for header fields added at the top.

Exit status: 0 all mail is accounted for, 1 some is not or the run failed,
2 usage error.`,
		SilenceErrors:    true,
		SilenceUsage:     true,
		Args:             cobra.NoArgs,
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(*cobra.Command, []string) { started = true },
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(loadCommand(), sinkCommand(), compareCommand())
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "smtpbench: %v\n", err)
	if !started || errors.As(err, new(usageError)) {
		fmt.Fprintf(stderr, "see '%s --help'\n", cmd.CommandPath())
		return 2
	}
	return 1
}

// usageError is wrong use that a command's own code finds.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }
