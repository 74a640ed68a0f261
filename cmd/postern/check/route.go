package check

import (
	"context"
	"slices"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/route"
)

var routeKinds = []kind{
	{"route.ok", health.OK, "", ""},
	{"route.none", health.Failed, "There is no route, so accepted mail waits.", "add one with 'postern route add'"},
	{"route.no-default", health.Warning, "There is no default route, so mail that no rule matches waits.",
		"add one with 'postern route add --via', unless the rules cover all mail"},
	{"route.gone", health.Failed, "A route names an upstream that does not exist.", "remove the route, or add the upstream"},
	{"route.hidden", health.Warning, "A route is never used, for one before it matches all its mail.", "put it first with 'postern route move', or remove it"},
	{"route.unused", health.Info, "No route names the upstream.", ""},
	{"route.paused", health.Warning, "An upstream is paused, so its mail waits.", "end the pause with 'postern upstream resume'"},
}

func (c *checkup) lookAtRoutes(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("routes", "%v", err)
		return
	}
	if len(v.rules) == 0 {
		r.add("route.none", "routes", "none")
	} else if !slices.ContainsFunc(v.rules, route.Rule.IsDefault) {
		r.add("route.no-default", "routes", "%s, none for all mail", screen.Count(len(v.rules), "route"))
	} else {
		r.add("route.ok", "routes", "%d in all", len(v.rules))
	}
	known, used := map[string]bool{}, map[string]bool{}
	for _, a := range v.accounts {
		known[a.Name] = true
	}
	for i, rule := range v.rules {
		for _, name := range rule.Via {
			used[name] = true
			if name != route.MX && !known[name] {
				r.add("route.gone", "routes", "route %d names %q", rule.ID, name)
			}
		}
		if by := route.HiddenBy(v.rules, i); by != nil {
			r.add("route.hidden", "routes", "route %d comes after route %d, which matches all its mail", rule.ID, by.ID)
		}
	}
	for _, a := range v.accounts {
		if !used[a.Name] {
			r.add("route.unused", "routes", "none names upstream %s", a.Name)
		}
		if a.PausedAt != nil {
			r.add("route.paused", "upstream "+a.Name, "paused since %s", screen.LocalTime(*a.PausedAt))
		}
	}
}
