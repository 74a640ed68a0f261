package screen

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
)

func OneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}

// Writer is where a command writes for people and programs. Much of that came from the
// network: what could steer a terminal, or hide in it, is escaped, whichever command prints it.
// Lines and columns are the command's own.
type Writer struct {
	io.Writer
	Width int // of the terminal, in columns; 0 for what is none, where nothing is cut
}

// WriterTo is a Writer to w, which may be a terminal.
func WriterTo(w io.Writer) Writer {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return Writer{w, cmp.Or(width, 80)}
		}
	}
	return Writer{Writer: w}
}

// Write implements io.Writer. A character that was cut off is escaped as octets.
func (s Writer) Write(text []byte) (int, error) {
	if !slices.ContainsFunc(text, func(c byte) bool { return c > '~' || c < ' ' && c != '\n' && c != '\t' }) {
		return s.Writer.Write(text)
	}
	safe := escape(string(text), "\n\t")
	if _, err := io.WriteString(s.Writer, safe); err != nil {
		return 0, err
	}
	return len(text), nil
}

// Printable is text on one line whose characters can all be seen.
func Printable(s string) string { return escape(s, "") }

// escape writes what steers a terminal or cannot be seen as JSON does, "\u200b"; except is
// left as it is.
func escape(s, except string) string {
	steering := func(r rune) bool { return r == utf8.RuneError || steers(r) && !strings.ContainsRune(except, r) }
	if strings.IndexFunc(s, steering) < 0 {
		return s
	}
	var safe strings.Builder
	for i, r := range s {
		switch {
		case !steering(r):
			safe.WriteRune(r)
		case r > 0xffff:
			first, second := utf16.EncodeRune(r)
			fmt.Fprintf(&safe, `\u%04x\u%04x`, first, second)
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&safe, `\x%02x`, s[i])
		case r == utf8.RuneError:
			safe.WriteRune(r)
		default:
			fmt.Fprintf(&safe, `\u%04x`, r)
		}
	}
	return safe.String()
}

// steers reports what a terminal obeys, what reorders text, and what takes no room, so
// that two texts look the same which are not: controls, separators of lines, and all that
// Unicode has for formatting or lets a terminal leave out.
func steers(r rune) bool {
	return r < 0x20 || r >= 0x7f && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp,
		unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// LocalTime prints a time for people; "-" for none.
func LocalTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// Moment is LocalTime; nil is none.
func Moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return LocalTime(*t)
}

// Count is a number of things in words: "1 recipient", "2 recipients".
func Count[N int | int64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Be is what Count is followed by: "1 recipient is", "2 recipients are".
func Be[N int | int64](n N) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Colon is ": s", or nothing.
func Colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

// Shorten cuts s to n runes for a table.
func Shorten(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n-1]) + "…"
}

// Few lists the first few of many.
func Few(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
