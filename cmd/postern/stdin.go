package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// maxSecret is the longest password that is read, in octets.
const maxSecret = 1024

// readSecret reads one line: a password never stands on a command line, where
// every user of the machine could read it.
func readSecret(r io.Reader) (string, error) {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b, err := term.ReadPassword(int(f.Fd()))
		if err != nil {
			return "", err
		}
		return checkSecret(string(b))
	}
	line, err := bufio.NewReader(io.LimitReader(r, maxSecret+2)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return checkSecret(strings.TrimRight(line, "\r\n"))
}

func checkSecret(s string) (string, error) {
	switch {
	case s == "":
		return "", usagef("there is no password to read: one line must hold it")
	case len(s) > maxSecret:
		return "", usagef("the password is longer than %d octets", maxSecret)
	}
	return s, nil
}

// waits reports that a pipe or a file has something to read now. It does not wait: a pipe may
// be open and nobody's, as under ssh or cron.
func waits(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	switch info.Mode().Type() {
	case 0:
		at, err := f.Seek(0, io.SeekCurrent)
		return err == nil && at < info.Size()
	case fs.ModeNamedPipe, fs.ModeSocket:
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
		return err == nil && n > 0
	}
	return false
}
