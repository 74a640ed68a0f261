package peers

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The programs that [VerifyDKIM] knows.
const (
	OpenDKIM = "opendkim"
	Dkimpy   = "dkimpy"
	MailDKIM = "Mail::DKIM" // knows no Ed25519
)

// DKIMVerifiers lists the programs that [VerifyDKIM] knows.
func DKIMVerifiers() []string { return []string{OpenDKIM, Dkimpy, MailDKIM} }

// Signature is what a program says of a DKIM signature.
type Signature struct {
	Algorithm string // as its a= tag has it
	Domain    string
	Valid     bool
}

//go:embed verify_dkimpy.py
var dkimpyScript string

//go:embed verify_mail_dkim.pl
var mailDKIMScript string

const verifyTimeout = 10 * time.Minute

// VerifyDKIM has a foreign program verify the messages in files, with the TXT records of keys by their
// names, and returns what it says of the signatures of each, from the first field on.
func VerifyDKIM(t testing.TB, verifier string, records map[string]string, files []string) [][]Signature {
	t.Helper()
	c := requireCache(t)
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	if verifier == OpenDKIM {
		return c.openDKIM(ctx, t, records, files)
	}
	program, script, modules := "perl", mailDKIMScript, ""
	args := []string{"-e"}
	if verifier == Dkimpy {
		// The machine's other versions of Python have no use for the package's modules.
		program, script, args = "python3", dkimpyScript, []string{"-c"}
		modules = "PYTHONPATH=" + filepath.Join(c.root(), "usr/lib/python3/dist-packages")
	}
	p, err := c.debian(program)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(struct {
		Records map[string]string
		Files   []string
	}{records, files})
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.Command(ctx, append(args, script)...)
	cmd.Env = append(cmd.Env, modules)
	cmd.Stdin = bytes.NewReader(settings)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", verifier, err, &complaint)
	}
	var results [][]Signature
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(files) {
		t.Fatalf("%s: %d results, %v: %s", verifier, len(results), err, out)
	}
	return results
}

// debian is a program of the cache or, as Debian installs it, of the machine.
func (c Cache) debian(name string) (*Program, error) {
	for _, path := range []string{filepath.Join(c.root(), "usr/bin", name), "/usr/bin/" + name} {
		if exists(path) {
			return &Program{path: path, env: c.environ(path)}, nil
		}
	}
	return nil, fmt.Errorf("%s is neither in the cache nor in /usr/bin", name)
}

var (
	// A message has one such line, which has all its signatures.
	openDKIMResults = regexp.MustCompile(`(?s)### INSHEADER: idx=\d+ hname='Authentication-Results' hvalue='(.*?)'\n`)
	openDKIMResult  = regexp.MustCompile(`dkim=(\w+)[^;]*? header\.d=(\S+)[^;]*? header\.a=(\S+)`)
)

// openDKIM runs its filter over a part of the files after the other.
func (c Cache) openDKIM(ctx context.Context, t testing.TB, records map[string]string, files []string) (results [][]Signature) {
	t.Helper()
	dir := t.TempDir()
	keys, config := filepath.Join(dir, "keys"), filepath.Join(dir, "opendkim.conf")
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(records)) {
		fmt.Fprintf(&text, "%s %s\n", name, records[name])
	}
	for file, text := range map[string]string{keys: text.String(), config: "Mode v\nSyslog no\nTestPublicKeys " + keys + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := c.Program("opendkim")
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(files, 50) {
		out, err := p.Command(ctx, "-x", config, "-v", "-v", "-t", strings.Join(part, ",")).Output()
		found := openDKIMResults.FindAllSubmatch(out, -1)
		if len(found) != len(part) {
			t.Fatalf("opendkim: %d results of %d messages, %v: %s", len(found), len(part), err, out)
		}
		for _, m := range found {
			var list []Signature
			for _, r := range openDKIMResult.FindAllSubmatch(m[1], -1) {
				list = append(list, Signature{Algorithm: string(r[3]), Domain: string(r[2]), Valid: string(r[1]) == "pass"})
			}
			results = append(results, list)
		}
	}
	return results
}
