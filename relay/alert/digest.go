package alert

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/admin/health"
	"postern/relay/smtp"
)

// Bounds of a mail's text.
const (
	width = 76  // octets of a line
	most  = 180 // lines about findings
)

// digest is a mail about to be written.
type digest struct {
	id       string
	hostname string
	to       []smtp.Address
	what     occasion
	found    []finding
	told     []string // the keys of the last mail's findings
	now      time.Time
}

func (d *digest) messageID() string { return "<" + d.id + "@" + d.hostname + ">" }

// bytes is the message: plain text in ASCII, so that it goes by every way.
func (d *digest) bytes() []byte {
	to := make([]string, len(d.to))
	for i, a := range d.to {
		to[i] = "<" + a.String() + ">"
	}
	var b strings.Builder
	for _, field := range []string{
		"Date: " + d.now.UTC().Format(time.RFC1123Z),
		"From: Postern <MAILER-DAEMON@" + d.hostname + ">",
		"To: " + strings.Join(to, ",\r\n "),
		"Subject: [postern " + d.hostname + "] " + d.subject(),
		"Message-ID: " + d.messageID(),
		"Auto-Submitted: auto-generated", // RFC 3834 section 5
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=us-ascii",
		"",
	} {
		b.WriteString(field + "\r\n")
	}
	for _, line := range d.lines() {
		b.WriteString(line + "\r\n")
	}
	return []byte(b.String())
}

// counts is "1 failure, 2 warnings".
func (d *digest) counts() string {
	failed := 0
	for i := range d.found {
		if d.found[i].Status == health.Failed {
			failed++
		}
	}
	var list []string
	for _, c := range []struct {
		n    int
		what string
	}{{failed, "failure"}, {len(d.found) - failed, "warning"}} {
		switch {
		case c.n == 1:
			list = append(list, "1 "+c.what)
		case c.n > 1:
			list = append(list, fmt.Sprintf("%d %ss", c.n, c.what))
		}
	}
	if list == nil {
		return "no failure and no warning"
	}
	return strings.Join(list, ", ")
}

func (d *digest) subject() string {
	switch d.what {
	case well:
		return "all is well again"
	case test:
		return "test: " + d.counts()
	}
	return d.counts()
}

func (d *digest) lines() (lines []string) {
	switch d.what {
	case well:
		lines = wrap("", "Postern at "+d.hostname+" finds nothing wrong any more.")
	case test:
		lines = wrap("", "This is a test: 'postern alerts test' asked for it. Postern at "+d.hostname+" finds "+d.counts()+".")
	default:
		lines = wrap("", "Postern at "+d.hostname+" finds "+d.counts()+".")
	}
	lines = append(lines, "")
	for i := range d.found {
		block := d.found[i].lines()
		if len(lines)+len(block) > most {
			lines = append(lines, wrap("", fmt.Sprintf("There are %d more: 'postern check' shows them.", len(d.found)-i))...)
			lines = append(lines, "")
			break
		}
		lines = append(lines, block...)
	}
	lines = append(lines, d.ended()...)
	return append(lines, wrap("", "'postern check' on a node has more. A mail comes when something new is found, at most one an hour; "+
		"again after a day while something fails, or a week while there are only warnings; and when all is well again.")...)
}

// ended names the findings of the last mail that have ended.
func (d *digest) ended() (lines []string) {
	for _, key := range d.told {
		if !slices.ContainsFunc(d.found, func(f finding) bool { return f.key == key }) && len(lines) < 10 {
			lines = append(lines, wrap("", "Not any more: "+key)...)
		}
	}
	if lines != nil {
		lines = append(lines, "")
	}
	return lines
}

func (f *finding) lines() []string {
	head := "WARNING "
	if f.Status == health.Failed {
		head = "FAILED "
	}
	if f.isNew {
		head = "NEW " + head
	}
	lines := wrap("", head+f.Subject+" ["+f.ID+"]")
	lines = append(lines, wrap("    ", f.Text)...)
	if f.Todo != "" {
		lines = append(lines, wrap("    ", "To do: "+f.Todo)...)
	}
	lines = append(lines, wrap("    ", "Since "+f.since.UTC().Format("2006-01-02 15:04")+" UTC, on "+strings.Join(f.nodes, ", "))...)
	return append(lines, "")
}

// wrap puts text in ASCII on lines of at most width.
func wrap(indent, text string) (lines []string) {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(text), " "))
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(indent)+len(line)+1+len(word) > width {
			lines, line = append(lines, indent+line), ""
		}
		if line != "" {
			line += " "
		}
		for line += word; len(indent)+len(line) > width; line = line[width-len(indent):] {
			lines = append(lines, indent+line[:width-len(indent)])
		}
	}
	return append(lines, indent+line)
}
