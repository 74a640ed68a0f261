// Command postern is the relay's one binary: the server, the admin's shell and
// the demo. Each file here is one noun; run wires them and is what tests call.
// Its packages: config reads the file, database leads to PostgreSQL, node is one
// running relay, check looks at a set-up, demo tries the whole on one machine,
// explain and trial say what would become of a message and of an upstream, account shows
// users, smarthost upstreams and story messages, handout is for mail clients, secret reads
// passwords, man writes the manual, and screen makes text for people.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program. It returns the exit status: 0 success, 1 failure, 2
// usage error. The end of ctx asks a server to drain and stop.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return newApp(environ, stdin, stdout, stderr).execute(ctx, args)
}

func newApp(environ []string, stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{source: config.Source{Env: envMap(environ)}, stdin: stdin, stdout: screen.WriterTo(stdout), stderr: screen.WriterTo(stderr), completionTime: completionTime}
}
