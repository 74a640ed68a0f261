package queue

import (
	"embed"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

// texts are the statements of the .sql files beside this one. Their named arguments
// are numbered once, when the package is loaded.
var texts = pg.Load(files)
