package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// cache is a bounded map whose entries end by age. It may be used by several
// goroutines concurrently.
type cache[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]cached[V]
	max     int
	ttl     time.Duration
	era     uint64 // how often something was forgotten
}

type cached[V any] struct {
	value V
	at    time.Time
}

func newCache[K comparable, V any](max int, ttl time.Duration) *cache[K, V] {
	return &cache[K, V]{entries: make(map[K]cached[V]), max: max, ttl: ttl}
}

// get returns a living entry and the time that put was given.
func (c *cache[K, V]) get(key K, now time.Time) (value V, at time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok || now.Sub(e.at) >= c.ttl {
		return value, at, false
	}
	return e.value, e.at, true
}

// put sets an entry as of at. Without room it replaces the oldest of a few entries, found in
// the map's random order.
func (c *cache[K, V]) put(key K, value V, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(key, value, at)
}

func (c *cache[K, V]) set(key K, value V, at time.Time) {
	if _, there := c.entries[key]; !there && len(c.entries) >= c.max {
		c.evict()
	}
	c.entries[key] = cached[V]{value, at}
}

func (c *cache[K, V]) evict() {
	var victim K
	var oldest time.Time
	n := 0
	for key, e := range c.entries {
		if n == 0 || e.at.Before(oldest) {
			victim, oldest = key, e.at
		}
		if n++; n == 8 {
			break
		}
	}
	delete(c.entries, victim)
}

// eraNow is the era of data read from here on, for putOf.
func (c *cache[K, V]) eraNow() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.era
}

// putOf is put for data read in an era; ok is false, and nothing is put, if anything was
// forgotten since then, for it may have been this.
func (c *cache[K, V]) putOf(era uint64, key K, value V, at time.Time) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.era != era {
		return false
	}
	c.set(key, value, at)
	return true
}

// forget drops the entries that match.
func (c *cache[K, V]) forget(match func(V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.era++
	for key, e := range c.entries {
		if match(e.value) {
			delete(c.entries, key)
		}
	}
}

// fingerprint names a password of one version of an account without holding it.
type fingerprint [sha256.Size]byte

// fingerprintOf is an HMAC under a key that only this process knows. name keeps
// unknown users, who have neither id nor version, apart.
func fingerprintOf(key []byte, name string, a account, password string) fingerprint {
	var numbers [24]byte
	binary.BigEndian.PutUint64(numbers[0:], uint64(a.id))
	binary.BigEndian.PutUint64(numbers[8:], uint64(a.version))
	binary.BigEndian.PutUint64(numbers[16:], uint64(len(name)))
	h := hmac.New(sha256.New, key)
	h.Write(numbers[:])
	h.Write([]byte(name))
	h.Write([]byte(password))
	var f fingerprint
	h.Sum(f[:0])
	return f
}
