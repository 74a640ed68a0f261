package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/cmd/postern/screen"
	"postern/relay/upstream/breaker"
)

// breakerView is the breaker of an upstream as programs read it.
type breakerView struct {
	Upstream  string     `json:"upstream"`
	State     string     `json:"state"`          // closed, open or half-open
	Since     time.Time  `json:"since"`          // that it is open, or closed
	Node      string     `json:"node,omitempty"` // that opened it
	Stage     string     `json:"stage,omitempty"`
	Scope     string     `json:"scope,omitempty"`
	Reply     string     `json:"reply,omitempty"` // the last
	NextProbe *time.Time `json:"next_probe,omitempty"`
	Prober    string     `json:"prober,omitempty"` // the node that probes now
}

// breakerViews are the breakers of the upstreams that ever opened, by upstream.
type breakerViews []breakerView

func readBreakers(ctx context.Context, pool *pgxpool.Pool) (views breakerViews, err error) {
	list, err := breaker.List(ctx, pool)
	for _, s := range list {
		if s.Opening == 0 {
			continue
		}
		v := breakerView{Upstream: s.Upstream, State: "closed", Since: s.Since, Node: s.Node, Stage: s.Stage, Scope: s.Scope, Reply: s.Reply}
		if s.Open {
			v.State, v.NextProbe, v.Prober = "open", &s.NextProbe, s.Prober
			if s.Prober != "" {
				v.State = "half-open"
			}
		}
		views = append(views, v)
	}
	return views, err
}

// of is the breaker of an upstream, nil if it never opened.
func (l breakerViews) of(upstream string) *breakerView {
	if i := slices.IndexFunc(l, func(v breakerView) bool { return v.Upstream == upstream }); i >= 0 {
		return &l[i]
	}
	return nil
}

// open reports that mail waits for the upstream; v may be nil.
func (v *breakerView) open() bool { return v != nil && v.State != "closed" }

// text is an open breaker for people.
func (v *breakerView) text() string {
	return fmt.Sprintf("upstream %s is open since %s (%s); next probe: %s", v.Upstream, screen.LocalTime(v.Since), v.cause(), v.probe())
}

// cause is why it opened, or the last probe did not get through.
func (v *breakerView) cause() string {
	return fmt.Sprintf("%s, %s: %s", v.Stage, v.Scope, shorten(v.Reply, 200))
}

// probe is when it is probed.
func (v *breakerView) probe() string {
	if v.Prober != "" {
		return "now, by node " + v.Prober
	}
	return screen.LocalTime(*v.NextProbe)
}

// printOpen prints the open ones.
func (l breakerViews) printOpen(a *app) {
	for i := range l {
		if l[i].open() {
			fmt.Fprintln(a.stdout, screen.Printable(l[i].text()))
		}
	}
}

// probeNow has an upstream probed whose breaker is open, and reports whether it is.
func (a *app) probeNow(ctx context.Context, users *accounts, name string) (open bool, err error) {
	breakers, err := readBreakers(ctx, users.pool)
	if err != nil || !breakers.of(name).open() {
		return false, err
	}
	if err := breaker.Hurry(ctx, users.pool, name); err != nil {
		return true, err
	}
	_, err = fmt.Fprintf(a.stdout, "upstream %s is open, and is probed now; 'postern upstream show %[1]s' has the result\n", name)
	return true, err
}
