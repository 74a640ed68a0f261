package main

import (
	"errors"

	"github.com/spf13/cobra"

	"postern/cmd/postern/demo"
)

func (a *app) demoCmd() *cobra.Command {
	cfg := demo.Config{Out: a.stdout, Database: &a.database, Node: a.setup, Trace: a.traceWhenDone}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "try the relay on this machine",
		Long: `Starts a private PostgreSQL server in a folder of its own, adds a user, opens the
listeners on loopback addresses with a certificate made for the demo, and forwards mail
to a capture server that accepts every message and forwards none. One message is
submitted over STARTTLS with AUTH, and its trace is printed.

The demo stays up so that you can try a mail client; --once ends it after the delivery.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Chosen = cmd.Flags().Changed("dir")
			err := demo.Run(cmd.Context(), cfg)
			if err != nil && cmd.Context().Err() != nil {
				return errors.New("interrupted")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&cfg.Once, "once", false, "end after the delivery")
	cmd.Flags().StringVar(&cfg.Dir, "dir", ".demo", "`FOLDER` for the demo's files; you or root must own the folders above it")
	return cmd
}
