package acme

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
)

// A scope is one piece of certmagic's work, found by its context. Locks that are
// taken in it guard what is written in it. Its context ends when one is lost.
type scope struct {
	lost func(error)

	mu      sync.Mutex
	leases  map[string]*lease            // by the lock's name
	partial map[string]map[string][]byte // parts of certificates that are not whole yet, by their key without extension
	writing map[string]bool              // the first two parts of a certificate that is being written
}

func newScope(lost func(error)) *scope {
	return &scope{lost: lost, leases: map[string]*lease{}, partial: map[string]map[string][]byte{}, writing: map[string]bool{}}
}

type scopeKey struct{}

// withScope begins a scope. The caller ends its context.
func withScope(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	return context.WithValue(ctx, scopeKey{}, newScope(cancel)), cancel
}

func scopeOf(ctx context.Context) *scope {
	sc, _ := ctx.Value(scopeKey{}).(*scope)
	return sc
}

// fence is the locks of ctx's scope and their tokens; never nil, which would be null.
func fence(ctx context.Context) (locks []string, tokens []int64) {
	locks, tokens = []string{}, []int64{}
	sc := scopeOf(ctx)
	if sc == nil {
		return locks, tokens
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(sc.leases)) {
		locks, tokens = append(locks, name), append(tokens, sc.leases[name].token)
	}
	return locks, tokens
}

// gather returns what is to be written now: nil while a certificate lacks parts.
// certmagic stores the key, then the certificate, then the metadata; a crash between
// two of them would leave a pair that does not fit, with which it could never start
// again.
func (sc *scope) gather(key string, value []byte) map[string][]byte {
	extension := path.Ext(key)
	base := strings.TrimSuffix(key, extension)
	if !strings.HasPrefix(key, "certificates/") {
		return map[string][]byte{key: value}
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if extension == ".key" {
		sc.partial[base] = map[string][]byte{}
	}
	parts := sc.partial[base]
	if parts == nil { // metadata alone: renewal information has changed
		return map[string][]byte{key: value}
	}
	parts[key] = value
	if len(parts) < 3 {
		return nil
	}
	delete(sc.partial, base)
	sc.writing[base+".key"], sc.writing[base+".crt"] = true, true
	return parts
}

// written says that all parts are in the database.
func (sc *scope) written() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	clear(sc.writing)
}

// forget drops a part that was not written, and reports whether there was one. When
// the write has failed, certmagic takes back the first two parts; what is in the
// database is the certificate before.
func (sc *scope) forget(key string) bool {
	base := strings.TrimSuffix(key, path.Ext(key))
	sc.mu.Lock()
	defer sc.mu.Unlock()
	_, partial := sc.partial[base][key]
	if writing := sc.writing[key]; !partial && !writing {
		return false
	}
	delete(sc.partial[base], key)
	delete(sc.writing, key)
	return true
}
