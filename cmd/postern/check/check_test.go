package check

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/admin/health"
)

var update = flag.Bool("update", false, "write the list of findings in docs/check.md anew")

const checkPage = "../../../docs/check.md"

// findingsPage is the list of findings as docs/check.md has it: by status, and without what
// to do, which 'postern check' prints with each.
func findingsPage() string {
	of := map[health.Status]string{}
	var well []string
	for _, k := range kindList() {
		if k.Status == health.OK {
			well = append(well, "`"+k.ID+"`")
			continue
		}
		of[k.Status] += wrapped("- `"+k.ID+"`: "+k.Means, "  ")
	}
	page := wrapped(strings.Join(well, ", ")+".", "")
	for _, s := range []health.Status{health.Failed, health.Warning, health.Info, health.Skipped} {
		page += "\n### `" + string(s) + "`: " + statusMeans[s] + "\n\n" + of[s]
	}
	return page
}

var statusMeans = map[health.Status]string{
	health.Failed:  "does not work, or is not safe",
	health.Warning: "works, but not as it should, or not for long",
	health.Info:    "worth knowing, nothing to do",
	health.Skipped: "not checked; another finding says why",
}

// wrapped is a paragraph in lines of at most 100 characters, those behind the first indented.
func wrapped(text, indent string) string {
	var b strings.Builder
	length := 0
	for i, word := range strings.Fields(text) {
		size := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case length+1+size > 100:
			b.WriteString("\n" + indent)
			length = len(indent)
		default:
			b.WriteString(" ")
			length++
		}
		b.WriteString(word)
		length += size
	}
	return b.String() + "\n"
}

//go:generate go test . -run TestCheckPageHasEveryFinding -update
func TestCheckPageHasEveryFinding(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(checkPage)
	if err != nil {
		t.Fatal(err)
	}
	const mark = "These are `ok`, as it should be:\n"
	before, list, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatalf("%s has no line %q", checkPage, mark)
	}
	if *update {
		if err := os.WriteFile(checkPage, []byte(before+mark+findingsPage()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if list != findingsPage() {
		t.Errorf("%s differs from the program; 'go generate ./cmd/postern/check' writes it anew", checkPage)
	}
}

// Every kind has a name of its own area, a meaning if it is not well, and something to do if it
// is bad.
func TestCheckKindsAreWhole(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, k := range kindList() {
		bad := k.Status == health.Warning || k.Status == health.Failed
		switch {
		case seen[k.ID]:
			t.Errorf("%s is there twice", k.ID)
		case k.Status == health.OK:
			if k.Means+k.Todo != "" { // the page has its name only
				t.Errorf("%s: %q, %q", k.ID, k.Means, k.Todo)
			}
		case !strings.HasSuffix(k.Means, "."), strings.Contains(k.Means+k.Todo, "|"), strings.HasSuffix(k.Todo, "."):
			t.Errorf("%s: %q, %q", k.ID, k.Means, k.Todo)
		case bad && k.Todo == "":
			t.Errorf("%s is %s, to do %q", k.ID, k.Status, k.Todo)
		}
		seen[k.ID] = true
	}
}

// What the code reports is in the list, and what is in the list is reported.
func TestCheckReportsItsKindsOnly(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, k := range slices.Concat(health.SpoolKinds(), health.CertificateKinds(), health.RenewalKinds()) { // by the judges there
		used[k.ID] = true
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		lists := kindLiterals(file)
		ast.Inspect(file, func(n ast.Node) bool {
			if lists[n] {
				return false
			}
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				text, _ := strconv.Unquote(lit.Value)
				if _, known := kinds()[text]; known {
					used[text] = true
				}
			}
			if id := reported(n); id != "" {
				if _, known := kinds()[id]; !known {
					t.Errorf("%s reports %s, which is not in the list", name, id)
				}
			}
			return true
		})
	}
	for _, k := range kindList() {
		if !used[k.ID] {
			t.Errorf("%s is in the list and never reported", k.ID)
		}
	}
}

// kindLiterals are the lists of kinds in a file.
func kindLiterals(file *ast.File) map[ast.Node]bool {
	found := map[ast.Node]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if array, ok := lit.Type.(*ast.ArrayType); ok {
			if name, ok := array.Elt.(*ast.Ident); ok && name.Name == "kind" {
				found[lit] = true
			}
		}
		return true
	})
	return found
}

// reported is the literal name in x.add("name", …), x.publish("name", …) or x.tell("name", …).
func reported(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return ""
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"add", "publish", "tell"}, method.Sel.Name) {
		return ""
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	id, _ := strconv.Unquote(lit.Value)
	if !strings.Contains(id, ".") {
		return "" // a table's row
	}
	return id
}

// Each kind of finding is planted by one of the tables, or by the test that is named.
func TestCheckFindsEveryKind(t *testing.T) {
	t.Parallel()
	planted := map[string]string{
		"config.missing": "TestCheckWithoutAConfiguration", "key.denied": "TestCheckJudgesTheKey", "port.privileged": "TestCheckKnowsPrivilegedPorts",
		"port.handed": "TestCheckKnowsSocketsOfTheServiceManager", "db.durable": "TestCheckJudgesTheServer", "db.durability": "TestCheckJudgesTheServer", "db.replica-missing": "TestCheckJudgesTheServer",
		"db.autovacuum": "TestCheckJudgesTheServer", "db.timeouts": "TestCheckJudgesTheServer", "db.slot": "TestCheckJudgesTheServer", "db.clear": "TestCheckJudgesTheWayToTheDatabase", "db.unverified": "TestCheckJudgesTheWayToTheDatabase",
		"db.replica": "TestCheckJudgesReplicas", "upstream.clear": "TestCheckJudgesUpstreamsInClear",
		"acme.no-address":  "TestCheckFindsNamesThatCannotBeValidated",
		"check.unfinished": "TestCheckEndsInTime", "check.skipped": "TestCheckSaysWhatItCannotLookAt",
	}
	for _, f := range slices.Concat(configFaults(), certificateFaults(), acmeFaults(), portFaults(), adminFaults(), databaseFaults(), accountFaults(), routeFaults(), keyFaults(), transportFaults(),
		upstreamFaults(), dnsFaults(), spfFaults(), dkimFaults(), mxFaults(), relayFaults(), openSecrets()["config"], openSecrets()["certificate"], openSecrets()["admin"]) {
		planted[f.id] = "a table"
	}
	for _, k := range kindList() {
		if planted[k.ID] == "" {
			t.Errorf("no test plants %s", k.ID)
		}
	}
}

func TestCheckSaysWhatItCannotLookAt(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.c.cfg.Database.URL = "postgres://" + closedPort(t) + "/x"
	found := p.look(t.Context(), "database", "account", "route", "upstream", "spf")
	wantFinding(t, found, "db.unreachable", "refused")
	skipped := 0
	for _, f := range found {
		if f.ID == "check.skipped" {
			skipped++
		}
	}
	if skipped != 4 {
		t.Errorf("%d areas were skipped, want 4:\n%s", skipped, told(found))
	}
}
