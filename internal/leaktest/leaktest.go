// Package leaktest fails a package's tests when they leave goroutines behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines that are on their way out may take: goleak by itself
// gives them half a second, which a busy machine may need for other things.
const patience = time.Minute

// Main is a TestMain that looks for goroutines once all tests have passed.
func Main(m *testing.M) {
	status := m.Run()
	if status == 0 {
		if err := left(); err != nil {
			fmt.Fprintf(os.Stderr, "after all tests, and %v: %v\n", patience, err)
			status = 1
		}
	}
	os.Exit(status)
}

// server waits for the database server of all tests, which ends with the process.
const server = "postern/internal/pgserver.(*Server).wait"

func left() (err error) {
	for end := time.Now().Add(patience); ; {
		if err = goleak.Find(goleak.IgnoreAnyFunction(server)); err == nil || time.Now().After(end) {
			return err
		}
	}
}
