package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/owned"
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

// read returns the password. A file that everybody may change is refused; one that
// everybody may read is told to exposed.
func (p *passwordSource) read(stdin io.Reader, exposed func(error)) (string, error) {
	if p.file == "" {
		return readSecret(stdin)
	}
	if piped(p.file) {
		f, err := os.Open(p.file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return readSecret(f)
	}
	text, err := owned.ReadSecret(p.file, exposed)
	if err != nil {
		return "", fmt.Errorf("--password-file: %w", err)
	}
	return readSecret(bytes.NewReader(text))
}

// piped reports that a file is a pipe: what a shell makes of <(command), or /dev/stdin. It
// is the caller's, who alone can give its name.
func piped(path string) bool {
	info, err := os.Stat(path)
	return err == nil && strings.HasPrefix(path, "/dev/") && !info.Mode().IsRegular()
}
