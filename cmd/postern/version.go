package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/migrations"
)

// version and commit are set by the linker; a plain 'go build' leaves them empty.
var version, commit string

// versionString is the stamped version, or what the build recorded of the
// revision it was made from.
func versionString() string {
	if version != "" {
		return version
	}
	if c := revision(); len(c) >= 12 {
		return "devel-" + c[:12]
	}
	return "devel"
}

// revision is the commit that this program was built from; "" when nobody noted it.
func revision() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

// build is what 'postern version --json' says.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Schema   int    `json:"schema"` // the number of the newest migration
}

func thisBuild() (build, error) {
	set, err := migrations.All()
	if err != nil {
		return build{}, err
	}
	return build{
		Version: versionString(), Commit: revision(), Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH, Schema: set[len(set)-1].Version,
	}, nil
}

func (a *app) versionCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Long: `Prints the version, and the number of the database schema that belongs to it. --json
also has the commit that the program was built from, if known.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			b, err := thisBuild()
			if err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, b)
			}
			_, err = fmt.Fprintf(a.stdout, "postern %s (schema %d, %s, %s)\n", b.Version, b.Schema, b.Go, b.Platform)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
