package connect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/transport"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// Bounds of one attempt, over all its ways. RFC 5321 section 5.1 has a client try the other
// hosts of a destination; these keep a destination with many of them from taking for ever.
const (
	MaxTries    = 5                // addresses that are dialled
	maxSessions = 3                // conversations that come past EHLO
	attemptTime = 10 * time.Minute // after it no further host or way is tried
)

// Spent is what an attempt has used of its bounds.
type Spent struct {
	Tries    int
	Sessions int
	Begun    time.Time // zero before
}

// Exhausted reports that the attempt goes nowhere else.
func (s *Spent) Exhausted() bool {
	return s.Tries >= MaxTries || s.Sessions >= maxSessions || !s.Begun.IsZero() && time.Since(s.Begun) >= attemptTime
}

// Walk goes through the hosts of a destination, in their order, one address after
// the other. It is a value: a copy goes on from the same place. A connection keeps
// the walk that led to it, and a message for which its host is the wrong one now goes
// on from there.
type Walk struct {
	d        *Dialer
	progress *atomic.Uint64    // of a delivery; nil for probes
	trace    *trace            // of a probe; nil for deliveries
	token    oauth.Token       // of an upstream that has a grant; zero: not yet
	domain   string            // mx: the domain's key
	Upstream *upstream.Account // nil for MX
	anyTLS   bool              // see Watch
	demands  transport.Domain  // of an MX: what holds for all its hosts; without a name until it is found
	host     exchanger         // the last one looked up
	policy   transport.Policy  // of host
	addrs    []netip.Addr      // further ones of host
	hosts    []exchanger       // that come after host
	missed   bool              // a host before it, or TLS with it, could not be had now, or a proof
	asked    time.Time         // when DNS was asked about domain

	Spent
}

// walkTo begins a walk to an upstream or, where up is nil, to the mail hosts of domain.
func (d *Dialer) walkTo(ctx context.Context, domain string, up *upstream.Account) (Walk, *Trouble) {
	w := Walk{d: d, domain: domain, Upstream: up, asked: time.Now(), Spent: Spent{Begun: time.Now()}}
	if up != nil {
		w.hosts = []exchanger{hostOf(up)}
		return w, w.unsafe()
	}
	var t *Trouble
	w.hosts, t = d.exchangers(ctx, domain)
	return w, t
}

// site names where a domain's mail is taken: its hosts of the best preference. Of too many of
// them the walk has only some, each time others: the domain is a site of its own then.
func (w *Walk) site() string {
	var best []string
	for _, x := range w.hosts {
		if x.preference == w.hosts[0].preference {
			best = append(best, strings.ToLower(x.host))
		}
	}
	if len(best) >= maxHosts {
		return w.domain
	}
	slices.Sort(best)
	return strings.Join(slices.Compact(best), " ")
}

// hostOf is the one host of an upstream.
func hostOf(up *upstream.Account) exchanger {
	x := exchanger{host: strings.TrimSuffix(up.Host, "."), local: up.Host}
	if addr, err := netip.ParseAddr(up.Host); err == nil {
		x.literal = addr.Unmap()
	}
	return x
}

// unsafe is the trouble of an upstream whose credentials would go out unprotected.
func (w *Walk) unsafe() *Trouble {
	up := w.Upstream
	if up.Username == "" || up.Verified() {
		return nil
	}
	return &Trouble{
		Reply: smtp.Temporary(451, 7, 4, "upstream "+up.Name+" has credentials but no verified TLS"),
		Err:   fmt.Errorf("upstream %s: credentials with TLS mode %q", up.Name, up.TLS),
	}
}

// Again is the walk of a message that came to the connection to which the walk has led: only
// that connection counts, and what the message's attempt had spent, not what was tried before it.
func (w Walk) Again(s Spent) Walk {
	w.Spent = s
	w.Tries++
	w.Sessions++
	w.token = oauth.Token{} // it may have expired
	return w
}

// HasNext reports that there is somewhere to go.
func (w *Walk) HasNext() bool { return (len(w.addrs) > 0 || len(w.hosts) > 0) && !w.Exhausted() }

// Next begins a conversation with the next address that can be reached. The trouble is the
// most informative of those met on the way.
func (w *Walk) Next(ctx context.Context) (*Conn, *Trouble) {
	ctx, cancel := context.WithDeadline(ctx, w.Begun.Add(attemptTime))
	defer cancel()
	if t := w.fetchToken(ctx); t != nil {
		return nil, t
	}
	before := w.Spent
	var worst *Trouble
	for w.HasNext() && (worst == nil || ctx.Err() == nil) {
		var c *Conn
		var t *Trouble
		if len(w.addrs) > 0 {
			c, t = w.try(ctx)
		} else {
			w.missed = w.missed || worst != nil && !worst.Permanent
			t = w.lookUp(ctx)
		}
		if c != nil {
			return c, nil
		}
		if t != nil && (isOurs(t.Err) || t.Wait != nil) {
			return nil, t // says nothing about this host, nor about others
		}
		if t != nil && t.outranks(worst) {
			worst = t
		}
	}
	if worst == nil { // as when this process stood still for minutes
		return nil, &Trouble{Reply: smtp.Temporary(451, 4, 1, "the time for this attempt is over"), Err: context.DeadlineExceeded}
	}
	if len(w.addrs) > 0 || len(w.hosts) > 0 {
		worst.Closed = false // as far as they were asked
	}
	worst.Spent = Spent{w.Tries - before.Tries, w.Sessions - before.Sessions, before.Begun}
	return nil, worst
}

// try begins a conversation with the next address of the host.
func (w *Walk) try(ctx context.Context) (*Conn, *Trouble) {
	to := Target{Host: w.host.host, Addr: netip.AddrPortFrom(w.addrs[0], uint16(w.port())), Upstream: w.Upstream, token: w.token, policy: w.policy, progress: w.progress, trace: w.trace}
	w.addrs = w.addrs[1:]
	leave, crowd := w.d.enter(ctx, to)
	if crowd != nil {
		w.trace.trouble(to.Addr, crowd)
		return nil, crowd
	}
	var c *Conn
	defer func() { // also after a panic
		if c == nil {
			leave()
		}
	}()
	w.Tries++
	var t *Trouble
	c, t = w.d.try(ctx, &to)
	w.token = to.token
	if t != nil {
		w.trace.trouble(to.Addr, t)
		if t.greeted {
			w.Sessions++
		}
		return nil, t
	}
	w.Sessions++
	w.missed = w.missed || c.failedTLS
	c.Walk = *w
	c.leave = leave
	return c, nil
}

// lookUp takes the next host and looks up its addresses.
func (w *Walk) lookUp(ctx context.Context) *Trouble {
	w.host, w.hosts = w.hosts[0], w.hosts[1:]
	found, err := w.d.addresses(ctx, w.host, w.d.origin(w.Upstream))
	if t := w.nowhere(found.List, err); t != nil {
		w.trace.trouble(netip.AddrPort{}, t)
		return t
	}
	if w.d.anySelf(found.List, w.port()) {
		w.hosts = nil // hosts of the same or worse preference would loop (RFC 5321 section 5.1)
		return w.loop()
	}
	if t := w.demand(ctx, found); t != nil {
		return t
	}
	w.addrs = found.List
	w.trace.step(Step{Stage: StageLookup, Text: textOf(w.addrs)})
	return nil
}

func (w *Walk) port() int {
	if w.Upstream != nil {
		return w.Upstream.Port
	}
	return w.d.cfg.MXPort
}

// nowhere is the trouble of a host without addresses.
func (w *Walk) nowhere(addrs []netip.Addr, err error) *Trouble {
	switch {
	case len(addrs) > 0:
		return nil
	case w.Upstream != nil, err != nil && !errors.Is(err, resolver.ErrNone):
		return lookupTrouble(w.host.host, err) // an upstream's NXDOMAIN too: an administrator mends it
	case w.host.host == w.domain:
		return failure(smtp.Permanent(550, 1, 2, "domain "+w.domain+" does not exist or has no mail host"), err)
	}
	return failure(smtp.Permanent(550, 4, 4, "the mail hosts of "+w.domain+" have no address"), err)
}

// loop is the trouble of a host that is this server.
func (w *Walk) loop() *Trouble {
	if w.Upstream != nil {
		return &Trouble{
			Reply: smtp.Temporary(451, 4, 6, "upstream "+w.Upstream.Name+" is this server itself"),
			Err:   fmt.Errorf("upstream %s: %s is a listener of this server", w.Upstream.Name, w.host.host),
		}
	}
	return loop(w.domain)
}

// only leaves the walk one of its hosts.
func (w Walk) only(i int) Walk {
	w.hosts = slices.Clone(w.hosts[i : i+1])
	return w
}

// LeaveHost goes on to the next host: no further address of this one is tried.
func (w *Walk) LeaveHost() { w.addrs = nil }
