package health

import "fmt"

// Status is how a finding is meant.
type Status string

const (
	OK      Status = "ok"
	Info    Status = "info"    // worth knowing
	Skipped Status = "skipped" // could not be looked at
	Warning Status = "warning" // works, but not as it should, or not for long
	Failed  Status = "failed"  // does not work, or is not safe
)

// worse is the order of what a running node finds of itself.
var worse = map[Status]int{OK: 0, Warning: 1, Failed: 2}

// Finding is one line of what 'postern check' and /readyz report.
type Finding struct {
	ID      string `json:"id"` // of its kind, in docs/check.md
	Status  Status `json:"status"`
	Subject string `json:"subject"` // what was looked at
	Text    string `json:"text"`    // what was found
	Todo    string `json:"todo,omitempty"`
	Publish string `json:"publish,omitempty"` // the DNS record that helps, as a line of a zone file
}

// Kind is what findings of one name have in common. The name is stable: monitoring
// is built on it.
type Kind struct {
	ID     string
	Status Status
	Means  string // one sentence, for docs/check.md
	Todo   string // one sentence; "" for what needs nothing
}

// Found is a finding of this kind.
func (k Kind) Found(subject, format string, args ...any) Finding {
	return Finding{ID: k.ID, Status: k.Status, Subject: subject, Text: fmt.Sprintf(format, args...), Todo: k.Todo}
}

// Worst is the finding that matters most, the first of its status.
func Worst(found []Finding) Finding {
	worst := found[0]
	for _, f := range found[1:] {
		if worse[f.Status] > worse[worst.Status] {
			worst = f
		}
	}
	return worst
}
