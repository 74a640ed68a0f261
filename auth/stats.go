package auth

import "time"

// Stats is a moment's view of an Authenticator, for metrics.
type Stats struct {
	Permits     int           // hashes that may be computed concurrently
	Hashing     int           // computed now
	Waiting     int           // that wait for a permit
	Hashes      int64         // computed, ever
	Secrets     int64         // generated secrets compared, ever: they take no permit
	Waited      time.Duration // for permits, all together
	Busy        int64         // that got no permit in time
	CacheHits   int64         // logins answered from the caches
	CacheMisses int64         // logins that took the whole way
	Cached      int           // verified passwords remembered
	Throttled   int           // counts of failures held
}

// Stats returns the counts of now.
func (a *Authenticator) Stats() Stats {
	return Stats{
		Permits: cap(a.hashing.permits), Hashing: len(a.hashing.permits), Waiting: a.hashing.waiting(),
		Hashes: a.hashing.done.Load(), Secrets: a.macs.Load(),
		Waited: time.Duration(a.hashing.waited.Load()), Busy: a.hashing.refused.Load(),
		CacheHits: a.hits.Load(), CacheMisses: a.misses.Load(),
		Cached: a.successes.len(), Throttled: a.throttle.Len(),
	}
}

func (c *cache[K, V]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}
