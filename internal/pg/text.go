package pg

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Texts are the statements of .sql files. Each begins at a line "-- name: x" and has named
// arguments, @x, so that it can be read, and run in psql, as it is. A part begins at a line
// "-- part: x" and stands for @x in the statements of its package, which share it.
type Texts struct {
	raw   map[string]string
	part  map[string]bool // the names of parts
	bound map[string]string
	used  map[string]bool
}

// heading begins a statement, partHeading a part; the rest of the line is its name.
const (
	heading     = "-- name: "
	partHeading = "-- part: "
)

// Load reads the .sql files of a folder that is embedded. It panics at one that it cannot read,
// and at a name that two statements have.
func Load(files fs.FS) *Texts {
	t := &Texts{raw: make(map[string]string), part: make(map[string]bool), bound: make(map[string]string), used: make(map[string]bool)}
	names, err := fs.Glob(files, "*.sql")
	if err != nil || len(names) == 0 {
		panic(fmt.Sprintf("no statements: %v", err))
	}
	for _, file := range names {
		data, err := fs.ReadFile(files, file)
		if err != nil {
			panic(err)
		}
		t.split(string(data))
	}
	return t
}

// split adds the statements and parts of a file's text. The text before the first one is left out.
func (t *Texts) split(text string) {
	for i, section := range strings.Split("\n"+text, "\n"+heading) {
		for j, part := range strings.Split("\n"+section, "\n"+partHeading) {
			if i == 0 && j == 0 {
				continue
			}
			name, sql, _ := strings.Cut(strings.TrimPrefix(part, "\n"), "\n")
			if _, twice := t.raw[name]; twice {
				panic("two statements are named " + name)
			}
			t.raw[name], t.part[name] = strings.TrimSpace(sql), j > 0
		}
	}
}

// Constants are arguments of a statement that are always the same SQL literal, by their names.
type Constants map[string]string

// Bind returns a statement for the database, in which its arguments are $1, $2 … in the order
// of args. It panics unless the statement has exactly those.
func (t *Texts) Bind(name string, args ...string) string { return t.BindWith(name, nil, args...) }

// BindWith is Bind for a statement with constants: PostgreSQL plans it without the parts that
// they turn off.
func (t *Texts) BindWith(name string, constants Constants, args ...string) string {
	text, known := t.raw[name]
	if !known {
		panic("no statement is named " + name)
	}
	used := make([]bool, len(args))
	var number func(arg string) string
	number = func(arg string) string {
		if t.part[arg] {
			t.used[arg] = true
			return numbered(t.raw[arg], number)
		}
		if literal, is := constants[arg]; is {
			return literal
		}
		n := slices.Index(args, arg)
		if n < 0 {
			panic(fmt.Sprintf("statement %s: @%s is not given", name, arg))
		}
		used[n] = true
		return "$" + strconv.Itoa(n+1)
	}
	text = numbered(text, number)
	if n := slices.Index(used, false); n >= 0 {
		panic(fmt.Sprintf("statement %s has no @%s", name, args[n]))
	}
	key := name
	for _, arg := range slices.Sorted(maps.Keys(constants)) {
		key += fmt.Sprintf(", %s %s", arg, constants[arg])
	}
	t.bound[key] = text
	t.used[name] = true
	return text
}

// Bound returns what was bound, by the names, and which statements and parts were not.
func (t *Texts) Bound() (texts map[string]string, unused []string) {
	for name := range t.raw {
		if !t.used[name] {
			unused = append(unused, name)
		}
	}
	return t.bound, unused
}

// argument has the octets of an argument's name.
const argument = "abcdefghijklmnopqrstuvwxyz0123456789_"

// numbered replaces the arguments of a statement, and leaves its comments out. It is not a
// regular expression: each start of the program numbers all statements, and an expression
// took most of the time of a short command for that.
func numbered(text string, number func(arg string) string) string {
	var out strings.Builder
	for {
		at := strings.IndexAny(text, "'-@")
		if at < 0 {
			out.WriteString(text)
			return out.String()
		}
		out.WriteString(text[:at])
		text = text[at:]
		n := 1 // octets to go on behind
		switch {
		case text[0] == '\'': // a literal is not looked into
			n = 2 + strings.IndexByte(text[1:], '\'')
			out.WriteString(text[:n])
		case strings.HasPrefix(text, "--"):
			if n = strings.IndexByte(text, '\n'); n < 0 {
				n = len(text)
			}
		default:
			name := text[1 : len(text)-len(strings.TrimLeft(text[1:], argument))]
			if n += len(name); text[0] == '@' && name != "" {
				out.WriteString(number(name))
			} else {
				out.WriteString(text[:n])
			}
		}
		text = text[n:]
	}
}

// Args are the arguments of a statement with their names, as Bind takes these: what adds them
// is the one place that has their order.
type Args struct {
	Values []any
	names  []string
	naming bool
}

// Add appends an argument.
func (a *Args) Add(name string, value any) {
	a.Values = append(a.Values, value)
	if a.naming {
		a.names = append(a.names, name)
	}
}

// Names are the names of the arguments that add appends.
func Names(add func(*Args)) []string {
	a := &Args{naming: true}
	add(a)
	return a.names
}
