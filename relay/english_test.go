package relay_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// opening is where a sentence begins: at a line's start, in a list or a cell of a table, or
// behind the end of another sentence; either may be in bold.
const opening = `(?:^|[.:;!?|][*_)]*\s+)(?:[-*>]\s+)?[*_(]*`

// odd are patterns of a translated English. A question, or a title, may begin with Who or What.
var odd = map[string]*regexp.Regexp{
	`say "immediately", "concurrently" or "together"`: regexp.MustCompile(`(?i)\bat\s+once\b`),
	`say "is not a"`:                        regexp.MustCompile(`(?i)\b(?:that|it|this|which)\s+is\s+no\s+([a-z]+)`),
	`say "usage error"`:                     regexp.MustCompile(`(?i)\bused\s+wrongly\b`),
	`begin with the subject, not with Who`:  regexp.MustCompile(`(?m)` + opening + `((?:Who(?:ever)?|Whatever)\s[^.?!|]*(?:[.?!|]|$))`),
	`begin with the subject, not with What`: regexp.MustCompile(`(?m)` + opening + `(What\s[^.?!|]*\b(?:is|are|was|were)\b[^.?!|]*(?:[.?!|]|$)|What\s(?:[^.?!|]|\.\w)*\.(?:\s|$))`),
}

// oddities returns the matches of odd in a text that are not good English after all.
func oddities(text string) map[string]string {
	found := map[string]string{}
	for advice, pattern := range odd {
		for _, m := range pattern.FindAllStringSubmatch(text, -1) {
			word := m[len(m)-1]
			switch {
			case word == "longer", word == "more", word == "other", strings.HasSuffix(word, "?"):
			default:
				found[advice] = strings.Join(strings.Fields(m[0]), " ")
			}
		}
	}
	return found
}

func TestOddities(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"it returns at\nonce": 1, "at oncer": 0, "It is no longer valid": 0, "which is no word": 1, "2 used wrongly": 1,
		"Fine. Who owns may send.": 1, "Whoever owns may send.": 1, "Fine. Whatever node asks, waits.": 1, "to whoever owns": 0, "Who may send?": 0, "WHO WHAT": 0, "- What is held stays.": 1, "**Who owns** may send.": 1, "*Lines.* What ended is text.": 1, "| a | What is held |": 1, "What to do now": 0, "What the tools need (a.go). More.": 1,
		"sees what is held": 0,
	} {
		if got := oddities(text); len(got) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// Docs, comments and the strings of programs have none of the patterns.
func TestPlainEnglish(t *testing.T) {
	t.Parallel()
	seen := 0
	report := func(where, text string) {
		seen++
		for advice, match := range oddities(text) {
			t.Errorf("%s: %q: %s", where, match, advice)
		}
	}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != ".." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			for _, text := range strings.Split(outsideCode(read(t, path)), "\n\n") {
				report(path, text)
			}
		case filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go"):
			goTexts(t, path, report)
		case commented.MatchString(path):
			report(path, comments.ReplaceAllString(read(t, path), ""))
		}
		return nil
	})
	if err != nil || seen < 3000 {
		t.Fatalf("%d texts were read: %v", seen, err)
	}
}

// commented are the files that are not Go, and have comments.
var commented = regexp.MustCompile(`(?:\.(?:sql|toml|yml|sh)|/Makefile|/Dockerfile|configs/(?:debian|systemd)/[a-z.-]+)$`)

// comments are what marks the lines of comments in these files, and their breaks.
var comments = regexp.MustCompile(`(?m)^[ \t]*(?:--|#) ?`)

// outsideCode leaves blocks of code out: programs and quoted replies may say what they like.
func outsideCode(page string) string {
	return regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(page, "")
}

// goTexts reports the comments and the string literals of a file.
func goTexts(t *testing.T, path string, report func(where, text string)) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return
	}
	for _, comment := range f.Comments {
		report(set.Position(comment.Pos()).String(), comment.Text())
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING {
			if text, err := strconv.Unquote(s.Value); err == nil {
				report(set.Position(s.Pos()).String(), text)
			}
		}
		return true
	})
}
