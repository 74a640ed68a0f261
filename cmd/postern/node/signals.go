package node

import (
	"os"
	"os/signal"
	"syscall"
)

// Signals are what a server is told beside the end of its context. The zero value
// hears nothing.
type Signals struct {
	reload <-chan os.Signal
	cut    <-chan struct{} // closed when it was asked to stop for the second time
}

// ListenSignals listens from now on, also while the server starts: a SIGHUP then is
// no reason to die.
func ListenSignals() (s Signals, stop func()) {
	reload := make(chan os.Signal, 1) // one that waits stands for all that came meanwhile
	signal.Notify(reload, syscall.SIGHUP)
	ends := make(chan os.Signal, 2)
	signal.Notify(ends, os.Interrupt, syscall.SIGTERM)
	cut, over := make(chan struct{}), make(chan struct{})
	go func() {
		for range 2 {
			select {
			case <-ends:
			case <-over:
				return
			}
		}
		close(cut)
	}()
	return Signals{reload, cut}, func() {
		signal.Stop(reload)
		signal.Stop(ends)
		close(over)
	}
}
