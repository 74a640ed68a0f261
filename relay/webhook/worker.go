package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/panics"
	"postern/relay/feed"
)

var (
	sqlLook   = texts.Bind("look", "id", "owner", "longest")
	sqlDue    = texts.Bind("due", "id", "most", "octets")
	sqlSettle = texts.Bind("settle", "id", "owner", "cursor", "lenient", "place_at", "failures", "given_up", "wait", "reason")
	sqlDone   = texts.Bind("done", "id", "events")
	sqlAgain  = texts.Bind("again", "id", "events", "kinds", "bodies", "tries", "status", "errors", "pauses")
	sqlTried  = texts.Bind("tried", "id", "events", "kinds", "status", "ms", "errors", "answers")
	sqlTrim   = texts.Bind("trim", "id", "most")
	sqlPlace  = texts.Bind("place", "id", "owner", "cursor", "lenient", "place_at")
	sqlGone   = texts.Bind("gone", "id", "owner", "until")
	sqlExpire = texts.Bind("expire", "id", "owner", "keep", "longest")
)

const (
	batch       = 64               // events that are sent before what became of them is written
	batchOctets = 4 << 20          // of retries in it, but for the last
	placeEvery  = 10 * time.Second // a place is written that moved over unwanted events
	expireEvery = time.Minute
	countEvery  = 10 * time.Second // what waits is counted: the rows of one webhook, at most MostRetries
	grace       = 3 * time.Second
	trouble     = 5 * time.Second // after an error of the database, or of this machine
)

// hook is a leased webhook. It is never changed.
type hook struct {
	id, userID int64
	name, url  string
	kinds      []feed.Kind
	Limits
	sealed []byte
	both   bool // secrets sign
	due    bool // an event waits whose time has come
}

// worker sends for one webhook.
type worker struct {
	s     *Sender
	hook  atomic.Pointer[hook]
	stop  context.CancelFunc
	wake  chan struct{} // capacity 1
	ended chan struct{}

	// Of the loop alone.
	sending context.Context // of requests
	cut     context.CancelFunc
	client  *client
	reach   *Reach // that the client was made with
	places  int    // and its concurrency
	pace    pace
	secrets []Secret
	opened  []byte // that secrets were opened from
	known   bool   // at is
	at      feed.Cursor
	atTime  time.Time // what happened before is behind at
	events  []feed.Event
	next    feed.Cursor // behind them
	more    bool        // there is more behind next
	seen    *end        // to which next was read, unless there is more
	placed  time.Time   // when the place was last written
	expired time.Time
	room    int       // how many more events may wait for another try
	counted time.Time // when that was counted
	failing bool      // an error was logged
	lost    bool      // the lease is over
}

func (w *worker) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

func (w *worker) hurry() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) run(ctx context.Context) {
	defer func() {
		if w.client != nil {
			w.client.close()
		}
	}()
	// Requests have a moment to end after the worker is stopped.
	w.sending, w.cut = context.WithCancel(context.WithoutCancel(ctx))
	defer w.cut()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, w.cut) })()
	for ctx.Err() == nil && !w.lost {
		again, err := w.step(ctx)
		if err != nil && !w.failing && ctx.Err() == nil {
			w.s.cfg.Log.Warn("webhook: events cannot be sent for a reason of this node, will retry", "webhook", w.hook.Load().name, "error", err)
		}
		w.failing = err != nil
		wait, wake := lookEvery, w.wake
		switch {
		case err != nil:
			wait, wake = trouble, nil
		case again:
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-wake:
		}
	}
}

// job is an event to be sent.
type job struct {
	id    uuid.UUID
	kind  feed.Kind
	body  string
	tries int  // that failed
	retry bool // it is a row of webhook_retry
}

// step sends some events, and reports whether there may be more now.
func (w *worker) step(ctx context.Context) (again bool, err error) {
	h := w.hook.Load()
	if w.idle(h) || w.pace.left(h.PerMinute) > lookEvery {
		return false, nil
	}
	if err := w.prepare(h); err != nil {
		return false, err
	}
	brief, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var cursor string
	var lenient, wait bool
	var failures int
	err = w.s.cfg.DB.QueryRow(brief, sqlLook, h.id, w.s.owner, longest).Scan(&cursor, &lenient, &failures, &wait)
	if errors.Is(err, pgx.ErrNoRows) {
		w.lost = true
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at a webhook: %w", err)
	}
	if !w.known {
		if w.at, err = feed.ParseCursor(cursor); err != nil {
			return false, err
		}
		if lenient {
			w.at = w.at.Leniently()
		}
		w.known = true
	}
	if err := w.expire(brief, h); err != nil || wait {
		return false, err
	}
	most, _ := h.most(failures)
	fresh := func() ([]job, error) {
		if err := w.count(brief, h); err != nil || w.room < batch {
			return nil, err
		}
		return w.fresh(ctx, h, most)
	}
	// While all fails, what is new takes turns with what failed before: the endpoint may take it.
	var jobs []job
	if failures >= failing && failures%2 == 1 {
		jobs, err = fresh()
	}
	if err == nil && len(jobs) == 0 {
		jobs, err = w.due(brief, h, most)
	}
	if err == nil && len(jobs) == 0 {
		jobs, err = fresh()
	}
	if err != nil || len(jobs) == 0 {
		return false, err
	}
	tried := w.send(ctx, h, jobs, failures)
	if len(tried) == 0 {
		return false, nil
	}
	return w.settle(h, tried, failures)
}

// idle reports that there is nothing to be done, as far as is known without a question.
func (w *worker) idle(h *hook) bool {
	return !h.due && len(w.events) == 0 && w.atEnd() && time.Since(w.placed) < placeEvery && time.Since(w.expired) < expireEvery
}

// atEnd reports that the feed was read to the end that it has now.
func (w *worker) atEnd() bool {
	end := w.s.newest.Load()
	return !w.more && w.seen != nil && end != nil && w.seen.at == end.at
}

// prepare makes the client and opens the secrets, when they have changed.
func (w *worker) prepare(h *hook) (err error) {
	reach := w.s.reach.Load()
	if w.client == nil || w.reach != reach || w.places != h.Concurrency {
		if w.client != nil {
			w.client.close()
		}
		w.reach, w.places = reach, h.Concurrency
		if w.client, err = newClient(*reach, h.url, h.Concurrency); err != nil {
			return err
		}
	}
	if w.opened == nil || !bytes.Equal(w.opened, h.sealed) || h.both != (len(w.secrets) > 1) {
		if w.s.cfg.Sealer == nil {
			return errors.New("the secret cannot be opened: this node has no key")
		}
		if w.secrets, err = open(w.s.cfg.Sealer, h.name, h.sealed, h.both); err != nil {
			return err
		}
		w.opened = h.sealed
	}
	return nil
}

func (w *worker) expire(ctx context.Context, h *hook) error {
	if time.Since(w.expired) < expireEvery {
		return nil
	}
	var n int
	err := w.s.cfg.DB.QueryRow(ctx, sqlExpire, h.id, w.s.owner, keptFor, longest).Scan(&n)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("give up old events: %w", err)
	}
	w.expired = time.Now()
	w.gaveUp(h, n)
	return nil
}

func (w *worker) gaveUp(h *hook, n int) {
	w.s.count(h.name, GivenUp, n)
	if n > 0 {
		w.s.cfg.Log.Warn("webhook: events are given up; 'postern webhook replay' sends them again", "webhook", h.name, "events", n)
	}
}

// count counts for how many more events there is room. In between, the worker reckons with what it writes.
func (w *worker) count(ctx context.Context, h *hook) error {
	if time.Since(w.counted) < countEvery {
		return nil
	}
	var waiting int
	if err := w.s.cfg.DB.QueryRow(ctx, sqlRoom, h.id).Scan(&waiting); err != nil {
		return fmt.Errorf("count what waits: %w", err)
	}
	w.room, w.counted = MostRetries-waiting, time.Now()
	return nil
}

// due are the retries whose time has come.
func (w *worker) due(ctx context.Context, h *hook, most int) ([]job, error) {
	rows, err := w.s.cfg.DB.Query(ctx, sqlDue, h.id, most, batchOctets)
	var jobs []job
	if err == nil {
		jobs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (job, error) {
			j := job{retry: true}
			err := row.Scan(&j.id, &j.kind, &j.body, &j.tries)
			return j, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read what is due: %w", err)
	}
	return jobs, nil
}

// fresh are the next events of the feed.
func (w *worker) fresh(ctx context.Context, h *hook, most int) ([]job, error) {
	for len(w.events) == 0 {
		end := w.s.newest.Load()
		if w.atEnd() {
			w.atTime = end.time
			return nil, w.save(ctx, h)
		}
		page, err := w.s.recent.Read(ctx, w.s.cfg.DB, w.at, feed.Filter{UserID: h.userID, Kinds: h.kinds}, end.at)
		if gone := (*feed.GoneError)(nil); errors.As(err, &gone) {
			return nil, w.gone(ctx, h, gone)
		}
		if err != nil {
			return nil, err
		}
		w.events, w.next, w.more, w.seen = page.Events, page.Next, page.More, end
		if len(w.events) == 0 {
			w.at = w.next
			if !w.more {
				w.atTime = end.time
				return nil, w.save(ctx, h)
			}
		}
	}
	var jobs []job
	for i := range w.events[:min(len(w.events), most)] {
		e := &w.events[i]
		body, err := encode(e, h.userID != 0)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job{id: e.ID, kind: e.Kind, body: body})
	}
	return jobs, nil
}

// gone notes that retention was faster; the oldest event that is left is next.
func (w *worker) gone(ctx context.Context, h *hook, gone *feed.GoneError) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := w.s.cfg.DB.Exec(ctx, sqlGone, h.id, w.s.owner, gone.Until); err != nil {
		return fmt.Errorf("note that events are gone: %w", err)
	}
	w.s.cfg.Log.Warn("webhook: events were deleted before they could be sent", "webhook", h.name, "until", gone.Until)
	w.at = w.at.Leniently()
	return nil
}

// save writes a place that has moved over events that are not wanted.
func (w *worker) save(ctx context.Context, h *hook) error {
	if time.Since(w.placed) < placeEvery {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := w.s.cfg.DB.Exec(ctx, sqlPlace, h.id, w.s.owner, w.at.String(), w.at.Lenient(), w.placeTime()); err != nil {
		return fmt.Errorf("write a place: %w", err)
	}
	w.placed = time.Now()
	return nil
}

// placeTime is atTime, but not zero.
func (w *worker) placeTime() time.Time {
	if w.atTime.IsZero() {
		return time.Unix(0, 0)
	}
	return w.atTime
}

// tried is a job with what became of it.
type tried struct {
	job
	Answer
}

// send sends jobs in turn, within the webhook's limits, and returns those that were begun: a part from the
// beginning. It begins no more when ctx ends, the endpoint asks to wait, or too many have failed in a row.
func (w *worker) send(ctx context.Context, h *hook, jobs []job, failures int) []tried {
	list := make([]tried, len(jobs))
	_, concurrency := h.most(failures)
	places := make(chan struct{}, concurrency)
	var mu sync.Mutex
	enough := false
	var group panics.Group
	n := 0
	for ; n < len(jobs); n++ {
		places <- struct{}{}
		w.pace.wait(ctx, h.PerMinute)
		mu.Lock()
		done := enough
		mu.Unlock()
		if done || ctx.Err() != nil {
			break
		}
		t := &list[n]
		t.job = jobs[n]
		group.Go(func() {
			defer func() { <-places }()
			a := w.client.post(w.sending, w.secrets, t.id.String(), []byte(t.body))
			t.Answer = a
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.Err == nil:
				failures = 0
			case !a.ours:
				failures++
			}
			enough = enough || a.ours || a.asked > 0 || a.Status == statusGone || failures >= failing
		})
	}
	group.Wait()
	return list[:n]
}

// behind is the place behind the first n events, and the time of it.
func (w *worker) behind(n int) (at feed.Cursor, atTime time.Time, err error) {
	last := &w.events[n-1]
	switch {
	case n < len(w.events):
		at, err = feed.ParseCursor(last.Cursor)
		if w.next.Lenient() {
			at = at.Leniently()
		}
		return at, last.At, err
	case w.more:
		return w.next, last.At, nil
	}
	return w.next, w.seen.time, nil
}

// outcome is what settle writes.
type outcome struct {
	done, again                    []uuid.UUID
	kinds, bodies, errors          []string
	tries, status                  []int
	pauses                         []time.Duration
	failures, taken, failed, ended int
	wait                           time.Duration
	reason                         string
	ours                           error
}

const statusGone = 410

// settle writes what became of events, and moves on. It reports whether more may be sent now.
func (w *worker) settle(h *hook, list []tried, failures int) (again bool, err error) {
	o := outcome{failures: failures}
	for i := range list {
		o.add(&list[i])
	}
	if failures < failing { // the requests that failed at the same time are one reason to leave the endpoint alone
		o.failures = min(o.failures, failing)
	}
	o.wait = max(o.wait, rest(o.failures))
	at, atTime := w.at, w.placeTime()
	if !list[0].retry {
		if at, atTime, err = w.behind(len(list)); err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	err = pgx.BeginFunc(ctx, w.s.cfg.DB, func(tx pgx.Tx) error { return w.write(ctx, tx, h, list, &o, at, atTime) })
	if errors.Is(err, errLost) {
		w.lost = true
		return false, nil
	}
	if err != nil { // they are sent again: whether it was committed does not matter
		w.known, w.events, w.more, w.seen = false, nil, false, nil
		return false, fmt.Errorf("write what became of events: %w", err)
	}
	if list[0].retry {
		w.room += len(o.done)
	} else {
		w.room -= len(o.again)
		w.at, w.atTime, w.events = at, atTime, w.events[len(list):]
		w.placed = time.Now()
	}
	if o.wait > 0 { // without a page of some MiB
		w.known, w.events, w.more, w.seen = false, nil, false, nil
	}
	w.s.count(h.name, Taken, o.taken)
	w.s.count(h.name, Failed, o.failed)
	w.gaveUp(h, o.ended)
	if o.reason != "" {
		w.s.cfg.Log.Warn("webhook: disabled", "webhook", h.name, "reason", o.reason)
	}
	return o.wait == 0 && o.ours == nil, o.ours
}

// add takes one event. An event whose failure is this machine's waits without a try being counted.
func (o *outcome) add(t *tried) {
	if t.Err == nil {
		o.failures = 0
		o.taken++
		if t.retry {
			o.done = append(o.done, t.id)
		}
		return
	}
	wait := trouble
	if t.ours {
		o.ours = t.Err
	} else {
		o.failed++
		o.failures++
		o.wait = max(o.wait, t.asked)
		if t.Status == statusGone {
			o.reason = "the endpoint answered 410: it is gone for good"
		}
		t.tries++
		var last bool
		if wait, last = pause(t.tries); last {
			o.ended++
			o.done = append(o.done, t.id)
			return
		}
	}
	o.again, o.kinds, o.bodies = append(o.again, t.id), append(o.kinds, string(t.kind)), append(o.bodies, t.body)
	o.tries, o.status, o.errors = append(o.tries, t.tries), append(o.status, t.Status), append(o.errors, brief(t.Err.Error()))
	o.pauses = append(o.pauses, max(wait, t.asked))
}

var errLost = errors.New("another process sends for this webhook")

func (w *worker) write(ctx context.Context, tx pgx.Tx, h *hook, list []tried, o *outcome, at feed.Cursor, atTime time.Time) error {
	var mine bool
	err := tx.QueryRow(ctx, sqlSettle, h.id, w.s.owner, at.String(), at.Lenient(), atTime, o.failures, o.ended, o.wait, o.reason).Scan(&mine)
	if errors.Is(err, pgx.ErrNoRows) {
		return errLost
	}
	if err == nil && o.done != nil {
		_, err = tx.Exec(ctx, sqlDone, h.id, o.done)
	}
	if err == nil && o.again != nil {
		_, err = tx.Exec(ctx, sqlAgain, h.id, o.again, o.kinds, o.bodies, o.tries, o.status, o.errors, o.pauses)
	}
	if err != nil {
		return err
	}
	var ids []uuid.UUID
	var kinds, errs, answers []string
	var status, ms []int
	for i := range list {
		t := &list[i]
		text := ""
		if t.Err != nil {
			text = brief(t.Err.Error())
		}
		ids, kinds, errs, answers = append(ids, t.id), append(kinds, string(t.kind)), append(errs, text), append(answers, t.Body)
		status, ms = append(status, t.Status), append(ms, int(t.Took.Milliseconds()))
	}
	if _, err := tx.Exec(ctx, sqlTried, h.id, ids, kinds, status, ms, errs, answers); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sqlTrim, h.id, KeptTries)
	return err
}
