package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"time"

	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Stages of a Probe beside those of the conversation.
const (
	StageLookup smtp.Stage = "lookup" // DNS
	StageLoop   smtp.Stage = "loop"   // it is this server itself
	StageToken  smtp.Stage = "token"  // of an upstream account that has a grant
)

// Prober begins conversations as deliveries do, up to where mail would be sent, and
// ends them with QUIT. It sends no mail. Of a Config it uses what concerns dialling:
// DNS, Hello, Self, Tokens, Timeouts, ConnectTime, LookupTime, MXPort and AllowPrivateMX. It
// is safe for concurrent use.
type Prober struct{ d *dialer }

// Probe is how far a conversation came.
type Probe struct {
	Host    string // that was talked to, as far as one was
	Addr    netip.AddrPort
	TLS     string    // facts, "" in clear
	Expires time.Time // of the certificate that was shown; zero in clear

	// Err is why no mail could be sent, nil when it could; Stage says where that
	// was, and Reply what the server said if it refused.
	Err   error
	Stage smtp.Stage
	Reply smtp.Reply
	// Permanent says that mail would fail and not wait.
	Permanent bool
}

// NewProber makes a Prober.
func NewProber(cfg Config) *Prober {
	cfg = cfg.withDefaults()
	return &Prober{newDialer(&cfg)}
}

// Upstream converses with an upstream: TLS as configured, and its account.
func (p *Prober) Upstream(ctx context.Context, up *upstream.Account) Probe {
	c, t := p.d.open(ctx, "", up)
	return p.finish(ctx, c, t)
}

// MX converses with each mail host of a domain; if there is none, it returns one Probe that
// says why. The hosts are in the order of their preference, up to this server itself if it
// is one of them: deliveries go no further.
func (p *Prober) MX(ctx context.Context, domain string) []Probe {
	all, t := p.d.walkTo(ctx, domain, nil)
	if t != nil {
		return []Probe{p.finish(ctx, nil, t)}
	}
	hosts := all.hosts
	probes := make([]Probe, len(hosts))
	done := make(chan struct{})
	for i := range hosts {
		go func() {
			one := all.only(i)
			c, t := one.next(ctx)
			probes[i] = p.finish(ctx, c, t)
			if probes[i].Host == "" {
				probes[i].Host = hosts[i].host
			}
			done <- struct{}{}
		}()
	}
	for range hosts {
		<-done
	}
	for i := 1; i < len(probes); i++ {
		if probes[i].Stage == StageLoop {
			return probes[:i]
		}
	}
	return probes
}

// finish ends a conversation and describes it.
func (p *Prober) finish(ctx context.Context, c *conn, t *trouble) Probe {
	if t != nil {
		probe := Probe{Host: t.host, Addr: t.addr, TLS: t.tls, Err: t.err, Stage: t.stage(), Permanent: t.permanent}
		var stage *smtp.StageError
		if errors.As(t.err, &stage) {
			probe.Reply = stage.Reply
		}
		if probe.Err == nil {
			probe.Err = errors.New(t.reply.Text)
		}
		return probe
	}
	probe := Probe{Host: c.host, Addr: c.addr, TLS: c.tls}
	if state := c.client.TLS(); state != nil {
		probe.Expires = firstEnd(state)
	}
	if err := c.client.Quit(ctx); err != nil {
		_ = c.client.Close() // it was to be closed anyway
	}
	return probe
}

// firstEnd is when the certificate that was shown ends.
func firstEnd(state *tls.ConnectionState) time.Time {
	if len(state.PeerCertificates) == 0 {
		return time.Time{}
	}
	return state.PeerCertificates[0].NotAfter
}

// stage says where the trouble was.
func (t *trouble) stage() smtp.Stage {
	var stage *smtp.StageError
	var dns *net.DNSError
	switch {
	case errors.As(t.err, &stage):
		return stage.Stage
	case errors.Is(t.err, errNoToken):
		return StageToken
	case isNoMechanism(t.err):
		return smtp.StageAuth
	case errors.As(t.err, &dns):
		return StageLookup
	}
	switch e := t.reply.Enhanced; [2]int{e.Subject, e.Detail} {
	case [2]int{7, 4}, [2]int{7, 5}:
		return smtp.StageTLS
	case [2]int{4, 3}, [2]int{1, 2}, [2]int{1, 10}:
		return StageLookup
	case [2]int{4, 6}:
		return StageLoop
	}
	return smtp.StageConnect
}
