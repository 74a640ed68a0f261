//go:build postern_next

package migrations

import (
	"embed"
	"io/fs"
)

//go:embed next/*.sql
var nextFolder embed.FS

// nextFiles make of this tree a later version of the program, for the test of a rolling
// upgrade (relay/upgrade_test.go), which builds it so.
var nextFiles, _ = fs.Sub(nextFolder, "next")
