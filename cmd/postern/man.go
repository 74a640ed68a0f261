package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"postern/cmd/postern/man"
	"postern/cmd/postern/screen"
)

// manCmd writes the manual; it is for those who package the program.
func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "write the manual pages",
		Long:   "Writes a manual page for each command into the folder DIR.",
		Hidden: true,
		Args:   one("folder", "a folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			dir, err := os.OpenRoot(args[0])
			if err != nil {
				return err
			}
			defer dir.Close()
			n, err := man.Write(cmd.Root(), versionString(), dir)
			if err == nil {
				_, err = fmt.Fprintf(a.stdout, "wrote %s into %s\n", screen.Count(n, "page"), args[0])
			}
			return err
		},
	}
}
