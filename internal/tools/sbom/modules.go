package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

// module is one that is linked into the program, or Go's own library.
type module struct {
	path, version, sum string

	licence string // its SPDX name
	texts   []text
}

type text struct {
	name string
	body []byte
}

// purl names the module as https://github.com/package-url/purl-spec does.
func (m module) purl() string {
	return "pkg:golang/" + m.path + "@" + strings.ReplaceAll(m.version, "+", "%2B")
}

// linked returns the modules of the program with their licences, which are read
// from the folders that it was built from.
func linked(info *debug.BuildInfo) ([]module, error) {
	list := []module{{path: "std", version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		list = append(list, module{path: d.Path, version: d.Version, sum: d.Sum})
	}
	dirs, err := folders(list[1:])
	if err != nil {
		return nil, err
	}
	for i := range list {
		if err := list[i].readLicence(dirs[list[i].path]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// folders says where the sources of the modules are; std is Go's own.
func folders(list []module) (map[string]string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	dirs := map[string]string{"std": strings.TrimSpace(string(root))}
	args := []string{"mod", "download", "-json"}
	for _, m := range list {
		args = append(args, m.path+"@"+m.version)
	}
	if len(list) == 0 {
		return dirs, nil
	}
	var errs bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w: %s", err, &errs)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var m struct{ Path, Dir string }
		if err := dec.Decode(&m); err != nil {
			return nil, fmt.Errorf("go mod download: %w", err)
		}
		dirs[m.Path] = m.Dir
	}
	return dirs, nil
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([-.].*)?$`)

func (m *module) readLicence(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("licence of %s: %w", m.path, err)
	}
	for _, e := range entries {
		if e.IsDir() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("licence of %s: %w", m.path, err)
		}
		m.texts = append(m.texts, text{e.Name(), body})
		if id := classify(string(body)); m.licence == "" {
			m.licence = id
		}
	}
	if m.licence == "" {
		return fmt.Errorf("%s %s: no licence file in %s that this tool knows: teach classify, or do not link it", m.path, m.version, dir)
	}
	return nil
}

// classify names the licence whose words are in a text; "" if it is none of those
// that may be linked into a program under Apache-2.0.
func classify(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	for _, l := range []struct {
		id    string
		words []string
	}{
		{"Apache-2.0", []string{"Apache License", "Version 2.0, January 2004"}},
		{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "Neither the name"}},
		{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "used to endorse or promote"}},
		{"BSD-2-Clause", []string{"Redistribution and use in source and binary forms"}},
		{"CC0-1.0", []string{"CC0 1.0 Universal"}},
		{"CC0-1.0", []string{"Affirmer", "overtly, fully, permanently, irrevocably and unconditionally waives"}},
		{"ISC", []string{"Permission to use, copy, modify, and", "for any purpose with or without fee is hereby granted"}},
		{"MIT", []string{"Permission is hereby granted, free of charge", "The above copyright notice"}},
	} {
		if !slices.ContainsFunc(l.words, func(w string) bool { return !strings.Contains(s, w) }) {
			return l.id
		}
	}
	return ""
}

// licences is the text of all of them, with the modules in the order of the list.
func licences(list []module) []byte {
	var b bytes.Buffer
	for _, m := range list {
		for _, t := range m.texts {
			line := strings.Repeat("=", 78)
			fmt.Fprintf(&b, "%s\n%s %s (%s): %s\n%s\n\n%s\n\n", line, m.path, m.version, m.licence, t.name, line, bytes.TrimSpace(t.body))
		}
	}
	return b.Bytes()
}
