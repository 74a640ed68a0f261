package check

import (
	"context"
	"slices"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/route"
)

var dkimKinds = []kind{
	{"dkim.ok", health.OK, "", ""},
	{"dkim.none", health.Warning, "A sender domain has no DKIM key, so its mail goes unsigned: large providers refuse it, or take it for spam.",
		"make keys with 'postern dkim add DOMAIN', and publish the records that it prints"},
	{"dkim.pending", health.Warning, "A DKIM key signs nothing until all name servers of the domain have its record.",
		"publish the record that 'postern dkim show DOMAIN' prints"},
	{"dkim.record", health.Failed, "The record of a DKIM key that signs is not as it has to be, so its signatures are not valid.",
		"publish the record that 'postern dkim show DOMAIN' prints, at all name servers of the domain"},
	{"dkim.unknown", health.Warning, "Name servers did not answer about the record of a DKIM key; a key that signs goes on.",
		"check the domain's name servers"},
	{"dkim.left", health.Warning, "The record of a DKIM key that signed until lately is not there: mail on its way does not verify.",
		"publish it again, and leave it until 'postern dkim list' says that it may be removed"},
	{"dkim.overdue", health.Warning, "A DKIM key has got older than it should, since the next one is not published.",
		"publish the record that 'postern dkim show DOMAIN' prints"},
	{"dkim.retired", health.Info, "A DKIM key is retired: its record may be removed.", ""},
	{"dkim.more", health.Info, "There are more DKIM keys than are checked.", ""},
}

// mostKeys is how many DKIM keys are looked at.
const mostKeys = 100

// begun are the keys that sign mail of a domain, or are to.
func (v *mailView) begun(domain string) []dkim.Key {
	list := slices.Clone(v.dkim)
	for i := range list {
		if list[i].Gone = false; list[i].State == keys.Pending {
			list[i].State = keys.Active
		}
	}
	return dkim.Find(keys.SignersOf(list), domain)
}

func (c *checkup) lookAtDKIM(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("DKIM", "%v", err)
		return
	}
	domains := v.senderDomains()
	for _, domain := range domains[:min(len(domains), mostDomains)] {
		c.dkimKeys(r, v, domain)
	}
	list := v.dkim
	if len(list) > mostKeys {
		defer r.add("dkim.more", "DKIM", "%d of %d were looked at", mostKeys, len(list))
		list = list[:mostKeys]
	}
	r.each(ctx, len(list), func(ctx context.Context, i int, r *report) { c.dkimKey(ctx, r, list[i]) })
}

// dkimKeys looks whether a sender domain has a key for each way that its mail may take.
func (c *checkup) dkimKeys(r *report, v *mailView, domain string) {
	modes := map[string]dkim.Mode{route.MX: dkim.Mode(c.cfg.Delivery.DKIM)}
	for i := range v.upstreams {
		modes[v.upstreams[i].Name] = v.upstreams[i].DKIM
	}
	begun := v.begun(domain)
	for _, way := range v.ways(domain) {
		switch mode := modes[way]; {
		case mode == dkim.Off || mode == "" || len(mode.Of(begun)) > 0:
		case len(begun) == 0:
			r.add("dkim.none", "domain "+domain, "no key signs its mail by %s", way)
			return
		default:
			r.add("dkim.none", "domain "+domain, "no %s key, and its mail by %s is signed by no other", dkim.RSA, way)
			return
		}
	}
}

func (c *checkup) dkimKey(ctx context.Context, r *report, k keys.Key) {
	subject := "key " + k.Selector + " of " + k.Domain
	if k.State == keys.Retired {
		r.add("dkim.retired", subject, "%s, retired since %s", k.Name(), screen.LocalTime(k.Since))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	wrong, err := c.receiver().Published(ctx, k)
	switch {
	case err != nil && k.State != keys.Pending:
		r.add("dkim.unknown", subject, "%v", err)
	case k.State == keys.Pending && err == nil && wrong == "":
		r.add("dkim.ok", subject, "it is published, and will sign within minutes")
	case k.State == keys.Pending && err != nil:
		r.publish("dkim.pending", subject, k.Zone(), "%v", err)
	case k.State == keys.Pending:
		r.publish("dkim.pending", subject, k.Zone(), "%s", wrong)
	case k.State == keys.Retiring && wrong != "":
		r.publish("dkim.left", subject, k.Zone(), "%s", wrong)
	case k.State == keys.Retiring:
		r.add("dkim.ok", subject, "it signed until %s, and its record is there", screen.LocalTime(k.Since))
	case wrong != "":
		r.publish("dkim.record", subject, k.Zone(), "%s", wrong)
	case k.EveryDays > 0 && c.now().After(k.Rotates()):
		r.add("dkim.overdue", subject, "it signs since %s, and should for %s", k.Since.Local().Format(time.DateOnly), screen.Count(k.EveryDays, "day"))
	default:
		r.add("dkim.ok", subject, "it signs (%s)", k.Algorithm)
	}
}
