package admin

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/internal/units"
	"postern/relay/queue/desk"
)

const (
	overviewEvery  = 5 * time.Second        // the queue is read at most so often,
	overviewShare  = 50                     // and at most for a fiftieth of the time
	overviewTime   = 20 * time.Second       // it is given up after so long
	overviewRetry  = 5 * time.Second        // and tried again then
	scrapePatience = 500 * time.Millisecond // a scrape waits so long for a reading, and then shows the last
)

// ReadOverview reads the whole queue; desk.Reader's Overview is one.
type ReadOverview func(ctx context.Context) (desk.Overview, error)

// Overview collects the state of the whole queue. It is read when somebody scrapes, by
// one goroutine at a time. While the database does not answer the queue has no series:
// old numbers would look like new ones.
type Overview struct {
	read  ReadOverview
	log   *slog.Logger
	descs overviewDescs

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	reading chan struct{} // closed when the one under way ends; nil when none is
	next    time.Time     // not to be read before
	last    desk.Overview
	err     error
	known   bool // there was a reading, with err or without
}

type overviewDescs struct {
	up, recipients, oldest, overdue, nodes, holds, aside, doubt, took *prometheus.Desc
}

// NewOverview makes and registers an Overview. Its Close must be called.
func NewOverview(to prometheus.Registerer, read ReadOverview, log *slog.Logger) *Overview {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	o := &Overview{read: read, log: log, descs: overviewDescs{
		up:         desc("postern_database_up", "1 if the queue could be read for this page, else 0."),
		recipients: desc("postern_queue_recipients", "Recipients in the queue of all nodes, by state and by age since acceptance: at most the label, and more than the step before it.", "state", "age"),
		oldest:     desc("postern_queue_oldest_seconds", "Age of the oldest recipient in a state, since acceptance; 0 when there is none.", "state"),
		overdue:    desc("postern_queue_overdue_seconds", "Seconds since the first unclaimed recipient fell due; 0 if there is none."),
		nodes:      desc("postern_nodes", "Nodes that live, by the database."),
		holds:      desc("postern_holds", "Holds on users and credentials."),
		aside:      desc("postern_queue_set_aside", "Recipients held because their rows are bad; see docs/operate.md."),
		doubt:      desc("postern_queue_in_doubt", "Recipients that may have been delivered, by what becomes of them: retry (there) or hold (for a person).", "policy"),
		took:       desc("postern_queue_read_seconds", "Seconds that the last reading of the queue took."),
	}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	to.MustRegister(o)
	return o
}

// Close ends a reading that is under way.
func (o *Overview) Close() {
	o.cancel()
	o.mu.Lock()
	reading := o.reading
	o.mu.Unlock()
	if reading != nil {
		<-reading
	}
}

// Describe implements prometheus.Collector.
func (o *Overview) Describe(ch chan<- *prometheus.Desc) {
	d := o.descs
	for _, desc := range []*prometheus.Desc{d.up, d.recipients, d.oldest, d.overdue, d.nodes, d.holds, d.aside, d.doubt, d.took} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (o *Overview) Collect(ch chan<- prometheus.Metric) {
	last, known, err := o.latest()
	if !known {
		return // the first reading is still under way
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(o.descs.up, Truth(err == nil))
	if err != nil {
		return
	}
	recipients, oldest := sums(last)
	for _, state := range desk.States() {
		for step, name := range ageNames {
			gauge(o.descs.recipients, float64(recipients[stateStep{state, step}]), string(state), name)
		}
		gauge(o.descs.oldest, oldest[state].Seconds(), string(state))
	}
	gauge(o.descs.overdue, last.Overdue.Seconds())
	gauge(o.descs.nodes, float64(last.Nodes))
	gauge(o.descs.holds, float64(last.Holds))
	gauge(o.descs.aside, float64(last.Aside))
	gauge(o.descs.doubt, float64(last.Retried), "retry")
	gauge(o.descs.doubt, float64(last.Doubted), "hold")
	gauge(o.descs.took, last.Took.Seconds())
}

type stateStep struct {
	state desk.State
	step  int
}

func sums(o desk.Overview) (recipients map[stateStep]int64, oldest map[desk.State]time.Duration) {
	recipients, oldest = make(map[stateStep]int64), make(map[desk.State]time.Duration)
	for _, s := range o.Shares {
		recipients[stateStep{s.State, s.Step}] += s.Recipients
		oldest[s.State] = max(oldest[s.State], s.Oldest)
	}
	return recipients, oldest
}

// ageNames are the values of the label age.
var ageNames = nameAges()

func nameAges() (names []string) {
	for _, d := range desk.AgeSteps() {
		names = append(names, units.FormatSpan(d))
	}
	return append(names, "older")
}

// latest returns the last reading, begins one that is due, and waits a little for one
// that is under way.
func (o *Overview) latest() (last desk.Overview, known bool, err error) {
	o.mu.Lock()
	if o.reading == nil && !time.Now().Before(o.next) && o.ctx.Err() == nil {
		o.reading = make(chan struct{})
		go o.refresh(o.reading)
	}
	reading := o.reading
	o.mu.Unlock()
	if reading != nil {
		patience := time.NewTimer(scrapePatience)
		defer patience.Stop()
		select {
		case <-reading:
		case <-patience.C:
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.known, o.err
}

func (o *Overview) refresh(reading chan struct{}) {
	defer close(reading)
	ctx, cancel := context.WithTimeout(o.ctx, overviewTime)
	defer cancel()
	began := time.Now()
	found, err := o.guardedRead(ctx)
	wait := max(overviewEvery, overviewShare*found.Took)
	if err != nil {
		wait = max(overviewRetry, time.Since(began)) // the database worked for nothing at most half of the time
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && (o.err == nil || !o.known) && o.ctx.Err() == nil {
		o.log.Warn("admin: cannot read the queue for the metrics", "error", err)
	}
	o.last, o.err, o.known, o.reading, o.next = found, err, true, nil, time.Now().Add(wait)
}

// guardedRead is read without its panics, which would end the relay.
func (o *Overview) guardedRead(ctx context.Context) (found desk.Overview, err error) {
	defer func() {
		if p := recover(); p != nil {
			found, err = desk.Overview{}, fmt.Errorf("panic: %v", p)
		}
	}()
	return o.read(ctx)
}
