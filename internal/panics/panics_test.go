package panics

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

// A loop that panics (M8) goes on after a pause, and the log has the stack.
func TestM8Keep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		g := New(slog.New(slog.NewTextHandler(&log, nil)))
		rounds := 0
		g.Keep(t.Context(), "a loop", func() {
			if rounds++; rounds < 3 {
				panic("a bad row")
			}
		})
		if rounds != 3 || g.Caught() != 2 {
			t.Errorf("%d rounds, %d panics", rounds, g.Caught())
		}
		if text := log.String(); !strings.Contains(text, "a loop") || !strings.Contains(text, "panics_test.go") {
			t.Errorf("the log says %s", text)
		}
	})
}

func TestM8KeepEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var none *Guard
	none.Keep(ctx, "a loop", func() {
		cancel()
		panic("at the end")
	})
	if none.Caught() != 0 {
		t.Error("nobody counts")
	}
}

func TestM8Try(t *testing.T) {
	t.Parallel()
	g := New(slog.New(slog.DiscardHandler))
	var caught *Error
	if err := g.Try("a thing", func() error { panic(7) }); !errors.As(err, &caught) || caught.Value != 7 {
		t.Errorf("a panic: %v", err)
	}
	trouble := errors.New("trouble")
	if err := g.Try("a thing", func() error { return trouble }); !errors.Is(err, trouble) || g.Caught() != 1 {
		t.Errorf("an error: %v", err)
	}
}

// A panic in one of several goroutines is the caller's, after all of them have ended.
func TestM8Group(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	g := New(slog.New(slog.NewTextHandler(&log, nil)))
	others := 0
	var caught *Error
	err := g.Try("a thing", func() error {
		var group Group
		first := make(chan struct{})
		group.Go(func() {
			defer close(first)
			var inner Group
			inner.Go(func() { panic("a bad answer") })
			inner.Wait()
		})
		group.Go(func() { <-first; others++ })
		group.Wait()
		return nil
	})
	if !errors.As(err, &caught) || err.Error() != "panic: a bad answer" || others != 1 || g.Caught() != 1 {
		t.Errorf("%v, %d others, %d caught", err, others, g.Caught())
	}
	if !strings.Contains(log.String(), "TestM8Group.func1.1.1") {
		t.Errorf("the log lacks the stack of the goroutine: %s", &log)
	}
}

func TestM8GroupWithoutPanic(t *testing.T) {
	t.Parallel()
	var group Group
	done := false
	group.Go(func() { done = true })
	if group.Wait(); !done {
		t.Error("Wait came before the end")
	}
}
