package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"postern/cmd/postern/check"
)

// healthcheckCmd asks a running server, for container engines: their images may hold
// neither a shell nor curl.
func (a *app) healthcheckCmd() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "ask the running server whether it is ready",
		Long: `Asks the server that runs with this configuration for /readyz at its [admin]
address. The exit status is 0 when it is ready, and 1, with its reasons, when it is not
or does not answer within 5 s. This is for container engines and scripts;
'postern check' examines more.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				cfg, _, err := a.source.Load()
				if err != nil {
					return err
				}
				if address = cfg.Admin.Address; address == "" {
					return errors.New("[admin] address is empty in the configuration: the server cannot be asked")
				}
			}
			if err := check.Ready(cmd.Context(), address); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.stdout, "ready")
			return err
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "`HOST:PORT` or unix:PATH to ask (default: that of the configuration)")
	return cmd
}
