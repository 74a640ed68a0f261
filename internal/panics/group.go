package panics

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// Group runs functions concurrently. Wait panics as the first of them did, so that the guard of the
// caller recovers it. The zero Group is ready for use.
type Group struct {
	all   sync.WaitGroup
	once  sync.Once
	first *passed
}

// passed is a panic of another goroutine.
type passed struct {
	value any
	stack []byte
}

func (p *passed) String() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

// passedOn is a recovered panic with the stack of the goroutine in which it began.
func passedOn(recovered any) *passed {
	if p, ok := recovered.(*passed); ok {
		return p
	}
	return &passed{recovered, debug.Stack()}
}

// Go runs do in a goroutine of its own.
func (g *Group) Go(do func()) {
	g.all.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				g.once.Do(func() { g.first = passedOn(p) })
			}
		}()
		do()
	})
}

// Wait waits until all functions have returned, and panics if one of them did.
func (g *Group) Wait() {
	g.all.Wait()
	if g.first != nil {
		panic(g.first)
	}
}
