package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/cmd/postern/screen"
	"postern/relay/upstream/budget"
)

// budgetView is what is used of one limit of an upstream's budget, as --json prints it.
type budgetView struct {
	Limit     string           `json:"limit"`
	Used      int64            `json:"used"`
	Left      int64            `json:"left"`
	Nodes     []budget.Portion `json:"nodes,omitempty"`
	FreeAt    *time.Time       `json:"free_at,omitempty"`    // the first of what was used
	WaitsFrom *time.Time       `json:"waits_from,omitempty"` // mail waits for it since
	Waiting   int64            `json:"waiting"`              // recipients, for the upstream's budget
}

func budgetViews(list []budget.Usage) (views []budgetView) {
	for i := range list {
		u := &list[i]
		v := budgetView{Limit: u.String(), Used: u.Used(), Left: max(u.Max-u.Used(), 0), Nodes: u.Portions, Waiting: u.Waiting}
		if !u.FreeAt.IsZero() && u.Window > 0 {
			v.FreeAt = &u.FreeAt
		}
		if !u.WaitsFrom.IsZero() {
			v.WaitsFrom = &u.WaitsFrom
		}
		views = append(views, v)
	}
	return views
}

// printBudget shows what is used of a budget, if there is one.
func (a *app) printBudget(list []budget.Usage) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	t := screen.Table{Head: []string{"BUDGET", "USED", "LEFT", "HELD BY", "NEXT FREE", "WAITS SINCE", "WAITING"}}
	for _, v := range budgetViews(list) {
		var nodes []string
		for _, p := range v.Nodes {
			name := p.Node
			if name == "" {
				name = "a dead node"
			}
			nodes = append(nodes, fmt.Sprintf("%s %d", screen.Printable(name), p.N))
		}
		t.Add(v.Limit, strconv.FormatInt(v.Used, 10), strconv.FormatInt(v.Left, 10), screen.OrDash(strings.Join(nodes, ", ")),
			momentText(v.FreeAt), momentText(v.WaitsFrom), strconv.FormatInt(v.Waiting, 10))
	}
	return t.Print(a.stdout)
}

func momentText(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return screen.LocalTime(*t)
}

// budgetsBelow names the limits for which mail waits.
func (a *app) budgetsBelow(ctx context.Context, users *accounts) error {
	list, err := users.upstreams(nil).Budgets(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		if u := &list[i]; u.Waiting > 0 && u.Window > 0 && !u.WaitsFrom.IsZero() {
			fmt.Fprintf(a.stdout, "%d recipients wait for the budget of upstream %s since %s: %s\n", u.Waiting, u.Upstream, screen.LocalTime(u.WaitsFrom), u.String())
		}
	}
	return nil
}
