package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/demo"
	"postern/internal/pgtest"
)

// codeBlocks returns the fenced blocks of one language in a Markdown file.
func codeBlocks(t *testing.T, file, language string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, part := range strings.Split(string(text), "\n```"+language+"\n")[1:] {
		block, _, ok := strings.Cut(part, "\n```")
		if !ok {
			t.Fatalf("%s: a block does not end", file)
		}
		blocks = append(blocks, block+"\n")
	}
	return blocks
}

// programAs is a command that runs this test binary as postern.
func programAs(ctx context.Context, dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "POSTERN_TEST_AS_PROGRAM=1"), env...)
	return cmd
}

// The set-up of the README, word for word but for the addresses of the machine:
// the commands run, and the configuration makes a server that becomes ready.
func TestReadmeSetUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	url := pgtest.New(t).URL
	if err := demo.WriteCertificate(dir); err != nil {
		t.Fatal(err)
	}
	var script string
	for _, block := range codeBlocks(t, "../../README.md", "sh") {
		if strings.Contains(block, "./postern migrate") {
			script = block
		}
	}
	if !strings.Contains(script, "./postern serve --config postern.toml") {
		t.Fatalf("the set-up is not where it was:\n%s", script)
	}
	config := strings.NewReplacer(":587", "127.0.0.1:0", ":465", "127.0.0.1:0").Replace(codeBlocks(t, "../../README.md", "toml")[0])
	if err := os.WriteFile(filepath.Join(dir, "postern.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "postern")); err != nil {
		t.Fatal(err)
	}
	lines := []string{"set -e"}
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "go build") || strings.HasPrefix(line, "export POSTERN_DATABASE_URL") || strings.HasPrefix(line, "./postern serve") {
			continue
		}
		lines = append(lines, line)
	}
	env := []string{"POSTERN_TEST_AS_PROGRAM=1", "POSTERN_DATABASE_URL=" + url, "POSTERN_SECRET_KEY_FILE=" + filepath.Join(dir, "secret.key")}
	sh := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(lines, "\n"))
	sh.Dir, sh.Env = dir, append(os.Environ(), env...)
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("the README's commands: %v\n%s", err, out)
	}
	serveUntilReady(t, dir, env)
}

// serveUntilReady starts the server, waits until it says that it is ready, asks it
// to stop and wants status 0.
func serveUntilReady(t *testing.T, dir string, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := programAs(ctx, dir, env, "serve", "--config", "postern.toml")
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	ready := false
	for scan := bufio.NewScanner(logs); scan.Scan(); {
		said.WriteString(scan.Text() + "\n")
		if strings.Contains(scan.Text(), "postern is ready") {
			ready = true
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
	if err := cmd.Wait(); err != nil || !ready {
		t.Fatalf("ready: %v, end: %v\n%s", ready, err, said.String())
	}
}
