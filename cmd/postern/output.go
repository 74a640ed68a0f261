package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// printJSON writes v as indented JSON with a final newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// screen is where a command writes for people and programs. Much of that came from the
// network: what could steer a terminal, or hide in it, is escaped, whichever command prints it.
// Lines and columns are the command's own.
type screen struct{ io.Writer }

// Write implements io.Writer. A character that was cut off is escaped as octets.
func (s screen) Write(text []byte) (int, error) {
	if !slices.ContainsFunc(text, func(c byte) bool { return c > '~' || c < ' ' && c != '\n' && c != '\t' }) {
		return s.Writer.Write(text)
	}
	safe := escape(string(text), "\n\t")
	if _, err := io.WriteString(s.Writer, safe); err != nil {
		return 0, err
	}
	return len(text), nil
}

// table prints rows in aligned columns under a head. Cells are made printable, lest what
// came from the network makes rows and columns.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.head, "\t"))
	for _, row := range t.rows {
		for i := range row {
			row[i] = printable(row[i])
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// printable is text on one line whose characters can all be seen.
func printable(s string) string { return escape(s, "") }

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

// localTime prints a time for people; "-" for none.
func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orDefault(n int) string {
	if n == 0 {
		return "default"
	}
	return strconv.Itoa(n)
}

// emptyList makes an empty listing [] in JSON, not null.
func emptyList[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
