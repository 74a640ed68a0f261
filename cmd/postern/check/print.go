package check

import (
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

// Print writes what is to be done under what was found: beside it the lines would be too long for a
// terminal. The records to publish are below all that, each in one line that can be copied.
func Print(out io.Writer, found []health.Finding) error {
	t := screen.Table{Head: []string{"", "SUBJECT", "FINDING"}, Wraps: true}
	add := func(status, subject, text string) { t.Add(status, subject, text) }
	if isNarrow(out, found) {
		t.Head = []string{"", "FINDING"}
		add = func(status, subject, text string) {
			if status == string(health.OK) {
				t.Add(status, subject+": "+text)
				return
			}
			if status != "" {
				t.Add(status, subject)
			}
			t.Add("", text)
		}
	}
	var help []health.Finding
	for i, f := range found {
		if f.Status == health.OK {
			add(string(f.Status), f.Subject, f.Text)
			continue
		}
		add(string(f.Status), f.Subject, f.Text+" ["+f.ID+"]")
		again := i+1 < len(found) && found[i+1].ID == f.ID && found[i+1].Todo == f.Todo
		if f.Todo != "" && !again { // the last of them has it
			add("", "", "to do: "+f.Todo)
		}
		if f.Publish != "" && !slices.ContainsFunc(help, func(h health.Finding) bool { return h.Publish == f.Publish }) {
			help = append(help, f)
		}
	}
	if err := t.Print(out); err != nil {
		return err
	}
	for _, f := range help {
		place := ""
		if f.ID == "spf.fail" {
			place = " in place of the present record"
		}
		if _, err := fmt.Fprintf(out, "\nto publish%s for %s [%s]:\n%s\n", place, screen.Printable(f.Subject), f.ID, screen.Printable(f.Publish)); err != nil {
			return err
		}
	}
	return nil
}

// leastText is how many columns of a terminal a finding should have beside its subject.
const leastText = 48

// isNarrow reports a terminal that has no room for that.
func isNarrow(out io.Writer, found []health.Finding) bool {
	s, ok := out.(screen.Writer)
	longest := 0
	for _, f := range found {
		longest = max(longest, utf8.RuneCountInString(f.Subject))
	}
	return ok && s.Width > 0 && s.Width-longest-len("warning  ")-len("  ") < leastText
}
