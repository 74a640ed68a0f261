package main

import (
	"fmt"

	"postern/cmd/postern/screen"
)

// ifMissingUsage is of the flag that lets a set-up run again and again.
const ifMissingUsage = "change nothing, and succeed, if it already exists"

// thereAlready says that --if-missing found what it would have added.
func (a *app) thereAlready(what, name string) error {
	_, err := fmt.Fprintf(a.stdout, "%s %s already exists; nothing changed\n", what, screen.Printable(name))
	return err
}
