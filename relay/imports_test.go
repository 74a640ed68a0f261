package relay_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "postern/"

// arrows says which of our packages each one may import. They point down the
// list of the layout: submission, delivery and bounce meet in the queue's rows
// and never import each other. A package that is not here, or an import that is
// not here, is a decision to be made in this table.
var arrows = map[string]string{
	"auth":                "auth/throttle auth/audit policy/quota internal/pg internal/share internal/panics",
	"auth/audit":          "internal/pg",
	"auth/throttle":       "internal/pg",
	"policy":              "auth policy/quota relay/smtp internal/units",
	"policy/quota":        "internal/pg internal/units",
	"relay":               "",
	"relay/smtp":          "",
	"relay/message":       "relay/smtp",
	"relay/maillog":       "relay/smtp internal/share",
	"relay/queue":         "policy/quota relay/queue/content relay/queue/insert relay/queue/reserve relay/smtp relay/suppression internal/panics internal/pg internal/await internal/boot",
	"relay/queue/desk":    "relay/queue relay/queue/content relay/queue/insert relay/smtp auth/audit internal/pg",
	"relay/queue/content": "internal/pg",
	"relay/queue/insert":  "policy/quota relay/queue/content relay/smtp internal/pg",
	"relay/queue/reserve": "internal/await internal/pg",
	"relay/suppression":   "auth/audit internal/pg internal/refusal relay/smtp",
	"relay/alert":         "admin/health internal/pg relay/dkim relay/queue relay/smtp",
	"relay/refused":       "internal/pg relay/smtp",
	"relay/anomaly":       "relay/queue relay/queue/desk auth/audit internal/panics internal/pg",
	"relay/feed":          "relay/smtp internal/panics internal/pg",
	"relay/webhook":       "relay/feed relay/seal auth/audit internal/await internal/panics internal/pg internal/refusal internal/special",
	"relay/retention":     "relay/feed relay/queue relay/queue/content internal/panics internal/pg",
	"relay/submission":    "relay/smtp relay/message relay/dkim relay/maillog auth policy policy/quota relay/queue relay/queue/content relay/queue/insert relay/queue/reserve relay/suppression internal/share internal/panics internal/await",
	"relay/seal":          "internal/owned",
	"relay/keyring":       "internal/units relay/dkim/keys relay/seal relay/acme relay/upstream relay/upstream/oauth relay/webhook auth/audit internal/pg internal/refusal",
	"relay/certificate":   "internal/owned",
	"relay/acme":          "relay/certificate relay/seal auth/audit internal/pg internal/panics internal/await internal/crowd",
	"relay/route":         "relay/smtp relay/upstream auth/audit internal/pg internal/refusal",
	"relay/upstream":      "auth policy relay/dkim relay/smtp relay/seal relay/upstream/oauth auth/audit internal/pg internal/refusal relay/upstream/budget",
	"relay/connect":       "internal/special relay/smtp relay/upstream relay/upstream/breaker relay/upstream/budget relay/upstream/oauth internal/panics internal/share relay/resolver relay/transport",
	"relay/resolver":      "internal/panics",
	"relay/delivery":      "relay/connect relay/smtp relay/message relay/queue relay/queue/content relay/maillog relay/route relay/upstream relay/upstream/breaker relay/upstream/oauth internal/share internal/panics internal/await relay/upstream/budget relay/dkim relay/suppression",
	"relay/bounce":        "relay/smtp relay/queue relay/queue/content relay/maillog relay/dkim",
	"admin":               "admin/health auth relay/smtp relay/queue relay/queue/desk relay/queue/reserve relay/maillog relay/upstream relay/upstream/breaker relay/upstream/oauth internal/owned internal/crowd internal/units relay/upstream/budget relay/dkim/keys",
	"relay/transport":     "relay/dkim relay/maillog relay/resolver auth/audit internal/await internal/panics internal/pg internal/refusal internal/share",
	"admin/health":        "relay/queue/reserve internal/units",
	"migrations":          "",
	"configs/debian":      "",
	"configs/image":       "",

	"relay/dkim/keys":        "relay/dkim relay/maillog relay/resolver relay/seal auth/audit internal/panics internal/pg internal/refusal",
	"relay/dkim":             "",
	"relay/upstream/oauth":   "relay/seal internal/await internal/panics internal/pg",
	"relay/upstream/breaker": "relay/upstream internal/panics internal/pg",
	"relay/upstream/budget":  "policy/quota internal/boot internal/pg internal/refusal",

	"cmd/postern":           "*",
	"cmd/postern/config":    "cmd/postern/screen admin auth internal/owned internal/units relay/acme relay/connect relay/delivery relay/dkim relay/queue relay/retention relay/seal relay/smtp relay/submission relay/upstream relay/upstream/oauth relay/resolver relay/webhook",
	"cmd/postern/check":     "cmd/postern/config cmd/postern/database cmd/postern/screen admin admin/health auth internal/owned internal/units migrations relay/acme relay/certificate relay/connect relay/keyring relay/queue/desk relay/route relay/seal relay/smtp relay/upstream relay/upstream/breaker relay/upstream/oauth internal/pgserver policy/quota relay/upstream/budget relay/dkim relay/dkim/keys relay/resolver relay/transport cmd/postern/receiver cmd/postern/trust relay/feed relay/webhook internal/panics",
	"cmd/postern/node":      "cmd/postern/config cmd/postern/database cmd/postern/screen admin admin/health auth internal/await internal/panics internal/pg migrations policy/quota relay/acme relay/anomaly relay/bounce relay/certificate relay/connect relay/delivery relay/keyring relay/maillog relay/queue relay/queue/desk relay/retention relay/route relay/seal relay/submission relay/upstream relay/upstream/breaker relay/upstream/oauth relay/upstream/budget relay/dkim/keys relay/resolver relay/dkim relay/transport relay/feed relay/refused relay/suppression relay/webhook relay/alert cmd/postern/check",
	"cmd/postern/screen":    "",
	"cmd/postern/receiver":  "relay/dkim relay/dkim/keys relay/resolver internal/panics",
	"cmd/postern/account":   "auth internal/refusal internal/units cmd/postern/handout cmd/postern/screen cmd/postern/story relay/queue relay/queue/desk",
	"cmd/postern/smarthost": "cmd/postern/account cmd/postern/explain cmd/postern/screen cmd/postern/secret internal/refusal internal/units relay/dkim relay/upstream relay/upstream/breaker relay/upstream/budget relay/upstream/oauth",
	"cmd/postern/trust":     "cmd/postern/screen internal/units relay/connect relay/dkim/keys relay/resolver relay/transport",
	"cmd/postern/database":  "cmd/postern/config cmd/postern/screen internal/pg internal/pgserver migrations",
	"cmd/postern/demo":      "auth cmd/postern/config cmd/postern/database cmd/postern/node cmd/postern/screen internal/capture internal/owned internal/pgserver migrations relay/certificate relay/queue relay/route relay/smtp relay/upstream internal/refusal",
	"cmd/postern/explain":   "auth cmd/postern/config cmd/postern/screen internal/refusal internal/units policy policy/quota relay/route relay/seal relay/smtp relay/submission relay/upstream relay/upstream/breaker relay/upstream/budget cmd/postern/receiver cmd/postern/trust relay/connect relay/dkim relay/dkim/keys relay/suppression",
	"cmd/postern/events":    "auth cmd/postern/screen internal/pg internal/refusal internal/units relay/feed",
	"cmd/postern/webhook":   "auth cmd/postern/config cmd/postern/events cmd/postern/screen internal/refusal internal/units relay/feed relay/seal relay/webhook",
	"cmd/postern/handout":   "cmd/postern/config cmd/postern/screen relay/smtp",
	"cmd/postern/man":       "internal/owned",
	"cmd/postern/secret":    "internal/owned internal/refusal",
	"cmd/postern/story":     "cmd/postern/screen internal/units relay/queue relay/queue/desk",
	"cmd/postern/trial":     "cmd/postern/check cmd/postern/config cmd/postern/screen relay/connect relay/smtp relay/upstream relay/upstream/oauth",
	"cmd/smtpbench":         "internal/owned internal/peers internal/pgserver internal/serve",

	"cmd/postern/alerts":     "relay/alert",
	"cmd/postern/recipients": "auth cmd/postern/screen internal/refusal internal/units relay/suppression",

	"internal/pg":           "internal/panics",
	"internal/await":        "",
	"internal/boot":         "",
	"internal/serve":        "",
	"internal/units":        "",
	"internal/crowd":        "",
	"internal/owned":        "",
	"internal/refusal":      "",
	"internal/share":        "",
	"internal/special":      "",
	"internal/panics":       "",
	"internal/pgserver":     "internal/owned",
	"internal/pgtest":       "internal/pgserver migrations",
	"internal/queuetest":    "relay/queue relay/queue/content relay/smtp internal/pgtest",
	"internal/smtptest":     "internal/serve",
	"internal/dnstest":      "internal/serve relay/resolver",
	"internal/acmetest":     "internal/serve",
	"internal/dkimtest":     "relay/dkim internal/peers",
	"internal/logtest":      "",
	"internal/leaktest":     "",
	"internal/longtest":     "",
	"internal/oauthtest":    "",
	"internal/capture":      "relay/smtp internal/serve",
	"internal/peers":        "internal/serve",
	"internal/rig":          "internal/pgserver internal/pgtest internal/serve internal/smtptest",
	"internal/machine":      "",
	"internal/tools":        "",
	"internal/tools/gotest": "",
	"internal/tools/sbom":   "",
	"internal/tools/steady": "",
}

// never says what a package must not import from elsewhere, so that it stays
// about what it is about. As for the go command, ... is whatever follows.
var never = map[string]string{
	"relay/smtp":        "github.com/jackc/... database/sql log log/slog net/smtp net/mail net/textproto github.com/emersion/...",
	"relay/message":     "github.com/jackc/... database/sql log log/slog net",
	"relay/queue":       "net/smtp net/mail net/http github.com/emersion/...",
	"relay/submission":  "github.com/jackc/... database/sql net/smtp net/mail net/textproto",
	"relay/connect":     "github.com/jackc/... database/sql log log/slog net/smtp net/mail net/textproto",
	"relay/delivery":    "github.com/jackc/... database/sql net/smtp net/mail net/textproto",
	"relay/bounce":      "github.com/jackc/... database/sql net net/smtp net/mail",
	"relay/seal":        "github.com/jackc/... database/sql log log/slog net",
	"relay/certificate": "github.com/jackc/... database/sql net/http",
	"policy":            "github.com/jackc/... database/sql log log/slog net",
	"policy/quota":      "net",
	"migrations":        "net log log/slog",
}

// only says which one of our packages may import what.
var only = map[string]string{
	"github.com/caddyserver/...": "relay/acme",
	"github.com/mholt/...":       "relay/acme",
	"golang.org/x/oauth2/...":    "relay/upstream/oauth",
}

// notLinked must be in no program: it is under another licence, or for tests.
const notLinked = "github.com/letsencrypt/pebble/..."

// noCalls says which functions and types of package net a package must not use
// although it has a reason to import net.
var noCalls = map[string]string{
	"relay/smtp":  "Lookup Resolve DefaultResolver", // names are for its callers to resolve
	"relay/queue": "Dial Listen Lookup Resolve DefaultResolver",
}

// tested begins the names of packages that any test may import without an arrow. Product code
// needs an arrow for them, as for every other package.
const tested = "internal/"

type pkg struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", module+"...")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &complaint)
	}
	var list []pkg
	for lines := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := lines.Decode(&p)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestArrows(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, p := range packages(t) {
		known[p.name()] = true
		for _, problem := range slices.Concat(wrongArrows(p), unusedArrows(p)) {
			t.Error(problem)
		}
	}
	for name := range arrows {
		if !known[name] {
			t.Errorf("%s is in the table, and no package", name)
		}
	}
}

func wrongArrows(p pkg) (problems []string) {
	allowed, known := arrows[p.name()]
	if !known {
		return []string{p.name() + " is not in the table of packages"}
	}
	if allowed == "*" {
		return nil
	}
	for _, to := range ours(p.Imports) {
		if !slices.Contains(strings.Fields(allowed), to) {
			problems = append(problems, fmt.Sprintf("%s must not import %s", p.name(), to))
		}
	}
	if p.name() == "relay" { // the tests of the whole
		return problems
	}
	for _, to := range ours(slices.Concat(p.TestImports, p.XTestImports)) {
		if to != p.name() && !strings.HasPrefix(to, tested) && !slices.Contains(strings.Fields(allowed), to) {
			problems = append(problems, fmt.Sprintf("the tests of %s must not import %s", p.name(), to))
		}
	}
	return problems
}

// unusedArrows are those that the table allows and nothing needs.
func unusedArrows(p pkg) (problems []string) {
	used := ours(slices.Concat(p.Imports, p.TestImports, p.XTestImports))
	for to := range strings.FieldsSeq(strings.TrimPrefix(arrows[p.name()], "*")) {
		if !slices.Contains(used, to) {
			problems = append(problems, fmt.Sprintf("%s may import %s and does not", p.name(), to))
		}
	}
	return problems
}

// ours are the imports of our own packages, by their names in the table.
func ours(imports []string) (names []string) {
	for _, path := range imports {
		if name, ok := strings.CutPrefix(path, module); ok {
			names = append(names, name)
		}
	}
	return names
}

func TestLeavesStayLeaves(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, problem := range leaks(p) {
			t.Error(problem)
		}
		for _, problem := range wrongCalls(t, p) {
			t.Error(problem)
		}
	}
}

func leaks(p pkg) (problems []string) {
	for _, path := range p.Imports {
		banned := strings.Fields(never[p.name()])
		for which, owner := range only {
			if p.name() != owner {
				banned = append(banned, which)
			}
		}
		if slices.ContainsFunc(banned, func(which string) bool { return is(path, which) }) {
			problems = append(problems, fmt.Sprintf("%s must not import %s", p.name(), path))
		}
	}
	return problems
}

// is reports whether path is which or, when that ends in ..., begins with it.
func is(path, which string) bool {
	below, tree := strings.CutSuffix(which, "...")
	return path == which || tree && strings.HasPrefix(path, below)
}

// TestProgramsLinkNoTestAuthority looks at all that the programs are made of.
func TestProgramsLinkNoTestAuthority(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", module+"cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := strings.Fields(string(out))
	if !slices.Contains(linked, module+"relay/acme") {
		t.Fatal("the programs are not made of what they were thought to be")
	}
	for _, path := range linked {
		if strings.HasPrefix(path, strings.TrimSuffix(notLinked, "...")) {
			t.Errorf("a program links %s", path)
		}
	}
}

func wrongCalls(t *testing.T, p pkg) (problems []string) {
	t.Helper()
	banned := strings.Fields(noCalls[p.name()])
	if len(banned) == 0 {
		return nil
	}
	files := token.NewFileSet()
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range usesOfNet(file, banned) {
			problems = append(problems, fmt.Sprintf("%s: %s must not use this", files.Position(at), p.name()))
		}
	}
	return problems
}

// usesOfNet finds net.X where X begins with one of the names.
func usesOfNet(file *ast.File, names []string) (found []token.Pos) {
	ast.Inspect(file, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		from, ok := selector.X.(*ast.Ident)
		if !ok || from.Name != "net" {
			return true
		}
		for _, name := range names {
			if strings.HasPrefix(selector.Sel.Name, name) {
				found = append(found, selector.Pos())
			}
		}
		return true
	})
	return found
}

// TestTheRulesCanFail gives each rule something that breaks it.
func TestTheRulesCanFail(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		pkg  pkg
		want string
	}{
		{"up", pkg{ImportPath: module + "relay/delivery", Imports: []string{module + "relay/submission"}},
			"relay/delivery must not import relay/submission"},
		{"by its tests", pkg{ImportPath: module + "relay/bounce", XTestImports: []string{module + "relay/bounce", module + "internal/pgtest", module + "relay/delivery"}},
			"the tests of relay/bounce must not import relay/delivery"},
		{"test code in the product", pkg{ImportPath: module + "auth", Imports: []string{module + "internal/pgtest"}},
			"auth must not import internal/pgtest"},
		{"unused", pkg{ImportPath: module + "internal/pgserver"}, "internal/pgserver may import internal/owned and does not"},
		{"unknown", pkg{ImportPath: module + "util"}, "util is not in the table of packages"},
		{"leak", pkg{ImportPath: module + "relay/smtp", Imports: []string{"bufio", "log/slog"}},
			"relay/smtp must not import log/slog"},
		{"leak of a whole module", pkg{ImportPath: module + "relay/delivery", Imports: []string{"github.com/jackc/pgx/v5/pgxpool"}},
			"relay/delivery must not import github.com/jackc/pgx/v5/pgxpool"},
		{"another's library", pkg{ImportPath: module + "cmd/postern", Imports: []string{"github.com/caddyserver/certmagic"}},
			"cmd/postern must not import github.com/caddyserver/certmagic"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := slices.Concat(wrongArrows(test.pkg), leaks(test.pkg))
			if test.name == "unused" {
				got = unusedArrows(test.pkg)
			}
			if len(got) != 1 || got[0] != test.want {
				t.Errorf("problems %q, want %q", got, test.want)
			}
		})
	}
}

func TestUsesOfNetAreFound(t *testing.T) {
	t.Parallel()
	const source = "package p\nvar _ = net.LookupHost\nvar _ net.Conn\nvar _ = x.LookupHost\n"
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	if found := usesOfNet(file, []string{"Lookup"}); len(found) != 1 {
		t.Errorf("found %d uses, want 1", len(found))
	}
}
