package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"postern/internal/serve"
)

// drainTime is how long nothing may arrive before the rest is given up as lost.
const drainTime = 30 * time.Second

// A plan is what one run does.
type plan struct {
	corpus      corpusConfig // its messages are all connections'
	connections int
	reconnect   bool
	patience    time.Duration // how long nothing may arrive; 0: drainTime
}

// A result is one run's figures.
type result struct {
	Connections int     `json:"connections"`
	Messages    int     `json:"messages"`
	Recipients  int     `json:"recipients"`
	Size        int     `json:"size"`
	Accept      seconds `json:"accept_seconds"`     // to the last 250
	EndToEnd    seconds `json:"end_to_end_seconds"` // to the last arrival
	AcceptRate  float64 `json:"accept_rate"`        // messages/s
	Rate        float64 `json:"end_to_end_rate"`    // messages/s
	P50         seconds `json:"latency_p50_seconds"`
	P99         seconds `json:"latency_p99_seconds"`
	Max         seconds `json:"latency_max_seconds"`

	CPU      map[string]float64 `json:"cpu_ms_per_message,omitempty"`
	Own      float64            `json:"own_cpu_ms_per_message"` // of load and sink
	Peak     int64              `json:"peak_memory,omitempty"`  // octets
	Tally    tally              `json:"tally"`
	Sound    bool               `json:"sound"` // all sent and accounted for
	Problems map[string]int     `json:"problems,omitempty"`
}

// seconds is a time that is printed in seconds.
type seconds float64

func secondsOf(d time.Duration) seconds { return seconds(d.Seconds()) }

// An exchange is a sink that gives each run what is its own. It outlives the runs,
// so that the server needs to know one next hop only.
type exchange struct {
	sink    *serve.Server
	ledger  atomic.Pointer[ledger]
	slowDot atomic.Int64 // of the workload, a time.Duration
	strange atomic.Int64 // messages of no run that goes on
}

func newExchange(address string) (*exchange, error) {
	e := &exchange{}
	var err error
	e.sink, err = startSink(address, e.deliver)
	return e, err
}

func (e *exchange) deliver(a arrival) {
	l := e.ledger.Load()
	if l == nil || a.run != nil && string(a.run) != l.corpus.run {
		e.strange.Add(1)
		return
	}
	l.arrive(a)
	time.Sleep(time.Duration(e.slowDot.Load())) // before the reply
}

// run carries out a plan against a target. Without an exchange only the sending is
// measured and nothing is verified.
func (p plan) run(ctx context.Context, to *target, at *exchange, meters []meter) (result, error) {
	corpus, err := newCorpus(p.corpus)
	if err != nil {
		return result{}, err
	}
	ledger := newLedger(corpus)
	if at != nil {
		at.ledger.Store(ledger)
		defer at.ledger.Store(nil)
	}
	before, err := readAll(meters)
	if err != nil {
		return result{}, err
	}
	l := &load{
		target: to, ledger: ledger, connections: p.connections,
		messages: p.corpus.messages / p.connections, reconnect: p.reconnect,
	}
	own := ownCPU()
	start := l.run(ctx)
	if at != nil {
		ledger.wait(ctx, cmp.Or(p.patience, drainTime))
	}
	own = ownCPU() - own
	after, err := settled(ctx, meters)
	if err != nil {
		return result{}, err
	}
	r := p.result(l, start)
	if at == nil {
		r.Tally.Lost, r.EndToEnd, r.Rate = 0, 0, 0
	}
	r.Sound = r.Tally.sound() && r.Tally.Accepted == p.corpus.messages
	each := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(max(1, r.Tally.Accepted)) }
	r.Own, r.CPU = each(own), make(map[string]float64, len(meters))
	for i, m := range meters {
		r.CPU[m.name] = each(after[i] - before[i])
	}
	return r, ctx.Err()
}

func (p plan) result(l *load, start time.Time) result {
	t, last := l.ledger.verdict()
	r := result{
		Connections: p.connections, Messages: p.corpus.messages,
		Recipients: p.corpus.recipients, Size: p.corpus.size,
		Tally: t, Problems: l.problems,
	}
	if t.Accepted > 0 {
		r.Accept = secondsOf(l.lastReply.Sub(start))
		r.AcceptRate = float64(t.Accepted) / float64(r.Accept)
	}
	if t.Arrived > 0 {
		r.EndToEnd = secondsOf(last.Sub(start))
		r.Rate = float64(t.Arrived) / float64(p.corpus.recipients) / float64(r.EndToEnd)
	}
	r.P50, r.P99, r.Max = percentile(l.latencies, 50), percentile(l.latencies, 99), percentile(l.latencies, 100)
	return r
}

// percentile of sorted times: the least that so many in a hundred do not exceed.
func percentile(sorted []time.Duration, percent int) seconds {
	if len(sorted) == 0 {
		return 0
	}
	return secondsOf(sorted[(len(sorted)*percent+99)/100-1])
}

// print writes the result for people.
func (r result) print(w io.Writer, verified bool) {
	fmt.Fprintf(w, "%d messages of %d octets to %d recipients over %d connections\n", r.Messages, r.Size, r.Recipients, r.Connections)
	fmt.Fprintf(w, "accepted     %d in %.2f s: %.0f messages/s\n", r.Tally.Accepted, r.Accept, r.AcceptRate)
	if verified {
		fmt.Fprintf(w, "end to end   %.2f s: %.0f messages/s\n", r.EndToEnd, r.Rate)
	}
	fmt.Fprintf(w, "dot to 250   p50 %s, p99 %s, max %s\n", milliseconds(r.P50), milliseconds(r.P99), milliseconds(r.Max))
	for _, name := range slices.Sorted(maps.Keys(r.CPU)) {
		fmt.Fprintf(w, "CPU          %.3f ms for each message: %s\n", r.CPU[name], name)
	}
	fmt.Fprintf(w, "CPU          %.3f ms for each message: smtpbench itself\n", r.Own)
	if verified {
		fmt.Fprintf(w, "verified     %s\n", r.Tally)
	}
	printProblems(w, r.Problems)
}

func printProblems(w io.Writer, problems map[string]int) {
	for _, text := range slices.Sorted(maps.Keys(problems)) {
		fmt.Fprintf(w, "problem      %d times: %s\n", problems[text], text)
	}
}

func milliseconds(s seconds) string { return fmt.Sprintf("%.1f ms", float64(s)*1000) }
