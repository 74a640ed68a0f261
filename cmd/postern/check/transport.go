package check

import (
	"context"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/trust"
)

var transportKinds = []kind{
	{"transport.ok", health.OK, "", ""},
	{"transport.ending", health.Warning, "The MTA-STS policy of a recipient domain ends within two days, or has ended, and cannot be renewed: then it protects no mail.",
		"see that this machine reaches https://mta-sts.DOMAIN, tell the domain's postmaster, and try 'postern transport refresh DOMAIN'"},
	{"transport.override", health.Info, "An override takes the place of what a recipient domain demands of its mail hosts.",
		"end it with 'postern transport override DOMAIN --clear' when mail goes without it"},
	{"transport.more", health.Info, "There are more overrides, or policies that end, than are shown.", ""},
}

const (
	endsSoon     = 2 * 24 * time.Hour // for a policy that cannot be renewed
	mostPolicies = 20                 // that are shown, and as many overrides
)

func (c *checkup) lookAtTransport(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("transport", "%v", err)
		return
	}
	for _, k := range v.ending[:min(len(v.ending), mostPolicies)] {
		ends, cannot := "ends", "cannot"
		if k.Mode == "" {
			ends, cannot = "ended", "could not"
		}
		r.add("transport.ending", "domain "+k.Domain, "its policy %s on %s, and %s be renewed since %s: %s",
			ends, screen.LocalTime(k.ExpiresAt), cannot, screen.LocalTime(*k.FailingSince), k.LastError)
	}
	for _, o := range v.overrides[:min(len(v.overrides), mostPolicies)] {
		r.add("transport.override", "domain "+o.Domain, "%s", trust.OverrideText(&o))
	}
	switch {
	case len(v.ending) > mostPolicies || len(v.overrides) > mostPolicies:
		r.add("transport.more", "transport", "the first %d are shown; 'postern transport show' lists all", mostPolicies)
	case len(v.ending)+len(v.overrides) == 0 && v.byMX(""):
		r.add("transport.ok", "transport", "no override, and no MTA-STS policy that cannot be renewed in time")
	}
}
