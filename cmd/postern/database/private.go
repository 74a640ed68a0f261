package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/internal/pgserver"
)

// ErrNone says that no database is configured.
var ErrNone = errors.New("no database: give --database-url, set POSTERN_DATABASE_URL, or set [database] url or private in the configuration file")

// With calls do with the URL of the database that is configured. A private server that is
// not running is started for the time of the call.
func With(ctx context.Context, cfg config.Database, do func(ctx context.Context, url string) error) error {
	if cfg.Private == "" {
		if cfg.URL == "" {
			return ErrNone
		}
		return do(ctx, cfg.URL)
	}
	url, stop, err := privateDatabase(ctx, cfg.Private)
	if err != nil {
		return err
	}
	defer stop()
	return do(ctx, url)
}

// privateDatabase returns the URL of the server in dir, starting it unless
// another process of ours runs it already. stop ends what was started.
func privateDatabase(ctx context.Context, dir string) (url string, stop func(), err error) {
	if url, ok := pgserver.Running(dir); ok { // a relay's: its lock would be waited for
		return url, func() {}, nil
	}
	server, err := startPrivate(ctx, dir)
	if errors.Is(err, pgserver.ErrInUse) {
		// Another command may be starting or stopping it at this moment.
		return runningDatabase(ctx, dir, err)
	}
	if err != nil {
		return "", nil, err
	}
	return server.URL(), func() { _ = server.Stop() }, nil
}

func startPrivate(ctx context.Context, dir string) (*pgserver.Server, error) {
	return pgserver.Start(ctx, pgserver.Config{Dir: dir}) // its errors name the folder
}

// tellWait says on the error output why nothing happens.
func tellWait(dir string) {
	fmt.Fprintf(os.Stderr, "postern: waiting for the process that uses the private database in %s\n", screen.Printable(dir))
}

// AwaitPrivate starts the server in dir for a process that stays up. A command that
// was started just before has the folder for a moment.
func AwaitPrivate(ctx context.Context, dir string) (*pgserver.Server, error) {
	_, told := pgserver.Running(dir)
	if told {
		tellWait(dir)
	}
	server, err := startPrivate(ctx, dir)
	for until := time.Now().Add(ConnectTime); errors.Is(err, pgserver.ErrInUse) && time.Now().Before(until); {
		if !told {
			told = true
			tellWait(dir)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
			server, err = startPrivate(ctx, dir)
		}
	}
	if errors.Is(err, pgserver.ErrInUse) {
		err = fmt.Errorf("%w: stop it, or give this node a folder of its own; nodes that share a database need [database] url", err)
	}
	return server, err
}

// runningDatabase waits until the process that has dir runs a server that is ready.
func runningDatabase(ctx context.Context, dir string, inUse error) (url string, stop func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, ConnectTime)
	defer cancel()
	for told := false; ; {
		if url, ok := pgserver.Running(dir); ok {
			return url, func() {}, nil
		}
		if !told {
			told = true
			tellWait(dir)
		}
		select {
		case <-ctx.Done():
			return "", nil, inUse
		case <-time.After(100 * time.Millisecond):
		}
	}
}
