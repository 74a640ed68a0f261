package delivery

import (
	"context"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// Spent begins the replies of recipients who wait for a budget.
const Spent = "451 4.4.5 waits for the budget "

// Budgets is what the engine needs of *budget.Budgets.
type Budgets interface {
	Behind(a budget.Ask, ahead int) *budget.Wait
	Take(ctx context.Context, a budget.Ask) (done func(), wait *budget.Wait)
	Session(ctx context.Context, a budget.Ask) (leave func(), wait *budget.Wait)
}

// budgeted reports that an upstream, if it is one, has a budget.
func (e *Engine) budgeted(up *upstream.Account) bool {
	return e.cfg.Budgets != nil && up != nil && up.Budget != ""
}

// ask is a job as a budget counts it. What had an attempt, or waited for its turn, goes first.
func (j *job) ask(up *upstream.Account) budget.Ask {
	a := budget.Ask{Upstream: up.Name, Setting: up.Budget, Recipients: len(j.rcpts)}
	for i := range j.rcpts {
		a.Again = a.Again || j.rcpts[i].Waited || j.rcpts[i].Attempts > 0
	}
	return a
}

// outOfBudget reports that a job was deferred until its turn. Only what can be sent within
// seconds comes into the line: mail for other destinations would have no room beside the rest.
func (d *destination) outOfBudget(j *job, up *upstream.Account) bool {
	if up == nil {
		d.mu.Lock()
		up = d.upstream
		d.mu.Unlock()
	}
	if !d.e.budgeted(up) {
		return false
	}
	d.mu.Lock()
	ahead := d.waiting.len()
	d.mu.Unlock()
	wait := d.e.cfg.Budgets.Behind(j.ask(up), ahead)
	if wait != nil {
		d.await(j, wait)
	}
	return wait != nil
}

// spend counts a job that is to be sent over the open connection. done is called when its
// transaction has ended; it is nil if the job was deferred instead.
func (w *worker) spend(j *job) (done func()) {
	up := w.conn.walk.upstream
	if !w.d.e.budgeted(up) {
		return func() {}
	}
	began := time.Now()
	done, wait := w.d.e.cfg.Budgets.Take(w.d.e.work, j.ask(up))
	if wait != nil {
		w.job = nil
		w.d.await(j, wait)
		return nil
	}
	if time.Since(began) > idleLook {
		w.conn.kept = true // the server may have ended it
	}
	return done
}

// session counts a connection to an upstream in.
func (d *dialer) session(ctx context.Context, up *upstream.Account) (leave func(), t *trouble) {
	if d.cfg.Budgets == nil || up.Budget == "" {
		return func() {}, nil
	}
	leave, wait := d.cfg.Budgets.Session(ctx, budget.Ask{Upstream: up.Name, Setting: up.Budget})
	if wait != nil {
		return nil, &trouble{reply: smtp.Temporary(451, 4, 5, wait.Why), err: errCrowded, crowded: true, wait: wait}
	}
	return leave, nil
}

// turnedAway gives back a job for which t left no connection.
func (d *destination) turnedAway(j *job, t *trouble) {
	if t.wait != nil {
		d.await(j, t.wait)
	} else {
		d.e.release(j, turnedAwayWait)
	}
}

// await defers a job until its turn. That is not an attempt. A changed budget makes it due.
func (d *destination) await(j *job, wait *budget.Wait) {
	if d.e.closing.Load() {
		d.e.release(j, 0)
		return
	}
	now := time.Now()
	outcomes := make([]queue.Outcome, len(j.rcpts))
	for i := range j.rcpts {
		outcomes[i] = queue.Outcome{
			Message: j.Message.ID, N: j.rcpts[i].N, Recipient: j.rcpts[i].Address, Epoch: j.Epoch,
			Result: queue.Deferred, Reply: smtp.Temporary(451, 4, 5, wait.Why), Ours: true, Upstream: d.via,
			StartedAt: now, At: now, NotAnAttempt: true, WaitsFor: budget.Way(d.via), RetryIn: wait.In,
		}
	}
	d.e.leave(j, j.rcpts, outcomes, nil)
}
