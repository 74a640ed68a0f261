package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/internal/rig"
)

// TestMain lets the test binary be the program: scripts call "postern", and other
// tests start it as a process of its own by its environment.
func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_TEST_AS_PROGRAM") == "1" {
		endWithParent()
		lowerDescriptors()
		os.Exit(program())
	}
	rig.Prepare()
	testscript.Main(m, map[string]func(){"postern": func() { os.Exit(program()) }})
}

func program() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := newApp(os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	a.completionTime = patience
	return a.execute(ctx, os.Args[1:])
}
