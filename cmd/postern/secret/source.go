package secret

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/owned"
)

// Source says where a command reads a secret; nowhere, if nothing is set.
type Source struct {
	stdin bool
	file  string
	flag  string // without -stdin and -file
}

// Flags adds to cmd the flags NAME-stdin and NAME-file.
func (s *Source) Flags(cmd *cobra.Command, name string) {
	s.flag = name
	what := strings.ReplaceAll(name, "-", " ")
	cmd.Flags().BoolVar(&s.stdin, name+"-stdin", false, "read the "+what+" from standard input")
	cmd.Flags().StringVar(&s.file, name+"-file", "", "read the "+what+" from the first line of `FILE`, such as a container secret")
	cmd.MarkFlagsMutuallyExclusive(name+"-stdin", name+"-file")
}

// Given reports that one of the flags was.
func (s *Source) Given() bool { return s.stdin || s.file != "" }

// Read returns the secret, one line of 1 to 1,024 octets. A file that everybody may change
// is refused; one that everybody may read is reported to exposed. Errors:
// refusal.ErrInvalid for the length, *owned.Fault, and those of reading.
func (s *Source) Read(stdin io.Reader, exposed func(error)) (string, error) {
	switch {
	case s.file == "":
		return readLine(stdin)
	case piped(s.file):
		f, err := os.Open(s.file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return readLine(f)
	}
	text, err := owned.ReadSecret(s.file, exposed)
	if err != nil {
		return "", fmt.Errorf("--%s-file: %w", s.flag, err)
	}
	return readLine(bytes.NewReader(text))
}

// maxFile is the longest that File reads from a pipe, in octets.
const maxFile = 64 << 10

// File reads a file with a certificate or key by the rules of Read, or a pipe, which is the
// caller's.
func File(path string, exposed func(error)) (string, error) {
	if !piped(path) {
		text, err := owned.ReadSecret(path, exposed)
		return string(text), err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(text), err
}

// piped reports that a file is a pipe: what a shell makes of <(command), or /dev/stdin. It
// is the caller's, who alone can give its name.
func piped(path string) bool {
	info, err := os.Stat(path)
	return err == nil && strings.HasPrefix(path, "/dev/") && !info.Mode().IsRegular()
}
