package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postern/cmd/postern/database"
	"postern/internal/owned"
	"postern/internal/pgserver"
)

// folders are where a demo has what it writes.
type folders struct {
	dir      string // the configuration and the certificate
	postgres string // the database
	made     string // the folder of a random name that has one or both, to be removed; "" for none
	why      error  // it has dir too
}

// findFolders makes the demo's folder, with the database in it, if nobody else can
// have prepared what lies there. Where that is not so, and the folder was not chosen, all
// is in one that is made anew. So is the database alone where the user that runs
// PostgreSQL for root may not enter.
func findFolders(dir string, chosen bool) (f folders, err error) {
	f.dir, f.why = ownFolder(dir)
	var fault *owned.Fault
	if f.why != nil && (chosen || !errors.As(f.why, &fault)) {
		return f, fmt.Errorf("folder of the demo: %w", f.why)
	}
	f.postgres = filepath.Join(f.dir, "postgres")
	if f.why == nil && pgserver.Reachable(f.postgres) == nil {
		return f, nil
	}
	if f.made, err = os.MkdirTemp("/var/tmp", "postern-demo-"); err != nil {
		return f, err
	}
	if f.why != nil {
		f.dir = f.made
	}
	f.postgres = filepath.Join(f.made, "postgres")
	return f, os.Chmod(f.made, 0o711) // PostgreSQL's user passes through it
}

// ownFolder makes a folder when it is missing and returns its real path, if it is ours.
func ownFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	above := filepath.Dir(dir)
	for {
		if _, err = owned.Path(above); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		above = filepath.Dir(above)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return "", err
	}
	root, err := owned.Open(dir)
	if err != nil {
		return "", err
	}
	return root.Name(), root.Close()
}

// startDatabase starts the demo's server.
func (f *folders) startDatabase(ctx context.Context) (*pgserver.Server, error) {
	if f.made != "" {
		return pgserver.Start(ctx, pgserver.Config{Dir: f.postgres, Temporary: true})
	}
	return database.AwaitPrivate(ctx, f.postgres)
}

// remove removes what was made.
func (f *folders) remove() {
	if f.made != "" {
		_ = os.RemoveAll(f.made) // a leftover of a random name does no harm
	}
}
