package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"postern/internal/machine"
)

// files are what the engines' parsers read in the project's files.
type files struct {
	Dockerfile []instruction
	Compose    project
}

type instruction struct {
	Line  int
	Name  string
	Flags []string
	Args  []string
	JSON  bool
}

type project struct {
	Services map[string]service
	Configs  map[string]struct{ Content string }
}

type service struct {
	Image       string
	Command     []string
	Entrypoint  []string
	Environment map[string]string
	DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
	Configs     []struct{ Source, Target string }
	Volumes     []struct{ Type, Source, Target string }
	ReadOnly    bool `json:"read_only"`
	Tmpfs       []string
	CapDrop     []string `json:"cap_drop"`
	Ports       []struct{ Target int }
}

func TestMain(m *testing.M) {
	machine.Inside(map[string]func() error{"up": up})
	os.Exit(m.Run())
}

// readFiles parses both files, as JSON for a process that cannot.
func readFiles(t *testing.T) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), machine.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "-C", "../../internal/tools/containers", "run", ".", "../../../Dockerfile", "../../../docker-compose.yml")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &errs)
	}
	return out
}

// exact is an image of one release. PostgreSQL's have two numbers.
var exact = regexp.MustCompile(`^(postgres:\d+\.\d+|[a-z/]+:v?\d+\.\d+\.\d+)(-[a-z]+)?(@sha256:[0-9a-f]{64})?$`)

// What the files must say beyond what the parsers ask for.
func TestFiles(t *testing.T) {
	t.Parallel()
	var f files
	if err := json.Unmarshal(readFiles(t), &f); err != nil {
		t.Fatal(err)
	}
	last := map[string]string{}
	for _, i := range f.Dockerfile {
		if i.Name == "FROM" {
			clear(last) // another stage
		}
		last[i.Name] = strings.Join(i.Args, " ")
	}
	if last["FROM"] != "scratch" || last["USER"] == "" || strings.HasPrefix(last["USER"], "0") || strings.HasPrefix(last["USER"], "root") {
		t.Errorf("the image is from %s and runs as %q", last["FROM"], last["USER"])
	}
	if last["HEALTHCHECK"] != "CMD /usr/bin/postern healthcheck" {
		t.Errorf("the health check is %q", last["HEALTHCHECK"])
	}
	if base := f.Dockerfile[0].Args[0]; !exact.MatchString(base) {
		t.Errorf("the image is built in %s, which may be another one tomorrow", base)
	}
	ours := 0
	for name, s := range f.Compose.Services {
		if s.Image != "postern" {
			if !exact.MatchString(s.Image) {
				t.Errorf("%s is %s, which may be another one tomorrow", name, s.Image)
			}
			continue
		}
		ours++
		if !s.ReadOnly || len(s.CapDrop) != 1 || s.CapDrop[0] != "ALL" {
			t.Errorf("%s: read-only %v, without capabilities %v", name, s.ReadOnly, s.CapDrop)
		}
	}
	if ours != 5 {
		t.Errorf("%d services of the image", ours)
	}
}

// The image is built, and all services come up as they depend on each other, twice, as
// after a restart; then a message sent to the published port is captured.
func TestUp(t *testing.T) {
	t.Parallel()
	parsed := t.TempDir() + "/files.json"
	if err := os.WriteFile(parsed, readFiles(t), 0o600); err != nil {
		t.Fatal(err)
	}
	// The machine has no network; what the build downloads is there before.
	ctx, cancel := context.WithTimeout(t.Context(), machine.Patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "mod", "download").CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v: %s", err, out)
	}
	out := machine.Run(t, "up", "FILES="+parsed)
	if !strings.HasSuffix(out, "\nit is up\n") {
		t.Fatal(out)
	}
	t.Log(out)
}
