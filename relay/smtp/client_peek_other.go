//go:build !unix

package smtp

// readable knows nothing here: what the server said while it was not asked is found
// when it is in the way.
func readable(uintptr) bool { return false }
