package check

import (
	"context"
	"time"

	"postern/cmd/postern/screen"
	"postern/relay/delivery"
	"postern/relay/smtp"
)

var mxKinds = []kind{
	{"mx.ok", OK, "A mail host of the domain answers. No mail was sent.", ""},
	{"mx.null", Failed, "The domain takes no mail, or there is none of that name: mail to it fails.", "ask the recipients for another address"},
	{"mx.lookup", Failed, "DNS gives no answer about the domain, so mail to it waits.",
		"look at the resolver of this machine; if others are found, the domain's name servers are at fault"},
	{"mx.address", Failed, "A mail host of the domain has no address or a private one, or its MX records name no host, so mail does not go there.",
		"tell the domain's postmaster; hosts of your own network are reached by an upstream only"},
	{"mx.unreachable", Warning, "A mail host of the domain cannot be reached.",
		"when no host of any domain can be, port 25 is closed at your hosting company: ask it to open the port, or use an upstream"},
	{"mx.refuses", Warning, "A mail host of the domain refuses to talk to this server.",
		"what it says may name a block list with this server's address, and how to get off it"},
	{"mx.self", Failed, "This server is a mail host of the domain, so mail to it would go round.",
		"take this server out of the domain's MX records, or send by an upstream that knows where its mailboxes are"},
}

// mxTime bounds what is asked about one domain.
const mxTime = 40 * time.Second

func (c *checkup) lookAtMX(ctx context.Context, r *report) {
	prober := c.prober()
	r.each(ctx, len(c.opts.MX), func(ctx context.Context, i int, r *report) {
		ctx, cancel := context.WithTimeout(ctx, mxTime)
		defer cancel()
		for _, p := range prober.MX(ctx, c.opts.MX[i]) {
			c.mailHost(r, c.opts.MX[i], p)
		}
	})
}

func (c *checkup) mailHost(r *report, domain string, p delivery.Probe) {
	subject := "mx " + domain
	if p.Err == nil {
		r.add("mx.ok", subject, "%s (%s) answers, %s", p.Host, p.Addr.Addr(), orClear(p.TLS))
		return
	}
	id := "mx.refuses"
	switch {
	case p.Stage == delivery.StageLookup && p.Permanent && (p.Host == "" || p.Host == domain):
		id = "mx.null"
	case p.Stage == delivery.StageLookup && p.Permanent, p.Stage == smtp.StageConnect && p.Permanent:
		id = "mx.address"
	case p.Stage == delivery.StageLookup:
		id = "mx.lookup"
	case p.Stage == delivery.StageLoop:
		id = "mx.self"
	case p.Stage == smtp.StageConnect:
		id = "mx.unreachable"
	}
	r.add(id, subject, "%s: %v", screen.OrDash(p.Host), p.Err)
}
