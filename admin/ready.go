package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"postern/admin/health"
)

const (
	// checkTime is how long /readyz waits for a check.
	checkTime = 3 * time.Second
	// checkAge is how old an answer may be: however often /readyz is asked, the
	// database is not.
	checkAge = time.Second
)

// Check is one question of /readyz. Run answers before ctx ends, or counts as failed.
type Check struct {
	Name string
	Run  func(ctx context.Context) health.Finding
}

// run is Run without its panics, which would end the relay.
func (c Check) run(ctx context.Context) (f health.Finding) {
	defer func() {
		if p := recover(); p != nil {
			f = health.Finding{Status: health.Failed, Text: fmt.Sprintf("the check has a defect: %v", p), Todo: "report it"}
		}
	}()
	return c.Run(ctx)
}

// result is a finding as the page has it.
type result struct {
	Name   string        `json:"name"`
	State  health.Status `json:"state"`
	Detail string        `json:"detail,omitempty"`
	Advice string        `json:"advice,omitempty"`
}

// report is the body of /readyz.
type report struct {
	Ready  bool     `json:"ready"`
	Checks []result `json:"checks"`
}

// public is the report for those who do not know the token: names and states.
func (r report) public() report {
	bare := make([]result, len(r.Checks))
	for i, c := range r.Checks {
		bare[i] = result{Name: c.Name, State: c.State}
	}
	return report{r.Ready, bare}
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	found := s.ready.report(r.Context())
	if !s.knows(r) {
		found = found.public()
	}
	status := http.StatusOK
	if !found.Ready {
		status = http.StatusServiceUnavailable
	}
	body, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		writeText(w, http.StatusInternalServerError, "internal error\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// readiness asks the checks, all concurrently, and remembers the answers for a moment.
type readiness struct {
	checks  []Check
	asked   []chan health.Finding // a check that has not answered is not asked again
	running sync.WaitGroup

	mu   sync.Mutex // one round at a time
	last report
	at   time.Time
}

func newReadiness(checks []Check) *readiness {
	return &readiness{checks: checks, asked: make([]chan health.Finding, len(checks))}
}

func (r *readiness) report(ctx context.Context) report {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) < checkAge {
		return r.last
	}
	// Not the client's context: a client that goes away must not spoil the next one's answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	for i := range r.checks {
		r.ask(ctx, i)
	}
	found := report{Ready: true, Checks: make([]result, len(r.checks))}
	for i, c := range r.checks {
		f := r.await(ctx, i)
		found.Checks[i] = result{c.Name, f.Status, f.Text, f.Todo}
		found.Ready = found.Ready && f.Status != health.Failed
	}
	r.last, r.at = found, time.Now()
	return found
}

func (r *readiness) ask(ctx context.Context, i int) {
	if r.asked[i] != nil {
		select {
		case <-r.asked[i]: // it came after its page: too old by now
		default:
			return
		}
	}
	answer := make(chan health.Finding, 1)
	r.asked[i] = answer
	// A deadline of its own: this one ends with the page that waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	r.running.Go(func() {
		defer cancel()
		answer <- r.checks[i].run(ctx)
	})
}

func (r *readiness) await(ctx context.Context, i int) health.Finding {
	select {
	case f := <-r.asked[i]:
		r.asked[i] = nil
		return f
	case <-ctx.Done():
		return health.Finding{Status: health.Failed, Text: "no answer within " + checkTime.String(), Todo: "see the log, and whether a disk or the network hangs"}
	}
}

// wait returns when no check is under way.
func (r *readiness) wait() { r.running.Wait() }
