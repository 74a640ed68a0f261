package delivery

// windowAt is a window whose places are all in use.
func windowAt(limit int) *window {
	w := newWindow("", limit)
	w.limit, w.proven, w.used = limit, limit, limit
	return w
}
