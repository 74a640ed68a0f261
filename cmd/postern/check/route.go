package check

import (
	"context"
	"slices"

	"postern/admin/health"
	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/relay/route"
)

var routeKinds = []kind{
	{"route.ok", health.OK, "", ""},
	{"route.none", health.Failed, "There is no route, so accepted mail waits.", "add one with 'postern route add'"},
	{"route.no-default", health.Warning, "There is no default route, so mail that no rule matches waits.",
		"add one with 'postern route add --via', unless the rules cover all mail"},
	{"route.gone", health.Failed, "A route names an upstream that does not exist.", "remove the route, or add the upstream"},
	{"route.user-gone", health.Warning, "A route is for a user who does not exist.", "remove it with 'postern route remove'"},
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
	} else if !slices.ContainsFunc(v.rules, isDefault) {
		r.add("route.no-default", "routes", "%d rules, none for all mail", len(v.rules))
	} else {
		r.add("route.ok", "routes", "%d in all", len(v.rules))
	}
	known, used := map[string]bool{}, map[string]bool{}
	for _, a := range v.accounts {
		known[a.Name] = true
	}
	for _, rule := range v.rules {
		for _, name := range rule.Upstreams {
			used[name] = true
			if !known[name] {
				r.add("route.gone", "routes", "route %d names %q", rule.ID, name)
			}
		}
		if rule.UserID != 0 && !v.more && !slices.ContainsFunc(v.users, func(u auth.User) bool { return u.ID == rule.UserID }) {
			r.add("route.user-gone", "routes", "route %d", rule.ID)
		}
	}
	for _, a := range v.accounts {
		if !used[a.Name] {
			r.add("route.unused", "routes", "upstream %s", a.Name)
		}
		if a.PausedAt != nil {
			r.add("route.paused", "upstream "+a.Name, "since %s", screen.LocalTime(*a.PausedAt))
		}
	}
}

func isDefault(r route.Rule) bool {
	return r.UserID == 0 && r.SenderDomain == "" && r.RecipientDomain == ""
}
