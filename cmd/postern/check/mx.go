package check

import (
	"context"
	"strings"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/smtp"
	"postern/relay/transport"
)

var mxKinds = []kind{
	{"mx.ok", health.OK, "", ""},
	{"mx.null", health.Failed, "The domain takes no mail or does not exist.", "ask the recipients for another address"},
	{"mx.lookup", health.Failed, "DNS does not answer for the domain, so mail to it waits.", "check this machine's resolver, then the domain's name servers"},
	{"mx.address", health.Failed, "The MX records name no host, or one without a public address: mail does not go there.",
		"tell the domain's postmaster; your own network is reached by an upstream only"},
	{"mx.unreachable", health.Warning, "A mail host of the domain cannot be reached.",
		"if none of any domain can be, have the hosting company open port 25, or use an upstream"},
	{"mx.policy", health.Failed, "A mail host of the domain does not prove what the domain or an override demands, so it gets no mail.",
		"tell the domain's postmaster; until it is mended, see 'postern transport override --help'"},
	{"mx.refuses", health.Warning, "A mail host of the domain refuses this server.", "read its answer: it may name a block list, and how to get off it"},
	{"mx.self", health.Failed, "This server is a mail host of the domain, so mail to it would loop.",
		"correct the MX records, or send by an upstream that knows the mailboxes"},
}

// mxTime bounds what is asked about one domain.
const mxTime = 40 * time.Second

func (c *checkup) lookAtMX(ctx context.Context, r *report) {
	cfg := c.dialling(upstreamTime / 2)
	end, err := c.demands(ctx, &cfg)
	if err != nil {
		r.skip("mx", "what mail hosts have to prove: %v", err)
		return
	}
	defer end()
	prober := connect.NewProber(cfg)
	r.each(ctx, len(c.opts.MX), func(ctx context.Context, i int, r *report) {
		ctx, cancel := context.WithTimeout(ctx, mxTime)
		defer cancel()
		for _, p := range prober.MX(ctx, c.opts.MX[i]) {
			c.mailHost(r, c.opts.MX[i], p)
		}
	})
}

// demands has cfg find what mail hosts have to prove as the nodes do, until end.
func (c *checkup) demands(ctx context.Context, cfg *connect.Config) (end func(), err error) {
	if cfg.Policies = c.policies; cfg.Policies != nil {
		return func() {}, nil
	}
	url, err := c.databaseURL(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := c.dialer.OpenPool(ctx, url, "check", 1, database.PrepareNothing)
	if err != nil {
		return nil, err
	}
	finder := transport.New(transport.Config{DB: pool, DNS: cfg.DNS, Fetch: cfg.Fetcher(), Node: "postern check"})
	cfg.Policies = finder
	return func() {
		_ = finder.Close(context.WithoutCancel(ctx)) // nothing is left to do
		pool.Close()
	}, nil
}

func (c *checkup) mailHost(r *report, domain string, p connect.Probe) {
	subject := "mx " + domain
	if p.Err == nil {
		r.add("mx.ok", subject, "%s (%s) answers, %s", p.Host, p.Addr.Addr(), orClear(p.TLS))
		return
	}
	id := "mx.refuses"
	switch {
	case strings.HasPrefix(p.TLS, "- - refused "):
		id = "mx.policy"
	case p.Stage == connect.StageLookup && p.Permanent && (p.Host == "" || p.Host == domain):
		id = "mx.null"
	case p.Stage == connect.StageLookup && p.Permanent, p.Stage == smtp.StageConnect && p.Permanent:
		id = "mx.address"
	case p.Stage == connect.StageLookup:
		id = "mx.lookup"
	case p.Stage == connect.StageLoop:
		id = "mx.self"
	case p.Stage == smtp.StageConnect:
		id = "mx.unreachable"
	}
	r.add(id, subject, "%s: %v", screen.OrDash(p.Host), p.Err)
}
