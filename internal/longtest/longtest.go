// Package longtest says whether tests may take minutes.
package longtest

import "os"

// Run reports that they may: POSTERN_LONG=1.
func Run() bool { return os.Getenv("POSTERN_LONG") == "1" }
