package feed

import (
	"embed"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

// texts are the statements of the .sql files, by the name of the Go file that runs them.
var texts = pg.Load(files)
