package secret

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"postern/internal/refusal"
)

// longest is the longest password that is read, in octets.
const longest = 1024

// readLine reads one line, without showing it if it is typed.
func readLine(r io.Reader) (string, error) {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b, err := term.ReadPassword(int(f.Fd()))
		if err != nil {
			return "", err
		}
		return checked(string(b))
	}
	line, err := bufio.NewReader(io.LimitReader(r, longest+2)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return checked(strings.TrimRight(line, "\r\n"))
}

func checked(s string) (string, error) {
	switch {
	case s == "":
		return "", refusal.Invalid("there is no password to read: one line must hold it")
	case len(s) > longest:
		return "", refusal.Invalid("the password is longer than %d octets", longest)
	}
	return s, nil
}

// Waits reports that a pipe or a file has something to read now. It does not wait: a pipe may
// be open and nobody's, as under ssh or cron.
func Waits(r io.Reader) bool {
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

// mostPasted is the longest line of Pasted, in octets.
const mostPasted = 8 << 10

// Pasted reads one line that is shown while it is typed, such as the address at which a
// browser ended: the code in it is good for one use. The rest of the input stays unread.
// Errors: refusal.ErrInvalid for a line of more than 8 KiB, and r's.
func Pasted(r io.Reader) (string, error) {
	var line strings.Builder
	one := make([]byte, 1)
	for line.Len() < mostPasted {
		n, err := r.Read(one)
		if n > 0 && one[0] == '\n' || errors.Is(err, io.EOF) {
			return line.String(), nil
		}
		if err != nil {
			return "", err
		}
		line.Write(one[:n])
	}
	return "", refusal.Invalid("the line is longer than %d octets", mostPasted)
}
