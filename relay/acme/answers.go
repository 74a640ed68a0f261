package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"time"
)

// answerAge is how old the answer to a validation may be. Anybody may ask for one, as
// often as they like: however often that is, the database is asked ten times a second
// for a name. An authority comes later than that after the answer was stored.
const answerAge = 100 * time.Millisecond

// answers are those to validations that the storage had a moment ago.
type answers struct {
	age  time.Duration
	turn chan struct{} // its holder may ask the database

	mu sync.Mutex
	by map[string]answer
}

type answer struct {
	value []byte
	err   error // that there is none
	at    time.Time
}

func newAnswers() *answers {
	return &answers{age: answerAge, turn: make(chan struct{}, 1), by: map[string]answer{}}
}

// isAnswer reports the keys under which certmagic keeps answers.
func isAnswer(key string) bool { return strings.Contains(key, "/challenge_tokens/") }

// load is what load says, or has said a moment ago. It waits no longer than for a call.
func (a *answers) load(ctx context.Context, key string, load func(context.Context, string) ([]byte, error)) ([]byte, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("load %s: %w", key, context.Cause(ctx))
	}
	if known, ok := a.known(key); ok {
		return known.value, known.err
	}
	value, err := load(ctx, key)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.by[key] = answer{value, err, time.Now()}
	}
	return value, err
}

func (a *answers) known(key string) (answer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.by[key]
	return known, ok && time.Since(known.at) < a.age
}

// forget is for a key that was written, or all in it.
func (a *answers) forget(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.by, func(known string, _ answer) bool { return known == key || strings.HasPrefix(known, key+"/") })
}
