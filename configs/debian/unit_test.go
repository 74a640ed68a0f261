package debian_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"postern/internal/machine"
	"postern/internal/peers"
)

const units = "../../configs/systemd"

// mostExposed is how much systemd-analyze may find, of 10.
const mostExposed = 2.0

// systemd-analyze rates what a broken-into Postern could reach.
func TestUnitIsHardened(t *testing.T) {
	t.Parallel()
	out := analyze(t, "security", "--offline=true", "--no-pager", filepath.Join(units, "postern.service"))
	m := regexp.MustCompile(`exposure level for postern\.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze does not rate the unit:\n%s", out)
	}
	rate, err := strconv.ParseFloat(m[1], 64)
	if err != nil || rate > mostExposed {
		t.Errorf("the exposure level is %s, and may be %.1f:\n%s", m[1], mostExposed, out)
	}
}

// systemd understands every line: what it does not know it ignores, hardening too.
func TestUnitsAreUnderstood(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for name, text := range unitFiles(t) {
		// Where it is installed there is the program.
		text = strings.ReplaceAll(text, "/usr/bin/postern", "/bin/true")
		text = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(files[len(files)-1], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for complaint := range strings.Lines(analyze(t, append([]string{"verify", "--man=no"}, files...)...)) {
		if strings.Contains(complaint, "postern") || strings.Contains(complaint, dir) {
			t.Error(complaint)
		}
	}
}

func unitFiles(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(units)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(units, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(text)
	}
	if len(files) < 3 {
		t.Fatalf("the units are not where they were: %d files", len(files))
	}
	return files
}

// analyze returns what systemd-analyze says, to either output.
func analyze(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), machine.Patience)
	defer cancel()
	cmd := peers.Require(t, "systemd-analyze").Command(ctx, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, &out)
	}
	return out.String()
}
