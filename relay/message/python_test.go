package message

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern/relay/smtp"
)

// A pythonReader reads addresses as Python's email.utils.getaddresses does (not strict,
// as it was before 2024): it needs no commas, joins atoms to a domain, and takes a
// carriage return for the end of quotes and comments.
type pythonReader struct {
	in  string
	pos int
}

const (
	pythonSpecials = `()<>@,:."[]`
	atomEnds       = pythonSpecials + " \t\r\n"
	phraseEnds     = `()<>@,:"[]` + " \t\r\n"
)

// pythonAddresses are those that are found in a field, and have an @.
func pythonAddresses(field string) (found []string) {
	for r := (pythonReader{in: field}); r.pos < len(r.in); {
		for _, a := range r.address() {
			if strings.Contains(a, "@") {
				found = append(found, a)
			}
		}
	}
	return found
}

func (r *pythonReader) at(set string) bool {
	return r.pos < len(r.in) && strings.IndexByte(set, r.in[r.pos]) >= 0
}

func (r *pythonReader) next() (space string) {
	for r.at(" \t\r\n(") {
		switch c := r.in[r.pos]; c {
		case '(':
			r.delimited(")\r", true)
		case ' ', '\t':
			space += string(c)
			fallthrough
		default:
			r.pos++
		}
	}
	return space
}

func (r *pythonReader) address() (found []string) {
	r.next()
	start := r.pos
	words := r.phrase()
	r.next()
	switch {
	case r.at(".@"):
		r.pos = start
		found = []string{r.spec()}
	case r.at(":"):
		for r.pos++; r.pos < len(r.in); {
			r.next()
			if r.at(";") {
				r.pos++
				break
			}
			found = append(found, r.address()...)
		}
	case r.at("<"):
		found = []string{r.route()}
	case len(words) > 0:
		found = words[:1]
	case r.at(pythonSpecials):
		r.pos++
	}
	r.next()
	if r.at(",") {
		r.pos++
	}
	return found
}

func (r *pythonReader) route() (found string) {
	r.pos++
	for r.next(); r.pos < len(r.in); r.next() {
		switch {
		case r.at(">"):
			r.pos++
			return ""
		case r.at("@"):
			r.pos++
			r.next()
			r.domain()
		case r.at(":"):
			r.pos++
		default:
			found = r.spec()
			r.pos++
			return found
		}
	}
	return ""
}

func (r *pythonReader) spec() string {
	var parts []string
	trim := func() {
		if n := len(parts); n > 0 && strings.TrimSpace(parts[n-1]) == "" {
			parts = parts[:n-1]
		}
	}
	for r.next(); r.pos < len(r.in); {
		dot := r.at(".")
		switch {
		case dot:
			trim()
			parts = append(parts, ".")
			r.pos++
		case r.at(`"`):
			parts = append(parts, quoteAll(r.delimited("\"\r", false)))
		case r.at(atomEnds):
			trim()
			goto end
		default:
			parts = append(parts, r.atom(atomEnds))
		}
		if space := r.next(); space != "" && !dot {
			parts = append(parts, space)
		}
	}
end:
	if !r.at("@") {
		return strings.Join(parts, "")
	}
	r.pos++
	r.next()
	domain := r.domain()
	if domain == "" {
		return ""
	}
	return strings.Join(parts, "") + "@" + domain
}

func (r *pythonReader) domain() (domain string) {
	for r.pos < len(r.in) {
		switch {
		case r.at(" \t"):
			r.pos++
		case r.at("("):
			r.delimited(")\r", true)
		case r.at("["):
			domain += "[" + r.delimited("]\r", false) + "]"
		case r.at("."):
			r.pos++
			domain += "."
		case r.at("@"):
			return ""
		case r.at(atomEnds):
			return domain
		default:
			domain += r.atom(atomEnds)
		}
	}
	return domain
}

func (r *pythonReader) delimited(ends string, comments bool) string {
	var text []byte
	for r.pos++; r.pos < len(r.in); {
		switch {
		case r.at(ends):
			r.pos++
			return string(text)
		case comments && r.at("("):
			text = append(text, r.delimited(")\r", true)...)
			continue
		case r.at(`\`):
			if r.pos++; r.pos == len(r.in) {
				return string(text)
			}
		}
		text = append(text, r.in[r.pos])
		r.pos++
	}
	return string(text)
}

func (r *pythonReader) atom(ends string) string {
	start := r.pos
	for r.pos < len(r.in) && !r.at(ends) {
		r.pos++
	}
	return r.in[start:r.pos]
}

func (r *pythonReader) phrase() (words []string) {
	for r.pos < len(r.in) {
		switch {
		case r.at(" \t\r\n"):
			r.pos++
		case r.at(`"`):
			words = append(words, r.delimited("\"\r", false))
		case r.at("("):
			r.delimited(")\r", true)
		case r.at(phraseEnds):
			return words
		default:
			words = append(words, r.atom(phraseEnds))
		}
	}
	return words
}

// anAddress finds one in what a reader returns, which may have brackets and a name around it.
var anAddress = regexp.MustCompile(`[^\s<>"(),:;\[\]\\]+@[^\s<>"(),:;\[\]\\]+`)

// strangers are the addresses among those that were found which nobody judges.
func strangers(found []string, judged []smtp.Address) (list []string) {
	for _, text := range found {
		for _, a := range anAddress.FindAllString(text, -1) {
			if !slices.ContainsFunc(judged, func(j smtp.Address) bool { return strings.EqualFold(a, j.Local+"@"+j.Domain) }) {
				list = append(list, text)
			}
		}
	}
	return list
}

// P08: names as Python's email package folds them (testdata/names.py) are taken when
// they are in the grammar and no reader of Python's finds an address but the one that
// is judged; and never is another one found in what is taken.
func TestP08PythonNames(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/names.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Policy, Value string
		Intact        bool     // quoted as the grammar wants
		Found         []string // addresses, by all readers
		Folds         []string // by the one that pythonReader is
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	folded := 0
	for _, c := range cases {
		if diff := cmp.Diff(c.Folds, append([]string{}, pythonAddresses(c.Value)...)); diff != "" {
			t.Errorf("%q is not read as by Python: %s", c.Value, diff)
		}
		got, err := appendMailboxes(nil, []byte(c.Value+"\r\n"), false)
		if err == nil && len(strangers(c.Found, got)) > 0 {
			t.Errorf("%q: judged is %v, others find %v", c.Value, got, c.Found)
		}
		if !c.Intact || strings.Count(c.Value, "@") > 1 || strings.Count(c.Value, "<") > 1 {
			continue
		}
		if err != nil || len(got) != 1 || got[0].String() != "alice@ok.example" {
			t.Errorf("%s, %q: %v, %v", c.Policy, c.Value, got, err)
		}
		if strings.Contains(c.Value, ",\r\n ") && strings.Contains(c.Value, `"`) {
			folded++
		}
	}
	if len(cases) < 200 || folded < 50 {
		t.Errorf("only %d cases, and of them %d folded behind a comma", len(cases), folded)
	}
}
