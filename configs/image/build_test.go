package image_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An image is a folder with what the Dockerfile says of it.
type image struct {
	root       string
	user       string
	workdir    string
	env        []string
	entrypoint []string
	cmd        []string
	health     []string
}

// A stage is one FROM of a Dockerfile while it is built. The machine is the image of the
// first: it has what the Go image has. A stage from scratch has a folder of its own.
type stage struct {
	image
	name string
	args []string
}

// built does what the instructions say and returns the last stage's image.
func built(list []instruction, context string, args map[string]string) (*image, error) {
	var stages []*stage
	for _, i := range list {
		if i.Name == "FROM" {
			s, err := begin(i)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i.Line, err)
			}
			stages = append(stages, s)
			continue
		}
		if err := stages[len(stages)-1].do(i, stages, context, args); err != nil {
			return nil, fmt.Errorf("line %d: %w", i.Line, err)
		}
	}
	return &stages[len(stages)-1].image, nil
}

func begin(i instruction) (*stage, error) {
	s := &stage{image: image{workdir: "/"}}
	if len(i.Args) == 3 && i.Args[1] == "AS" {
		s.name = i.Args[2]
	}
	switch {
	case strings.HasPrefix(i.Args[0], "golang:"):
		s.root = "/"
	case i.Args[0] == "scratch":
		s.root = "/run/image"
		return s, os.Mkdir(s.root, 0o755)
	default:
		return nil, fmt.Errorf("what is in %s?", i.Args[0])
	}
	return s, nil
}

func (s *stage) do(i instruction, stages []*stage, context string, args map[string]string) error {
	switch i.Name {
	case "WORKDIR":
		s.workdir = i.Args[0]
		return os.MkdirAll(filepath.Join(s.root, s.workdir), 0o755)
	case "ARG":
		name, value, _ := strings.Cut(i.Args[0], "=")
		if given, ok := args[name]; ok {
			value = given
		}
		s.args = append(s.args, name+"="+value)
	case "ENV":
		s.env = append(s.env, i.Args[0]+"="+i.Args[1])
	case "RUN":
		if s.root != "/" {
			return fmt.Errorf("RUN where there is no shell")
		}
		cmd := exec.Command("/bin/sh", "-c", i.Args[0])
		cmd.Dir, cmd.Env = s.workdir, append(append(os.Environ(), s.env...), s.args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", i.Args[0], err, out)
		}
	case "COPY":
		return s.copy(i, stages, context)
	case "USER":
		s.user = i.Args[0]
	case "ENTRYPOINT":
		s.entrypoint = i.Args
	case "CMD":
		s.cmd = i.Args
	case "HEALTHCHECK":
		s.health = i.Args[1:]
	case "LABEL", "EXPOSE", "STOPSIGNAL":
	default:
		return fmt.Errorf("what is %s?", i.Name)
	}
	if slices.Contains([]string{"ENTRYPOINT", "CMD", "HEALTHCHECK"}, i.Name) && !i.JSON {
		return fmt.Errorf("%s needs a shell, which is not there", i.Name)
	}
	return nil
}

// copy copies from the context, or from another stage, with the owner that is asked for.
func (s *stage) copy(i instruction, stages []*stage, context string) error {
	from, owner := "", "0:0"
	for _, flag := range i.Flags {
		switch key, value, _ := strings.Cut(flag, "="); key {
		case "--from":
			from = value
		case "--chown":
			owner = value
		default:
			return fmt.Errorf("what is %s?", flag)
		}
	}
	to := filepath.Join(s.root, i.Args[len(i.Args)-1])
	if !filepath.IsAbs(i.Args[len(i.Args)-1]) {
		to = filepath.Join(s.root, s.workdir, i.Args[len(i.Args)-1])
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var sources []string
	for _, arg := range i.Args[:len(i.Args)-1] {
		switch {
		case from != "":
			n := slices.IndexFunc(stages, func(s *stage) bool { return s.name == from })
			if n < 0 {
				return fmt.Errorf("there is no stage %s", from)
			}
			sources = append(sources, filepath.Join(stages[n].root, arg)+"/.")
		case arg == ".":
			list, err := contextFiles(context)
			if err != nil {
				return err
			}
			sources = append(sources, list...)
		default:
			sources = append(sources, filepath.Join(context, arg))
		}
	}
	if out, err := exec.Command("cp", append([]string{"-a", "-t", to}, sources...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := exec.Command("chown", "-R", owner, to).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// contextFiles are what is in the context and not in .dockerignore.
func contextFiles(context string) (list []string, err error) {
	ignored, err := os.ReadFile(filepath.Join(context, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(context)
	for _, e := range entries {
		if !slices.Contains(strings.Fields(string(ignored)), e.Name()) {
			list = append(list, filepath.Join(context, e.Name()))
		}
	}
	return list, err
}

// ids are the numbers of USER.
func (i *image) ids() (uid, gid int, err error) {
	u, g, _ := strings.Cut(i.user, ":")
	if uid, err = strconv.Atoi(u); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(g)
	return uid, gid, err
}
