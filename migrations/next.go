//go:build !postern_next

package migrations

import "embed"

// nextFiles are the migrations of a version after this one, of which there are none
// but in the test of an upgrade, see next_build.go.
var nextFiles embed.FS
