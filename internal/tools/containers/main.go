// Command containers prints what container engines read in the project's
// Dockerfile and docker-compose.yml, as JSON: the files are read by the engines'
// own parsers, so that a mistake in them is found without an engine. It is a
// module of its own to keep those parsers out of the relay's dependencies.
//
// Usage: containers DOCKERFILE COMPOSEFILE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: containers DOCKERFILE COMPOSEFILE")
		os.Exit(2)
	}
	dockerfile, err1 := readDockerfile(os.Args[1])
	project, err2 := readCompose(os.Args[2])
	err := errors.Join(err1, err2)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(map[string]any{"dockerfile": dockerfile, "compose": project})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		os.Exit(1)
	}
}

// An instruction is one of a Dockerfile.
type instruction struct {
	Line  int      `json:"line"`
	Name  string   `json:"name"`  // in lower case
	Flags []string `json:"flags"` // as in --from=build
	Args  []string `json:"args"`
	JSON  bool     `json:"json"` // a list of words, and no line for a shell
}

func readDockerfile(path string) ([]instruction, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	result, err := parser.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, w := range result.Warnings {
		return nil, fmt.Errorf("%s: %s", path, w.Short)
	}
	var list []instruction
	for _, node := range result.AST.Children {
		i := instruction{Line: node.StartLine, Name: node.Value, Flags: node.Flags, JSON: node.Attributes["json"]}
		for n := node.Next; n != nil; n = n.Next {
			i.Args = append(i.Args, n.Value)
		}
		list = append(list, i)
	}
	return list, nil
}

func readCompose(path string) (*types.Project, error) {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithWorkingDirectory(filepath.Dir(path)), cli.WithEnv([]string{}))
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return project, nil
}
