package check

import (
	"fmt"
	"io"
	"slices"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

// Print writes what is to be done under what was found: beside it the lines would be too long for a
// terminal. The records to publish are below all that, each in one line that can be copied.
func Print(out io.Writer, found []health.Finding) error {
	t := screen.Table{Head: []string{"", "SUBJECT", "FINDING"}, Wraps: true}
	var help []health.Finding
	for _, f := range found {
		if f.Status == health.OK {
			t.Add(string(f.Status), f.Subject, f.Text)
			continue
		}
		t.Add(string(f.Status), f.Subject, f.Text+" ["+f.ID+"]")
		if f.Todo != "" {
			t.Add("", "", "to do: "+f.Todo)
		}
		if f.Publish != "" && !slices.ContainsFunc(help, func(h health.Finding) bool { return h.Publish == f.Publish }) {
			help = append(help, f)
		}
	}
	if err := t.Print(out); err != nil {
		return err
	}
	for _, f := range help {
		if _, err := fmt.Fprintf(out, "\nto publish for %s [%s]:\n%s\n", screen.Printable(f.Subject), f.ID, screen.Printable(f.Publish)); err != nil {
			return err
		}
	}
	return nil
}
