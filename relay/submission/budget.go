package submission

import "sync/atomic"

// budget is a number of octets that all sessions share. It never blocks: who gets
// nothing answers 452 4.3.1.
type budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// take takes n octets, or nothing and reports false.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.limit.Load() {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// full reports that not even n octets are left.
func (b *budget) full(n int64) bool { return b.used.Load()+n > b.limit.Load() }
