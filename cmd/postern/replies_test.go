package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// docs/replies.md has every reply that the sources can give, and no other: its codes, and its
// text as far as it is written out there. What the page cuts short with … stands for one reply,
// or for as many as it says in parentheses, and for none that another text explains better.
func TestRepliesPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/replies.md")
	if err != nil {
		t.Fatal(err)
	}
	family := map[string]int{} // each text in the first cell of a row: how many replies it is or stands for
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\| ").FindAllStringSubmatch(string(page), -1) {
		for _, span := range regexp.MustCompile("`([^`]+)`(?: \\((\\d+)\\))?").FindAllStringSubmatch(row[1], -1) {
			if _, twice := family[span[1]]; twice {
				t.Errorf("docs/replies.md explains %q twice", span[1])
			}
			family[span[1]], _ = strconv.Atoi(cmp.Or(span[2], "1"))
		}
	}
	replies := repliesOfTheSources(t)
	whole, short := map[string]bool{}, map[string][]string{} // texts and replies that fit; what a text cut short stands for
	for reply := range replies {
		for text := range family {
			if hasPieces(text, reply) {
				whole[text], whole[reply] = true, true
			}
		}
	}
	for reply, at := range replies {
		if whole[reply] {
			continue
		}
		text := standsFor(reply, family, whole)
		if text == "" {
			t.Errorf("%s: docs/replies.md does not explain %q", at, reply)
		}
		short[text] = append(short[text], reply)
	}
	for text, many := range family {
		switch got := short[text]; {
		case whole[text] && many != 1:
			t.Errorf("docs/replies.md has %q of %d replies, and it is one", text, many)
		case !whole[text] && len(got) == 0:
			t.Errorf("docs/replies.md explains %q, which nothing says", text)
		case !whole[text] && len(got) != many:
			t.Errorf("docs/replies.md has %q of %d replies, and it stands for %d: %q", text, many, len(got), got)
		}
	}
	if len(replies) < 100 {
		t.Errorf("only %d replies were found", len(replies))
	}
}

// standsFor is the text, cut short, that stands for a reply: the longest, as "451 4.7.5 …" is
// what is left beside "451 4.7.5 …: TLS …".
func standsFor(reply string, family map[string]int, whole map[string]bool) (best string) {
	for text := range family {
		if !whole[text] && len(text) > len(best) && strings.Contains(text, "…") && hasPieces(reply, text) {
			best = text
		}
	}
	return best
}

// hasPieces reports whether text has the pieces of a reply, between which is anything, in order.
func hasPieces(text, reply string) bool {
	pieces := strings.Split(reply, "…")
	if !strings.HasPrefix(text, pieces[0]) || !strings.HasSuffix(text, pieces[len(pieces)-1]) {
		return false
	}
	for _, piece := range pieces {
		_, rest, ok := strings.Cut(text, piece)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// repliesOfTheSources maps the replies, "550 5.7.1 text" with … for what differs, to where
// they are made. What is only the end of one, as the fault of an address, has no code.
func repliesOfTheSources(t *testing.T) map[string]string {
	t.Helper()
	replies, known := map[string]string{}, map[string]string{}
	for _, dir := range []string{"policy", "relay/smtp", "relay/message", "relay/suppression", "relay/submission", "relay/queue", "relay/connect", "relay/delivery"} {
		files, err := filepath.Glob("../../" + dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		s := replySource{fset: token.NewFileSet(), functions: map[string]*ast.FuncDecl{}, values: map[string]ast.Expr{}, known: known}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(s.fset, file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			s.add(f)
		}
		s.makers = map[string]string{"fault": ""}  // the only one that is a type
		for found := -1; found != len(s.makers); { // a maker may be called by another
			found = len(s.makers)
			s.find(replies)
		}
		for name, v := range s.values {
			if words := literal(v); words != "" {
				known[filepath.Base(dir)+"."+name] = words
			}
		}
	}
	return replies
}

// replySource is one package, as far as replies are made there.
type replySource struct {
	fset      *token.FileSet
	all       []*ast.FuncDecl
	functions map[string]*ast.FuncDecl // those that are not methods
	values    map[string]ast.Expr      // of constants and variables of the package
	known     map[string]string        // texts of packages read before, as "connect.OfBudget"
	makers    map[string]string        // functions that make a reply of their only parameter: its codes
}

func (s *replySource) add(f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if s.all = append(s.all, d); d.Recv == nil {
				s.functions[d.Name.Name] = d
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
					for i, name := range v.Names {
						s.values[name.Name] = v.Values[i]
					}
				}
			}
		}
	}
}

// find adds the replies of the package, and the makers among its functions.
func (s *replySource) find(replies map[string]string) {
	look := func(in ast.Node, of *ast.FuncDecl) {
		ast.Inspect(in, func(n ast.Node) bool {
			codes, text := s.made(n)
			if text == nil {
				return true
			}
			if name, ok := text.(*ast.Ident); ok && of != nil && isParameter(of, name.Name) {
				s.makers[of.Name.Name] = codes
				return true
			}
			for _, words := range s.texts(text, of) {
				if reply := strings.TrimPrefix(codes+" "+words, " "); words != "" {
					replies[reply] = s.fset.Position(n.Pos()).String()
				}
			}
			return true
		})
	}
	for _, f := range s.all {
		look(f, f)
	}
	for name, v := range s.values {
		look(v, nil)
		// The faults of an address, which ParseMail and ParseRcpt put behind their own words.
		file := filepath.Base(s.fset.Position(v.Pos()).Filename)
		if call, ok := v.(*ast.CallExpr); ok && strings.HasPrefix(name, "err") && (file == "address.go" || file == "domain.go" || name == "errRoute") {
			replies[s.texts(call.Args[0], nil)[0]] = s.fset.Position(v.Pos()).String()
		}
	}
}

// made returns the codes and the text of a reply that n makes.
func (s *replySource) made(n ast.Node) (codes string, text ast.Expr) {
	switch n := n.(type) {
	case *ast.CallExpr:
		name := lastName(n.Fun)
		if codes, ok := s.makers[name]; ok && len(n.Args) == 1 {
			return codes, n.Args[0]
		}
		class := map[string]string{"OK": "2.", "Temporary": "4.", "Permanent": "5."}[name]
		switch {
		case class != "" && len(n.Args) == 4 && literal(n.Args[0]) != "":
			return literal(n.Args[0]) + " " + class + literal(n.Args[1]) + "." + literal(n.Args[2]), n.Args[3]
		case name == "Intermediate" && len(n.Args) == 2 && literal(n.Args[0]) != "":
			return literal(n.Args[0]), n.Args[1]
		}
	case *ast.CompositeLit:
		if lastName(n.Type) != "Reply" || len(n.Elts) != 2 {
			return "", nil
		}
		code, isCode := n.Elts[0].(*ast.KeyValueExpr)
		words, isText := n.Elts[1].(*ast.KeyValueExpr)
		if isCode && isText && literal(code.Value) != "" {
			return literal(code.Value), words.Value
		}
	}
	return "", nil
}

// texts are what e may be, with … for what is not written out.
func (s *replySource) texts(e ast.Expr, of *ast.FuncDecl) []string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return []string{literal(e)}
	case *ast.BinaryExpr:
		var all []string
		for _, left := range s.texts(e.X, of) {
			for _, right := range s.texts(e.Y, of) {
				all = append(all, left+right)
			}
		}
		return all
	case *ast.Ident:
		if v := s.values[e.Name]; v != nil {
			return s.texts(v, nil)
		}
		if of != nil && !isParameter(of, e.Name) {
			return s.assigned(e.Name, of)
		}
	case *ast.SelectorExpr:
		if from, ok := e.X.(*ast.Ident); ok && s.known[from.Name+"."+e.Sel.Name] != "" {
			return []string{s.known[from.Name+"."+e.Sel.Name]}
		}
	case *ast.CallExpr:
		return s.called(e, of)
	}
	return []string{"…"}
}

// called is texts of a call: fmt.Sprintf, Error of one of the package's errors, and its own
// functions.
func (s *replySource) called(e *ast.CallExpr, of *ast.FuncDecl) []string {
	name := lastName(e.Fun)
	switch {
	case name == "Sprintf":
		return []string{regexp.MustCompile(`%[a-z]`).ReplaceAllString(literal(e.Args[0]), "…")}
	case name == "New" && len(e.Args) == 1: // errors.New
		return s.texts(e.Args[0], of)
	case name == "Error":
		if v := s.values[lastName(e.Fun.(*ast.SelectorExpr).X)]; v != nil {
			return s.texts(v, nil)
		}
	}
	callee := s.functions[name]
	if _, own := e.Fun.(*ast.Ident); callee == nil || !own {
		return []string{"…"}
	}
	var all []string
	ast.Inspect(callee, func(n ast.Node) bool {
		if r, ok := n.(*ast.ReturnStmt); ok && len(r.Results) == 1 {
			all = append(all, s.texts(r.Results[0], callee)...)
		}
		return true
	})
	return all
}

// assigned is texts of a variable or constant of a function.
func (s *replySource) assigned(name string, of *ast.FuncDecl) []string {
	var all []string
	add := func(names, values []ast.Expr) {
		for i, n := range names {
			if lastName(n) == name && len(values) == len(names) {
				all = append(all, s.texts(values[i], of)...)
			}
		}
	}
	ast.Inspect(of, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE || n.Tok == token.ASSIGN {
				add(n.Lhs, n.Rhs)
			}
		case *ast.ValueSpec:
			for i, v := range n.Values {
				add([]ast.Expr{n.Names[i]}, []ast.Expr{v})
			}
		}
		return true
	})
	return all
}

func isParameter(f *ast.FuncDecl, name string) bool {
	for _, p := range f.Type.Params.List {
		for _, n := range p.Names {
			if n.Name == name {
				return true
			}
		}
	}
	return false
}

// lastName is the name that e is or ends in.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// literal is the value of a literal, "" of everything else.
func literal(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok {
		return ""
	}
	if s, err := strconv.Unquote(l.Value); err == nil {
		return s
	}
	return fmt.Sprint(l.Value)
}
