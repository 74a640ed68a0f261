package demo

import (
	"os"
	"path/filepath"
	"testing"
)

// Where PostgreSQL's user may not enter, only the database is elsewhere, under a name
// that nobody can guess.
func TestH2DemoInAClosedFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "closed", "demo")
	if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	var found [2]folders
	for i := range found {
		var err error
		if found[i], err = findFolders(dir, true); err != nil {
			t.Fatal(err)
		}
		defer found[i].remove()
		if found[i].dir != dir {
			t.Errorf("the demo's folder is %s, want %s", found[i].dir, dir)
		}
	}
	if root := os.Geteuid() == 0; root == (found[0].postgres == found[1].postgres) {
		t.Errorf("root: %v, the databases are in %s and %s", root, found[0].postgres, found[1].postgres)
	}
}
