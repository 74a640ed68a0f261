package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"postern/cmd/postern/screen"
	"postern/relay/upstream/budget"
)

// printBudget shows what is used of a budget.
func (a *app) printBudget(u budget.Usage) error {
	if u.Err != nil {
		_, err := fmt.Fprintf(a.stdout, "the budget cannot be reckoned, so mail waits: %v\n", u.Err)
		return err
	}
	t := screen.Table{Head: []string{"BUDGET", "USED", "LEFT", "NEXT FREE"}}
	for _, l := range u.Limits {
		t.Add(l.Text, strconv.FormatInt(l.Used, 10), strconv.FormatInt(l.Left, 10), momentText(l.FreeAt))
	}
	if err := t.Print(a.stdout); err != nil {
		return err
	}
	return a.printWaiting(u)
}

func momentText(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return screen.LocalTime(*t)
}

// printWaiting says how many wait for a budget, if any do.
func (a *app) printWaiting(u budget.Usage) (err error) {
	if u.Waiting > 0 {
		_, err = fmt.Fprintf(a.stdout, "%d recipients wait for the budget of upstream %s; the turn of the last is %s\n", u.Waiting, u.Upstream, momentText(u.LastTurn))
	}
	return err
}

// budgetsBelow names the upstreams for whose budget mail waits.
func (a *app) budgetsBelow(ctx context.Context, users *accounts) error {
	list, err := users.upstreams(nil).Budgets(ctx)
	for _, u := range list {
		if err == nil {
			err = a.printWaiting(u)
		}
	}
	return err
}
