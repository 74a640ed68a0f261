package panics

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// Group runs functions concurrently. A panic in one of them is Wait's, so that the guard of the
// caller recovers it. The zero Group is ready for use.
type Group struct {
	all   sync.WaitGroup
	mu    sync.Mutex
	panic any // the first, with the stack of its goroutine
}

// Go runs do in a goroutine of its own.
func (g *Group) Go(do func()) {
	g.all.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				g.mu.Lock()
				defer g.mu.Unlock()
				if g.panic == nil {
					g.panic = fmt.Sprintf("%v\n%s", p, debug.Stack())
				}
			}
		}()
		do()
	})
}

// Wait waits until all functions have returned, and panics if one of them has.
func (g *Group) Wait() {
	g.all.Wait()
	if g.panic != nil {
		panic(g.panic)
	}
}
