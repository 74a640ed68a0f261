// Command sbom writes what a built program consists of, read from the program
// itself: sbom.cdx.json, a CycloneDX document of its modules, and LICENSES, the
// licence texts of all of them, as their authors ask of those who pass copies on.
//
// Usage: sbom [-version V] [-out FOLDER] PROGRAM
package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	version := flag.String("version", "", "version of the program")
	out := flag.String("out", ".", "folder to write into")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: sbom [-version V] [-out FOLDER] PROGRAM")
		os.Exit(2)
	}
	if err := write(flag.Arg(0), *version, *out); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(program, version, out string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read %s: %w", program, err)
	}
	modules, err := linked(info)
	if err != nil {
		return err
	}
	document, err := json.MarshalIndent(cycloneDX(info, version, modules), "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(out, "sbom.cdx.json"), append(document, '\n'), 0o644),
		os.WriteFile(filepath.Join(out, "LICENSES"), licences(modules), 0o644))
}
