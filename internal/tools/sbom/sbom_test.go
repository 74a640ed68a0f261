package main

import (
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The document names what the program was linked from, no more and no less, and
// LICENSES has the words of each.
func TestDocumentIsTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "postern")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", program, "postern/cmd/postern")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := write(program, "v1.2.0", dir); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")}
	for _, d := range info.Deps {
		want = append(want, "pkg:golang/"+d.Path+"@"+d.Version)
	}
	text, err := os.ReadFile(filepath.Join(dir, "sbom.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	licences, err := os.ReadFile(filepath.Join(dir, "LICENSES"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range doc.Components {
		got = append(got, c.PURL)
		if !strings.Contains(string(licences), "\n"+c.Name+" "+c.Version+" ("+c.Licenses[0].License.ID+"): ") {
			t.Errorf("LICENSES has nothing of %s", c.Name)
		}
		if c.Name != "std" && len(c.Hashes) != 1 {
			t.Errorf("%s has no hash", c.Name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(got) < 10 {
		t.Errorf("the document has\n%s\nand the program\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if doc.Format != "CycloneDX" || doc.Metadata.Component.Version != "v1.2.0" || !slices.Equal(doc.Dependencies[0].Depends, purls(doc.Components)) {
		t.Errorf("the document begins %.300s", text)
	}
	if !strings.Contains(string(licences), "Redistributions in binary form must reproduce") || !strings.Contains(string(licences), "TERMS AND CONDITIONS FOR USE") {
		t.Error("LICENSES lacks the words of the licences")
	}
}

func purls(list []component) (refs []string) {
	for _, c := range list {
		refs = append(refs, c.PURL)
	}
	return refs
}

// A module whose licence is not known stops the build: somebody has to look at it.
func TestUnknownLicence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := module{path: "example.com/m", version: "v1.0.0"}
	if err := m.readLicence(dir); err == nil {
		t.Error("no licence is none")
	}
	if err := os.WriteFile(filepath.Join(dir, "LICENSE"), []byte("GNU AFFERO GENERAL PUBLIC LICENSE"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.readLicence(dir); err == nil || !strings.Contains(err.Error(), "example.com/m v1.0.0") {
		t.Errorf("a licence that may not be linked: %v", err)
	}
}
