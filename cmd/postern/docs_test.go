package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern/cmd/postern/config"
)

// A block is a fenced block of a Markdown file.
type block struct {
	file     string
	line     int    // of its first line of text
	language string // behind the fence
	name     string // of the file that it is, the second word behind the fence
	text     string
}

// blocksOf returns the fenced blocks of a Markdown file in order.
func blocksOf(t *testing.T, file string) []block {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []block
	var open *block
	for i, line := range strings.Split(string(text), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			words := append(strings.Fields(info), "", "")
			open = &block{file: file, line: i + 2, language: words[0], name: words[1]}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the block does not end", file, open.line)
	}
	return blocks
}

// firstLine is how tables of tests name a block.
func (b block) firstLine() string {
	line, _, _ := strings.Cut(b.text, "\n")
	return line
}

// documents are all Markdown files that people read.
func documents(t *testing.T) []string {
	t.Helper()
	files := []string{"../../README.md"}
	err := filepath.WalkDir("../../docs", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, ".md") {
			files = append(files, name)
		}
		return err
	})
	if err != nil || len(files) < 10 {
		t.Fatalf("%d documents: %v", len(files), err)
	}
	return files
}

// Every postern command in a block of any document is one that exists: its verb, its
// flags, and how many arguments it takes.
func TestDocsCommandsExist(t *testing.T) {
	t.Parallel()
	found := 0
	for _, file := range documents(t) {
		for _, b := range blocksOf(t, file) {
			script := b.text
			switch b.language {
			case "sh":
			case "console":
				script = typed(b.text)
			default:
				continue
			}
			for _, words := range simpleCommands(script) {
				args, ok := posternArgs(words)
				if !ok {
					continue
				}
				found++
				if err := parses(args); err != nil {
					t.Errorf("%s:%d: postern %s: %v", file, b.line, strings.Join(args, " "), err)
				}
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d commands were found", found)
	}
}

// And so is each one within a line of text, as far as it is written out there.
func TestDocsNameCommands(t *testing.T) {
	t.Parallel()
	span := regexp.MustCompile("`postern ([^`]+)`")
	found := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range span.FindAllStringSubmatch(string(text), -1) {
			found++
			words := strings.Fields(m[1])
			cmd, _, err := (&app{}).root().Find(slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "…" }))
			if err != nil || cmd.Name() == "postern" {
				t.Errorf("%s: `postern %s`: no such command", file, m[1])
				continue
			}
			for _, word := range words {
				flag, _, _ := strings.Cut(strings.Trim(word, "[]"), "=")
				if name, ok := strings.CutPrefix(flag, "--"); ok && cmd.Flag(name) == nil && name != "help" {
					t.Errorf("%s: `postern %s`: no flag %s", file, m[1], flag)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands were found", found)
	}
}

// typed is what is typed in a console session.
func typed(session string) string {
	var script strings.Builder
	for line := range strings.Lines(session) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			script.WriteString(command)
		}
	}
	return script.String()
}

// parses says whether the command line has a verb, flags and arguments that exist.
// Nothing is run.
func parses(args []string) error {
	cmd, rest, err := (&app{}).root().Find(args)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if help, err := cmd.Flags().GetBool("help"); err == nil && help {
		return nil
	}
	if cmd.HasSubCommands() && cmd.HasParent() {
		return cmd.RunE(cmd, cmd.Flags().Args()) // a noun says which verbs there are
	}
	return errorOf(cmd)
}

func errorOf(cmd *cobra.Command) error {
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Deprecated != "" {
			err = usagef("--%s is deprecated", f.Name)
		}
	})
	return err
}

// posternArgs are the arguments when a simple command of a shell runs postern: by
// itself, through sudo, or in a container.
func posternArgs(words []string) (args []string, ok bool) {
	for len(words) > 0 && regexp.MustCompile(`^[A-Za-z_]+=`).MatchString(words[0]) {
		words = words[1:]
	}
	if len(words) > 0 && words[0] == "sudo" {
		words = words[1:]
		for len(words) > 1 && words[0] == "-u" {
			words = words[2:]
		}
	}
	if len(words) > 4 && slices.Equal(words[:3], []string{"docker", "compose", "exec"}) {
		words = words[4:]
	}
	if len(words) == 0 || path.Base(words[0]) != "postern" {
		return nil, false
	}
	return words[1:], true
}

// simpleCommands splits a script into its simple commands, each a list of words
// without redirections. It knows as much of the shell as the documents use.
func simpleCommands(script string) [][]string {
	var commands [][]string
	var words []string
	var word strings.Builder
	inWord, redirect := false, false
	endWord := func() {
		if inWord && !redirect {
			words = append(words, word.String())
		}
		if inWord {
			redirect = false
		}
		word.Reset()
		inWord = false
	}
	endCommand := func() {
		endWord()
		redirect = false
		if len(words) > 0 {
			commands = append(commands, words)
			words = nil
		}
	}
	for i := 0; i < len(script); i++ {
		switch c := script[i]; c {
		case '\\':
			i++
			if i < len(script) && script[i] != '\n' {
				word.WriteByte(script[i])
				inWord = true
			}
		case '\'', '"':
			end := strings.IndexByte(script[i+1:], c)
			if end < 0 {
				return append(commands, []string{"postern", "unfinished quote"})
			}
			word.WriteString(script[i+1 : i+1+end])
			inWord = true
			i += 1 + end
		case ' ', '\t':
			endWord()
		case '<', '>':
			endWord()
			redirect = true
		case '\n', ';', '|', '&', '(', ')':
			endCommand()
		case '#':
			if inWord {
				word.WriteByte(c)
				continue
			}
			if end := strings.IndexByte(script[i:], '\n'); end >= 0 {
				i += end - 1
			} else {
				i = len(script)
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	endCommand()
	return commands
}

func TestSimpleCommands(t *testing.T) {
	t.Parallel()
	got := simpleCommands("a 'b c' <in >out # no\necho \"x y\" | sudo -u postern postern \\\n  user add && (./postern x) # end")
	want := [][]string{{"a", "b c"}, {"echo", "x y"}, {"sudo", "-u", "postern", "postern", "user", "add"}, {"./postern", "x"}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%q", got)
	}
	for _, args := range [][]string{{"queue", "shap"}, {"queue", "shape", "--limt", "3"}, {"trace"}, {"nothing"}, {"route", "add"}, {"queue"}} {
		if parses(args) == nil {
			t.Errorf("%q parses", args)
		}
	}
	if err := parses([]string{"route", "add", "--via", "mx"}); err != nil {
		t.Error(err)
	}
}

// Every piece of configuration in the documents is one that the program takes.
func TestDocsConfig(t *testing.T) {
	t.Parallel()
	found := 0
	for _, file := range documents(t) {
		for _, b := range blocksOf(t, file) {
			if b.language != "toml" {
				continue
			}
			found++
			if err := takesConfig(t, b.text); err != nil {
				t.Errorf("%s:%d: %v", file, b.line, err)
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d were found", found)
	}
}

// takesConfig returns what is wrong with a configuration.
func takesConfig(t *testing.T, text string) error {
	t.Helper()
	name := filepath.Join(t.TempDir(), "postern.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Read(name)
	return err
}

// A test that a document names exists.
func TestDocsNameTests(t *testing.T) {
	t.Parallel()
	exist := testsOfTheTree(t)
	named := regexp.MustCompile("`(Test[A-Z0-9]\\w*|Benchmark[A-Z]\\w*|Fuzz[A-Z]\\w*)`")
	found := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			found++
			if !exist[m[1]] {
				t.Errorf("%s names %s, which does not exist", file, m[1])
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d tests are named", found)
	}
}

// testsOfTheTree are the names of all tests of this repository.
func testsOfTheTree(t *testing.T) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
	tests := map[string]bool{}
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(name)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// Each reply that docs/clients.md explains is one that the program gives: the code and
// each piece of its text that stands there stand in the sources.
func TestDocsReplies(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	for _, pattern := range []string{"../../relay/*/*.go", "../../policy/*.go", "../../auth/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	text, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([45])(\\d\\d) ([45])\\.(\\d+)\\.(\\d+) ([^`]+)` \\|")
	rows := row.FindAllStringSubmatch(string(text), -1)
	if len(rows) < 10 {
		t.Errorf("only %d replies were found", len(rows))
	}
	for _, m := range rows {
		class := map[string]string{"4": "Temporary", "5": "Permanent"}[m[1]]
		call := class + "(" + m[1] + m[2] + ", " + m[4] + ", " + m[5] + ","
		wanted := []string{call}
		for piece := range strings.SplitSeq(m[6], "…") {
			if piece = strings.Trim(piece, " (<>"); len(piece) > 2 {
				wanted = append(wanted, piece)
			}
		}
		ambiguous := m[1]+m[2]+" "+m[3]+"."+m[4]+"."+m[5] == "554 5.6.0"
		for _, w := range wanted {
			if !strings.Contains(sources.String(), w) && !(ambiguous && w == call) {
				t.Errorf("%s: %q is nowhere in the sources", m[0], w)
			}
		}
	}
}

// followed says for each page with commands which test runs them, or why none does.
var followed = map[string]string{
	"README.md":         "TestReadmeSetUp",
	"docs/accounts.md":  "TestAdminSessions",
	"docs/alerts.md":    "TestAlertsPage",
	"docs/benchmark.md": "no: it measures for minutes, and tells how to measure other servers; cmd/smtpbench has tests",
	"docs/clients.md":   "TestClientsGuide",
	"docs/install.md":   "TestInstallGuide", // and TestInstall, with the package
	"docs/operate.md":   "TestOperateGuide",

	"docs/certificates.md": "TestCertificatesPage",
	"docs/check.md":        "TestCheckPageCommandsRun",
	"docs/dkim.md":         "TestDKIMPage",
	"docs/duplicates.md":   "TestDuplicatesPage",
	"docs/events.md":       "TestEventsPage",
	"docs/metrics.md":      "TestMetrics",

	"docs/coming-from-postfix-or-exim.md": "TestComingFromPage",
	"docs/upstreams.md":                   "TestUpstreamsPage",
	"docs/oauth.md":                       "TestOAuthPage",
	"docs/transport.md":                   "TestTransportPage",
	"docs/suppression.md":                 "TestSuppressionPage",
	"docs/webhooks.md":                    "TestWebhooksPage",
}

// No page has commands that nobody has thought of running.
func TestDocsAreFollowed(t *testing.T) {
	t.Parallel()
	exist := testsOfTheTree(t)
	pages := map[string]bool{}
	for _, file := range documents(t) {
		page := strings.TrimPrefix(file, "../../")
		if !slices.ContainsFunc(blocksOf(t, file), func(b block) bool { return b.language == "sh" || b.language == "console" }) {
			continue
		}
		pages[page] = true
		if by := followed[page]; by == "" {
			t.Errorf("%s has commands: run them in a test, and name it in this table", page)
		} else if !strings.HasPrefix(by, "no: ") && !exist[by] {
			t.Errorf("%s is to be followed by %s, which does not exist", page, by)
		}
	}
	for page := range followed {
		if !pages[page] {
			t.Errorf("%s has no commands", page)
		}
	}
}

// Every link within the documents leads to a file that is there, and to a heading in it.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	found := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(withoutBlocks(string(text)), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			found++
			name, heading, _ := strings.Cut(m[1], "#")
			target := file
			if name != "" {
				target = filepath.Join(filepath.Dir(file), name)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s leads nowhere", file, m[1])
				continue
			}
			if heading != "" && !slices.Contains(headings(t, target), heading) {
				t.Errorf("%s: there is no heading %q in %s", file, heading, target)
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d links were found", found)
	}
}

// withoutBlocks is Markdown without its fenced blocks.
func withoutBlocks(text string) string {
	var out strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			inside = !inside
			continue
		}
		if !inside {
			out.WriteString(line)
		}
	}
	return out.String()
}

// headings are the anchors of a Markdown file, as the forges make them.
func headings(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var anchors []string
	for line := range strings.Lines(withoutBlocks(string(text))) {
		title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		title = strings.ToLower(strings.TrimSpace(title))
		title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")
		anchors = append(anchors, strings.ReplaceAll(title, " ", "-"))
	}
	return anchors
}
