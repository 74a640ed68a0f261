// Package await waits for the end of goroutines, but for no longer than its caller has time.
package await

import "context"

// All returns when wait, such as the Wait of a sync.WaitGroup, does so, or with ctx's
// error when ctx ends before; then a goroutine is left, which waits on.
func All(ctx context.Context, wait func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
