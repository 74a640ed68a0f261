package delivery

import (
	"context"
	"slices"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// Budgets is what the engine needs of *budget.Budgets.
type Budgets interface {
	Behind(a budget.Ask, ahead int) *budget.Wait
	Take(ctx context.Context, a budget.Ask) (done func(), wait *budget.Wait)
	connect.Sessions
	Turn(way string, recipients int, again bool) budget.Wait
}

// budgeted reports that an upstream, if it is one, has a budget.
func (e *Engine) budgeted(up *upstream.Account) bool {
	return e.cfg.Budgets != nil && up != nil && up.Budget != ""
}

func (j *job) ask(up *upstream.Account) budget.Ask {
	return budget.Ask{Upstream: up.Name, Setting: up.Budget, Recipients: len(j.rcpts), Again: waited(j.rcpts)}
}

// waited reports recipients that had an attempt, or waited for their turn: they go first.
func waited(rcpts []queue.Recipient) bool {
	return slices.ContainsFunc(rcpts, func(r queue.Recipient) bool { return budget.IsWay(r.WaitsFor) || r.Attempts > 0 })
}

// outOfBudget says why j would wait for more than seconds, nil if it would not. Such a job does not
// enter the line, where it would take the room of mail for other destinations. mu is held.
func (d *destination) outOfBudget(j *job) *budget.Wait {
	if !d.e.budgeted(d.upstream) {
		return nil
	}
	return d.e.cfg.Budgets.Behind(j.ask(d.upstream), d.waiting.len())
}

// spend counts a job that is to be sent over the open connection. done is called when its
// transaction has ended; it is nil if the job has left instead.
func (w *worker) spend(j *job) (done func()) {
	up := w.conn.Walk.Upstream
	if !w.d.e.budgeted(up) {
		return func() {}
	}
	began, ask := time.Now(), j.ask(up)
	ask.Recipients = w.conn.Client.Takes(len(j.rcpts), j.address) // the others are asked for in another transaction
	done, wait := w.d.e.cfg.Budgets.Take(w.d.e.work, ask)
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

// turnedAway ends a job for which t left no connection.
func (d *destination) turnedAway(j *job, t *trouble) {
	if t.Wait != nil {
		d.await(j, t.Wait)
	} else {
		d.e.release(j, turnedAwayWait)
	}
}

// await ends a job at a way whose budget is spent. That is not an attempt, and the fault is ours, but
// none of the account: such mail has no early delay notice.
func (d *destination) await(j *job, wait *budget.Wait) {
	if d.e.closing() {
		d.e.release(j, 0)
		return
	}
	now := time.Now()
	outcomes := j.each(func(r *queue.Recipient) queue.Outcome {
		o := d.deferral(j, r, now)
		o.Reply, o.NotAnAttempt, o.WaitsFor, o.RetryIn = connect.OverBudgetReply(wait), true, wait.For, wait.In
		o.Scope = string(upstream.ScopeHost)
		return o
	})
	d.e.leave(j, j.rcpts, outcomes, nil)
}

// takeTurns gives a turn to the recipients that wait for a budget, now that no way is left for them.
func (e *Engine) takeTurns(rcpts []queue.Recipient, outcomes []queue.Outcome) {
	var turn budget.Wait
	for i := range outcomes {
		o := &outcomes[i]
		if !budget.IsWay(o.WaitsFor) {
			continue
		}
		if o.WaitsFor != turn.For || i == 0 {
			turn = e.cfg.Budgets.Turn(o.WaitsFor, len(rcpts), waited(rcpts))
			turn.For = o.WaitsFor
		}
		if o.RetryIn = turn.In; o.NotAnAttempt {
			o.Reply = connect.OverBudgetReply(&turn)
		}
	}
}
