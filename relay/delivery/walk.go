package delivery

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// Bounds of one attempt, over all its ways. RFC 5321 section 5.1 has a client try the other
// hosts of a destination; these keep a destination with many of them from taking for ever.
const (
	maxTries    = 5                // addresses that are dialled
	maxSessions = 3                // conversations that come past EHLO
	attemptTime = 10 * time.Minute // no further host or way is begun with after it
)

// spent is what an attempt has used of its bounds.
type spent struct {
	tries    int
	sessions int
	begun    time.Time // zero before
}

func (s *spent) exhausted() bool {
	return s.tries >= maxTries || s.sessions >= maxSessions || !s.begun.IsZero() && time.Since(s.begun) >= attemptTime
}

// walk goes through the hosts of a destination, in their order, one address after
// the other. It is a value: a copy goes on from the same place. A connection keeps
// the walk that led to it, and a message for which its host is the wrong one now goes
// on from there.
type walk struct {
	d        *dialer
	progress *atomic.Uint64    // of the worker; nil for probes
	trace    *trace            // of a probe; nil for workers
	token    oauth.Token       // of an upstream that has a grant; zero: not yet
	domain   string            // mx: the domain's key
	upstream *upstream.Account // nil for mx
	host     exchanger         // the last one looked up
	addrs    []netip.Addr      // further ones of host
	hosts    []exchanger       // that come after host

	spent
}

// walkTo begins a walk to an upstream or, where up is nil, to the mail hosts of domain.
func (d *dialer) walkTo(ctx context.Context, domain string, up *upstream.Account) (walk, *trouble) {
	w := walk{d: d, domain: domain, upstream: up, spent: spent{begun: time.Now()}}
	if up != nil {
		w.hosts = []exchanger{hostOf(up)}
		return w, w.unsafe()
	}
	var t *trouble
	w.hosts, t = d.exchangers(ctx, domain)
	return w, t
}

// hostOf is the one host of an upstream.
func hostOf(up *upstream.Account) exchanger {
	// One label is the name of a container or of a machine near by: no public name is so short.
	x := exchanger{host: strings.TrimSuffix(up.Host, "."), local: !strings.Contains(up.Host, ".")}
	if addr, err := netip.ParseAddr(up.Host); err == nil {
		x.literal = addr.Unmap()
	}
	return x
}

// unsafe is the trouble of an upstream whose credentials would go out unprotected.
func (w *walk) unsafe() *trouble {
	up := w.upstream
	if up.Username == "" || up.Verified() {
		return nil
	}
	return &trouble{
		reply: smtp.Temporary(451, 7, 4, "upstream "+up.Name+" has credentials but no verified TLS"),
		err:   fmt.Errorf("upstream %s: credentials with TLS mode %q", up.Name, up.TLS),
	}
}

// again is the walk of a message that came to the connection to which the walk has led: only
// that connection counts, and what the message's attempt had spent, not what was tried before it.
func (w walk) again(s spent) walk {
	w.spent = s
	w.tries++
	w.sessions++
	w.token = oauth.Token{} // it may have expired
	return w
}

// hasNext reports that there is somewhere to go.
func (w *walk) hasNext() bool { return (len(w.addrs) > 0 || len(w.hosts) > 0) && !w.exhausted() }

// next begins a conversation with the next address that can be reached. The trouble is the
// most informative of those met on the way.
func (w *walk) next(ctx context.Context) (*conn, *trouble) {
	ctx, cancel := context.WithDeadline(ctx, w.begun.Add(attemptTime))
	defer cancel()
	if t := w.fetchToken(ctx); t != nil {
		return nil, t
	}
	before := w.spent
	var worst *trouble
	for w.hasNext() && (worst == nil || ctx.Err() == nil) {
		var c *conn
		var t *trouble
		if len(w.addrs) > 0 {
			c, t = w.try(ctx)
		} else {
			t = w.lookUp(ctx)
		}
		if c != nil {
			return c, nil
		}
		if t != nil && (isOurs(t.err) || t.wait != nil) {
			return nil, t // says nothing about this host, nor about others
		}
		if t != nil && t.outranks(worst) {
			worst = t
		}
	}
	if worst == nil { // as when this process stood still for minutes
		return nil, &trouble{reply: smtp.Temporary(451, 4, 1, "the time for this attempt is over"), err: context.DeadlineExceeded}
	}
	if len(w.addrs) > 0 || len(w.hosts) > 0 {
		worst.closed = false // as far as they were asked
	}
	worst.spent = spent{w.tries - before.tries, w.sessions - before.sessions, before.begun}
	return nil, worst
}

// try begins a conversation with the next address of the host.
func (w *walk) try(ctx context.Context) (*conn, *trouble) {
	to := target{host: w.host.host, addr: netip.AddrPortFrom(w.addrs[0], uint16(w.port())), upstream: w.upstream, token: w.token, progress: w.progress, trace: w.trace}
	w.addrs = w.addrs[1:]
	leave, crowd := w.d.enter(ctx, to)
	if crowd != nil {
		return nil, crowd
	}
	var c *conn
	defer func() { // also after a panic
		if c == nil {
			leave()
		}
	}()
	w.tries++
	var t *trouble
	c, t = w.d.try(ctx, &to)
	w.token = to.token
	if t != nil {
		w.trace.trouble(to.addr, t)
		if t.greeted {
			w.sessions++
		}
		return nil, t
	}
	w.sessions++
	c.walk = *w
	c.leave = leave
	return c, nil
}

// lookUp takes the next host and looks up its addresses.
func (w *walk) lookUp(ctx context.Context) *trouble {
	w.host, w.hosts = w.hosts[0], w.hosts[1:]
	addrs, err := w.d.addresses(ctx, w.host, w.d.origin(w.upstream))
	if t := w.nowhere(addrs, err); t != nil {
		w.trace.trouble(netip.AddrPort{}, t)
		return t
	}
	if w.d.anySelf(addrs, w.port()) {
		w.hosts = nil // hosts of the same or worse preference would loop (RFC 5321 section 5.1)
		return w.loop()
	}
	w.addrs = addrs
	w.trace.step(Step{Stage: StageLookup, Text: textOf(addrs)})
	return nil
}

func (w *walk) port() int {
	if w.upstream != nil {
		return w.upstream.Port
	}
	return w.d.cfg.MXPort
}

// nowhere is the trouble of a host without addresses.
func (w *walk) nowhere(addrs []netip.Addr, err error) *trouble {
	switch {
	case len(addrs) > 0:
		return nil
	case w.upstream != nil, err != nil && !IsNotFound(err):
		return lookupTrouble(w.host.host, err) // an upstream's NXDOMAIN too: an administrator mends it
	case w.host.host == w.domain:
		return failure(smtp.Permanent(550, 1, 2, "domain "+w.domain+" does not exist or has no mail host"), err)
	}
	return failure(smtp.Permanent(550, 4, 4, "the mail hosts of "+w.domain+" have no address"), err)
}

// loop is the trouble of a host that is this server.
func (w *walk) loop() *trouble {
	if w.upstream != nil {
		return &trouble{
			reply: smtp.Temporary(451, 4, 6, "upstream "+w.upstream.Name+" is this server itself"),
			err:   fmt.Errorf("upstream %s: %s is a listener of this server", w.upstream.Name, w.host.host),
		}
	}
	return loop(w.domain)
}

// only leaves the walk one of its hosts.
func (w walk) only(i int) walk {
	w.hosts = slices.Clone(w.hosts[i : i+1])
	return w
}
