package admin

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"postern/relay/queue/desk"
)

// text is the page of a registry.
func text(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	list, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	for _, family := range list {
		if _, err := expfmt.MetricFamilyToText(&page, family); err != nil {
			t.Fatal(err)
		}
	}
	return page.String()
}

var sample = desk.Overview{
	Shares: []desk.Share{
		{State: desk.StateWaiting, Step: 0, Recipients: 4, Oldest: time.Minute},
		{State: desk.StateWaiting, Step: 5, Recipients: 2, Oldest: 50 * time.Hour},
		{State: desk.StateHeld, Step: 1, Recipients: 1, Oldest: 10 * time.Minute},
	},
	Overdue: 3 * time.Second, Nodes: 2, Holds: 1, Aside: 4, Retried: 5, Doubted: 6, Took: 10 * time.Millisecond,
}

func TestOverviewMetrics(t *testing.T) {
	synctest.Test(t, overviewMetrics)
}

func overviewMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	o := NewOverview(r, func(context.Context) (desk.Overview, error) { return sample, nil }, nil)
	defer o.Close()
	page := text(t, r)
	for _, want := range []string{
		"postern_database_up 1", `postern_queue_recipients{age="5m",state="waiting"} 4`, `postern_queue_recipients{age="older",state="waiting"} 2`,
		`postern_queue_recipients{age="1d",state="waiting"} 0`, `postern_queue_recipients{age="15m",state="held"} 1`, `postern_queue_recipients{age="5m",state="sending"} 0`,
		`postern_queue_oldest_seconds{state="waiting"} 180000`, `postern_queue_oldest_seconds{state="failed"} 0`,
		"postern_queue_overdue_seconds 3", "postern_nodes 2", "postern_holds 1", "postern_queue_set_aside 4", `postern_queue_in_doubt{policy="retry"} 5`, `postern_queue_in_doubt{policy="hold"} 6`, "postern_queue_read_seconds 0.01",
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

// Many scrapes concurrently and soon after one another are one reading; a queue that takes
// long to read is read less often.
func TestOverviewIsReadSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		took := 100 * time.Millisecond
		r := prometheus.NewRegistry()
		o := NewOverview(r, func(context.Context) (desk.Overview, error) {
			reads.Add(1)
			time.Sleep(took)
			now := sample
			now.Took = took
			return now, nil
		}, nil)
		defer o.Close()
		var scrapes sync.WaitGroup
		for range 50 {
			scrapes.Go(func() {
				if !strings.Contains(text(t, r), "postern_database_up 1\n") {
					t.Error("a scrape has no reading")
				}
			})
		}
		scrapes.Wait()
		for range 4 {
			time.Sleep(time.Second)
			text(t, r)
		}
		if n := reads.Load(); n != 1 {
			t.Errorf("%d readings in 4 s", n)
		}
		time.Sleep(time.Second)
		took = 3 * time.Second
		text(t, r) // begins one, and does not wait for its end
		time.Sleep(took)
		for range 149 {
			time.Sleep(time.Second)
			text(t, r)
		}
		if n := reads.Load(); n != 2 {
			t.Errorf("%d readings; one that takes 3 s comes every 150 s", n)
		}
		time.Sleep(2 * time.Second)
		text(t, r)
		if n := reads.Load(); n != 3 {
			t.Errorf("%d readings; the queue is not read any more", n)
		}
	})
}

// A database that hangs holds up no scrape, and its numbers go when it is given up.
func TestOverviewOfAHangingDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := false
		r := prometheus.NewRegistry()
		o := NewOverview(r, func(ctx context.Context) (desk.Overview, error) {
			if hang {
				<-ctx.Done()
				return desk.Overview{}, ctx.Err()
			}
			return sample, nil
		}, nil)
		defer o.Close()
		text(t, r)
		time.Sleep(overviewEvery)
		hang = true
		began := time.Now()
		page := text(t, r)
		if took := time.Since(began); took > scrapePatience || !strings.Contains(page, "postern_queue_overdue_seconds 3\n") {
			t.Errorf("a scrape took %v: %s", took, page)
		}
		time.Sleep(overviewTime)
		page = text(t, r)
		if !strings.Contains(page, "postern_database_up 0\n") || strings.Contains(page, "postern_queue") || strings.Contains(page, "postern_nodes") {
			t.Errorf("old numbers are shown: %s", page)
		}
		hang = false
		time.Sleep(overviewTime + overviewRetry)
		text(t, r)
		if page = text(t, r); !strings.Contains(page, "postern_database_up 1\n") {
			t.Errorf("it does not come back: %s", page)
		}
	})
}

// One that refuses is known immediately, tried again after a while, and a defect is trouble
// like any other.
func TestOverviewOfABrokenDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		r := prometheus.NewRegistry()
		o := NewOverview(r, func(context.Context) (desk.Overview, error) {
			switch reads.Add(1) {
			case 1:
				return desk.Overview{}, errors.New("connection refused")
			case 2:
				panic("a defect")
			}
			return sample, nil
		}, nil)
		defer o.Close()
		for want := range int32(2) {
			for range 3 {
				if page := text(t, r); !strings.Contains(page, "postern_database_up 0\n") || reads.Load() != want+1 {
					t.Errorf("after %d readings: %s", reads.Load(), page)
				}
			}
			time.Sleep(overviewRetry)
		}
		if page := text(t, r); !strings.Contains(page, "postern_database_up 1\n") {
			t.Errorf("it does not come back: %s", page)
		}
	})
}

// Close ends a reading, and none is begun after it.
func TestOverviewCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		o := NewOverview(r, func(ctx context.Context) (desk.Overview, error) { <-ctx.Done(); return desk.Overview{}, ctx.Err() }, nil)
		text(t, r)
		began := time.Now()
		o.Close()
		text(t, r)
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}
