package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"
)

// passwordSource says where a command reads a password; nowhere, if nothing is set.
type passwordSource struct {
	stdin bool
	file  string
}

func (p *passwordSource) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.stdin, "password-stdin", false, "read the password from standard input")
	cmd.Flags().StringVar(&p.file, "password-file", "", "read the password from the first line of `file`, as of a secret that a container is given")
	cmd.MarkFlagsMutuallyExclusive("password-stdin", "password-file")
}

func (p *passwordSource) given() bool { return p.stdin || p.file != "" }

func (p *passwordSource) read(stdin io.Reader) (string, error) {
	if p.file == "" {
		return readSecret(stdin)
	}
	f, err := os.Open(p.file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readSecret(f)
}
