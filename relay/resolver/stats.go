package resolver

import "time"

// Stats are what a Resolver counts.
type Stats struct {
	Answered, None, Temporary int64         // questions that were asked, by what came of them
	Time                      time.Duration // that they took, all together
	Kept                      int64         // questions that the cache answered
	Entries                   int           // in the cache
	Validates                 bool          // what is Secure is believed: DANE is on
	Blind                     int           // trusted servers that were seen not to validate
}

// Stats returns what was counted so far.
func (r *Resolver) Stats() Stats {
	servers := r.Servers()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Entries, s.Validates = len(r.cache.entries), len(servers) > 0
	for _, server := range servers {
		known := r.proofs[server]
		if known != nil && known.fault != nil {
			s.Blind++
		}
		s.Validates = s.Validates && r.trusts(server) && known != nil && known.fault == nil
	}
	return s
}

// count counts a question that was asked. mu is held.
func (s *Stats) count(f *flight, took time.Duration) {
	s.Time += took
	switch {
	case f.err != nil:
		s.Temporary++
	case f.found.err != nil:
		s.None++
	default:
		s.Answered++
	}
}
