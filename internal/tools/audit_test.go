package tools_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func run(t *testing.T, name string, args ...string) (out string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = "../.."
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// The release of Go that everything is built with is one, named in each place that chooses.
func TestL2Toolchain(t *testing.T) {
	t.Parallel()
	chosen := map[string]string{}
	for _, file := range []string{"go.mod", "internal/tools/containers/go.mod"} {
		out, err := run(t, "go", "mod", "edit", "-json", file)
		var mod struct{ Go, Toolchain string }
		if err != nil || json.Unmarshal([]byte(out), &mod) != nil {
			t.Fatalf("%s: %v: %s", file, err, out)
		}
		if mod.Toolchain == "" {
			mod.Toolchain = "go" + mod.Go // go mod tidy removes a toolchain line that is the same
		}
		chosen[file] = mod.Toolchain
	}
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`golang:([0-9.]+)-`).FindSubmatch(text)
	if m == nil {
		t.Fatal("Dockerfile names no release of Go")
	}
	chosen["Dockerfile"] = "go" + string(m[1])
	for file, version := range chosen {
		if version != chosen["go.mod"] || strings.Count(version, ".") != 2 {
			t.Errorf("%s: %s; go.mod: %s", file, version, chosen["go.mod"])
		}
	}
}

// database is a folder like the database of Go's vulnerabilities. Its one advisory is about
// a package of the standard library in all releases before fixed; "" is all there will be.
func database(t *testing.T, fixed string) string {
	t.Helper()
	dir := t.TempDir()
	events := []map[string]string{{"introduced": "0"}}
	if fixed != "" {
		events = append(events, map[string]string{"fixed": fixed})
	}
	const id, when = "GO-2026-99999", "2026-01-01T00:00:00Z"
	for name, content := range map[string]any{
		"index/db.json":      map[string]string{"modified": when},
		"index/modules.json": []any{map[string]any{"path": "stdlib", "vulns": []any{map[string]string{"id": id, "modified": when, "fixed": fixed}}}},
		"ID/" + id + ".json": map[string]any{
			"schema_version": "1.3.1", "id": id, "modified": when, "published": when, "summary": "an example",
			"affected": []any{map[string]any{
				"package":            map[string]string{"name": "stdlib", "ecosystem": "Go"},
				"ranges":             []any{map[string]any{"type": "SEMVER", "events": events}},
				"ecosystem_specific": map[string]any{"imports": []any{map[string]string{"path": "bufio"}}},
			}},
			"database_specific": map[string]string{"url": "https://example.com/" + id},
		},
	} {
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The audit is red by an advisory about what is called, and green when this release of Go
// has the fix.
func TestL2Audit(t *testing.T) {
	t.Parallel()
	if out, err := run(t, "make", "audit", "PKG=./relay/smtp", "DB="+database(t, "")); err == nil || !strings.Contains(out, "GO-2026-99999") {
		t.Errorf("an advisory that hits: %v: %s", err, out)
	}
	if out, err := run(t, "make", "audit", "PKG=./relay/smtp", "DB="+database(t, "1.26.0")); err != nil {
		t.Errorf("an advisory that does not: %v: %s", err, out)
	}
	out, err := run(t, "make", "audit")
	if err != nil || !strings.Contains(out, "No database of vulnerabilities was asked") ||
		!regexp.MustCompile(`(?m)^github.com/jackc/pgx/v5 v5`).MatchString(out) || !regexp.MustCompile(`(?m)^go1\.`).MatchString(out) {
		t.Errorf("without a database: %v: %s", err, out)
	}
}

// A folder that is not the database, or lacks a part of it, has no advisories for govulncheck
// either: the audit must not be green by it.
func TestL2AuditWantsTheDatabase(t *testing.T) {
	t.Parallel()
	folders := map[string]string{"nothing is there": filepath.Join(t.TempDir(), "nothing"), "of something else": "/etc"}
	for _, part := range []string{"index/db.json", "index/modules.json", "ID"} {
		dir := database(t, "1.26.0")
		if err := os.RemoveAll(filepath.Join(dir, part)); err != nil {
			t.Fatal(err)
		}
		folders["no "+part] = dir
	}
	empty := database(t, "1.26.0")
	if err := os.WriteFile(filepath.Join(empty, "index/modules.json"), []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	folders["no modules"] = empty
	for what, dir := range folders {
		out, err := run(t, "make", "audit", "DB="+dir)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, dir+" is not a copy of Go's vulnerability database") {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
}
