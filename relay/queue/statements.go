package queue

import (
	"embed"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

// texts are the statements of the .sql files beside this one. Their arguments are numbered
// once, when the package is loaded, in the order in which they are given.
var texts = pg.Load(files)
