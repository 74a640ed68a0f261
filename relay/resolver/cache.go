package resolver

import (
	"container/list"
	"time"
)

// Bounds of the cache.
const (
	maxEntries = 20_000
	maxOctets  = 16 << 20
	maxTTL     = time.Hour
	maxNoneTTL = 5 * time.Minute // a domain that is being set up is there soon
)

// Memory that an answer, each of its records, and each piece of a text take beside their octets in
// the packet.
const (
	entrySize  = 300
	recordSize = 130
	pieceSize  = 32
)

// cache keeps answers for their time, and of too many those that were used last.
type cache struct {
	entries map[question]*list.Element // of *entry
	used    *list.List                 // the last one is in front
	octets  int
}

type entry struct {
	question
	found
	until time.Time
}

func newCache() *cache { return &cache{entries: make(map[question]*list.Element), used: list.New()} }

func (c *cache) get(q question, now time.Time) (found, bool) {
	at, ok := c.entries[q]
	if !ok {
		return found{}, false
	}
	kept := at.Value.(*entry)
	if !now.Before(kept.until) {
		c.remove(at)
		return found{}, false
	}
	c.used.MoveToFront(at)
	return kept.found, true
}

func (c *cache) put(q question, f found, now time.Time) {
	if at, ok := c.entries[q]; ok {
		c.remove(at)
	}
	if f.ttl <= 0 {
		return
	}
	c.entries[q] = c.used.PushFront(&entry{q, f, now.Add(f.ttl)})
	c.octets += f.size
	for len(c.entries) > maxEntries || c.octets > maxOctets {
		c.remove(c.used.Back())
	}
}

func (c *cache) remove(at *list.Element) {
	kept := c.used.Remove(at).(*entry)
	delete(c.entries, kept.question)
	c.octets -= kept.size
}
