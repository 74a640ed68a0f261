package check

import (
	"context"
	"strings"
	"sync"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/internal/panics"
)

// kind is a health.Kind whose literal needs no names of fields.
type kind health.Kind

// report collects the findings of one area. It is safe for concurrent use, and takes
// nothing more once it was closed.
type report struct {
	mu       sync.Mutex
	findings []health.Finding
	closed   bool
}

// add writes down a finding of a kind. The text comes from the network in part, so it
// is put on one line.
func (r *report) add(id, subject, format string, args ...any) {
	r.take(health.Kind(kinds()[id]).Found(subject, format, args...))
}

// publish writes down a finding that a DNS record helps against.
func (r *report) publish(id, subject, record, format string, args ...any) {
	f := health.Kind(kinds()[id]).Found(subject, format, args...)
	f.Publish = record
	r.take(f)
}

// take writes down a finding.
func (r *report) take(f health.Finding) {
	if kind, of, _ := strings.Cut(f.Subject, " "); kind == "domain" || kind == "mx" || kind == "key" {
		f.Todo = strings.ReplaceAll(f.Todo, "DOMAIN", of[strings.LastIndexByte(of, ' ')+1:])
	}
	f.Text, f.Publish = screen.OneLine(f.Text), screen.OneLine(f.Publish)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.findings = append(r.findings, f)
	}
}

// close returns what was found so far.
func (r *report) close() []health.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.findings
}

// atATime is how many conversations of one area are held at a time.
const atATime = 16

// each looks at n things concurrently, each with a report of its own, and puts what was
// found in their order. It leaves out those not begun at the end of ctx.
func (r *report) each(ctx context.Context, n int, look func(ctx context.Context, i int, r *report)) {
	parts := make([]*report, n)
	var all panics.Group
	places := make(chan struct{}, atATime)
	for i := range n {
		parts[i] = &report{}
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			look(ctx, i, parts[i])
		})
	}
	all.Wait()
	for _, part := range parts {
		found := part.close()
		r.mu.Lock()
		if !r.closed {
			r.findings = append(r.findings, found...)
		}
		r.mu.Unlock()
	}
}

// guard turns a panic into an error: nodes check as well.
var guard *panics.Guard

// future is a value that is worked out once, when it is first asked for.
type future[T any] struct {
	once  sync.Once
	done  chan struct{}
	value T
	err   error
}

// get returns what load gave, or why that did not come in time. All callers share the
// context of the whole check.
func (f *future[T]) get(ctx context.Context, load func() (T, error)) (value T, err error) {
	f.once.Do(func() {
		f.done = make(chan struct{})
		go func() {
			defer close(f.done)
			f.err = guard.Try("check", func() (err error) { f.value, err = load(); return err })
		}()
	})
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return value, ctx.Err()
	}
}
