package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A load is one run against one target.
type load struct {
	target      *target
	ledger      *ledger
	connections int
	messages    int  // for each connection
	reconnect   bool // one message for each connection

	mu        sync.Mutex
	problems  map[string]int // what went wrong, and how often
	latencies []time.Duration
	lastReply time.Time
}

// maxProblems bounds the kinds of problems that are remembered.
const maxProblems = 20

// run sends everything and returns when the clock began: with all connections
// logged in, or before the first one when each message has its own.
func (l *load) run(ctx context.Context) time.Time {
	l.problems = make(map[string]int)
	var ready, workers sync.WaitGroup
	begin := make(chan struct{})
	for i := range l.connections {
		ready.Add(1)
		workers.Go(func() {
			w := &worker{load: l, message: l.ledger.corpus.message(true), first: i * l.messages}
			if !l.reconnect {
				w.connect(ctx)
			}
			ready.Done()
			<-begin
			w.work(ctx)
		})
	}
	ready.Wait()
	start := time.Now()
	close(begin)
	workers.Wait()
	slices.Sort(l.latencies)
	return start
}

// problem remembers what went wrong.
func (l *load) problem(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := err.Error()
	if _, known := l.problems[text]; !known && len(l.problems) >= maxProblems {
		text = "others"
	}
	l.problems[text]++
}

// finish takes over a worker's times.
func (l *load) finish(latencies []time.Duration, last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latencies = append(l.latencies, latencies...)
	if last.After(l.lastReply) {
		l.lastReply = last
	}
}

// worker is one connection after the other.
type worker struct {
	load      *load
	message   *message
	first     int // number of its first message
	client    *client
	latencies []time.Duration
	last      time.Time
}

// connect opens the connection if it can.
func (w *worker) connect(ctx context.Context) bool {
	if w.client != nil {
		return true
	}
	client, err := w.load.target.open(ctx)
	if err != nil {
		w.load.problem(fmt.Errorf("connect: %w", err))
		return false
	}
	w.client = client
	return true
}

// work sends the worker's messages. One that cannot be sent is not tried again: a
// measurement with refusals is none.
func (w *worker) work(ctx context.Context) {
	w.latencies = make([]time.Duration, 0, w.load.messages)
	for n := w.first; n < w.first+w.load.messages && ctx.Err() == nil; n++ {
		if !w.connect(ctx) {
			continue
		}
		w.one(n)
		if w.load.reconnect && w.client != nil {
			w.client.quit()
			w.client = nil
		}
	}
	if w.client != nil {
		w.client.quit()
	}
	w.load.finish(w.latencies, w.last)
}

// one sends message n and enters the answer.
func (w *worker) one(n int) {
	latency, err := w.client.send(w.message, n)
	if err == nil {
		w.last = time.Now()
		w.latencies = append(w.latencies, latency)
		w.load.ledger.answered(n, acked)
		return
	}
	w.load.problem(err)
	var refusal *replyError
	if errors.As(err, &refusal) {
		w.load.ledger.answered(n, forbidden)
	}
	if refusal == nil || refusal.code == 421 {
		_ = w.client.conn.Close()
		w.client = nil
	}
}
