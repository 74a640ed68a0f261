package check

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/admin/health"
	"postern/internal/panics"
)

// area is a part of the check that --only can choose.
type area struct {
	name   string
	online bool // asks others than this machine and its database
	look   func(c *checkup, ctx context.Context, r *report)
}

// areas are all parts, in the order in which they are told.
func areas() []area {
	return []area{
		{"config", false, (*checkup).lookAtConfig},
		{"certificate", false, (*checkup).lookAtCertificates},
		{"port", false, (*checkup).lookAtPorts},
		{"admin", false, (*checkup).lookAtAdmin},
		{"database", false, (*checkup).lookAtDatabase},
		{"account", false, (*checkup).lookAtAccounts},
		{"route", false, (*checkup).lookAtRoutes},
		{"key", false, (*checkup).lookAtKeys},
		{"transport", false, (*checkup).lookAtTransport},
		{"upstream", true, (*checkup).lookAtUpstreams},
		{"dns", true, (*checkup).lookAtDNS},
		{"spf", true, (*checkup).lookAtSenderDomains},
		{"dkim", true, (*checkup).lookAtDKIM},
		{"mx", true, (*checkup).lookAtMX},
		{"relay", false, (*checkup).lookFromOutside},
	}
}

// byNode reports an area that a running node looks at as well.
func (a area) byNode() bool {
	return !slices.Contains([]string{"config", "port", "admin", "account", "dns", "spf", "mx", "relay"}, a.name)
}

// Areas are the names that --only takes.
func Areas() (names []string) {
	for _, a := range areas() {
		names = append(names, a.name)
	}
	return names
}

// AreaNames is Areas in a sentence.
func AreaNames() string {
	list := Areas()
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}

// checkKinds are findings about the check itself.
var checkKinds = []kind{
	{"check.unfinished", health.Warning, "An area did not finish in time; its findings until then are shown.",
		"see what it waits for, or run the area alone with --only"},
	{"check.skipped", health.Skipped, "An area needs something that another finding says is missing.", ""},
}

// kinds are all kinds of findings by name.
var kinds = sync.OnceValue(func() map[string]kind {
	all := map[string]kind{}
	for _, k := range kindList() {
		all[k.ID] = k
	}
	return all
})

// shared are kinds of findings that a running node has too.
func shared(list []health.Kind) (kinds []kind) {
	for _, k := range list {
		kinds = append(kinds, kind(k))
	}
	return kinds
}

// kindList is in the order of the areas.
func kindList() []kind {
	return slices.Concat(configKinds, shared(health.SpoolKinds()), certificateKinds, shared(health.CertificateKinds()),
		acmeKinds, shared(health.RenewalKinds()), portKinds, adminKinds, databaseKinds, roleKinds, nodeKinds, vacuumKinds, webhookKinds, roomKinds,
		accountKinds, routeKinds, keyKinds, transportKinds, upstreamKinds, dnsKinds, spfKinds, dkimKinds, mxKinds, relayKinds, checkKinds)
}

// grace is what an area gets to say that its time is over.
const grace = 3 * time.Second

// run looks at all that was asked for, concurrently, and returns what was found in the
// order of the areas. An area that hangs or fails keeps nothing of the others back.
func (c *checkup) run(ctx context.Context) []health.Finding {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	c.over = make(chan struct{})
	chosen := c.chosen()
	found := make([][]health.Finding, len(chosen))
	var all panics.Group
	for i, a := range chosen {
		all.Go(func() { found[i] = c.lookAt(ctx, a) })
	}
	all.Wait()
	close(c.over)
	c.background.Wait()
	return slices.Concat(found...)
}

// chosen are the areas to look at. The mail hosts of a domain are only tried when one
// is named. A configuration that cannot be used is always told.
func (c *checkup) chosen() (list []area) {
	for _, a := range areas() {
		switch {
		case a.name == "config" && c.bad != nil:
			list = append(list, a)
		case len(c.opts.Only) > 0 && !slices.Contains(c.opts.Only, a.name):
		case a.online && c.opts.Offline, c.running && !a.byNode():
		case a.name == "mx" && len(c.opts.MX) == 0:
		default:
			list = append(list, a)
		}
	}
	return list
}

func (c *checkup) lookAt(ctx context.Context, a area) []health.Finding {
	r := &report{}
	if c.bad != nil && a.name != "config" {
		r.skip(a.name, "the configuration file cannot be used")
		return r.close()
	}
	done := make(chan error, 1)
	go func() {
		done <- guard.Try("check", func() error { a.look(c, ctx, r); return nil })
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(grace):
			r.add("check.unfinished", a.name, "not done after %s", c.limit)
		}
	}
	if err != nil {
		r.skip(a.name, "%v", err)
	}
	return r.close()
}

// skip says that an area could not be looked at.
func (r *report) skip(subject, format string, args ...any) {
	r.add("check.skipped", subject, "not checked: %s", fmt.Sprintf(format, args...))
}
