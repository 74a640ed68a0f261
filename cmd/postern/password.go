package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/owned"
)

// passwordSource says where a command reads a secret; nowhere, if nothing is set.
type passwordSource struct {
	stdin bool
	file  string
	name  string // of the flags, without -stdin and -file
}

func (p *passwordSource) flags(cmd *cobra.Command) { p.named(cmd, "password") }

// named adds flags for another secret than a password.
func (p *passwordSource) named(cmd *cobra.Command, name string) {
	p.name = name
	what := strings.ReplaceAll(name, "-", " ")
	cmd.Flags().BoolVar(&p.stdin, name+"-stdin", false, "read the "+what+" from standard input")
	cmd.Flags().StringVar(&p.file, name+"-file", "", "read the "+what+" from the first line of `file`, such as a container secret")
	cmd.MarkFlagsMutuallyExclusive(name+"-stdin", name+"-file")
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
		return "", fmt.Errorf("--%s-file: %w", cmp.Or(p.name, "password"), err)
	}
	return readSecret(bytes.NewReader(text))
}

// piped reports that a file is a pipe: what a shell makes of <(command), or /dev/stdin. It
// is the caller's, who alone can give its name.
func piped(path string) bool {
	info, err := os.Stat(path)
	return err == nil && strings.HasPrefix(path, "/dev/") && !info.Mode().IsRegular()
}
