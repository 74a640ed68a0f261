package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Validation is what is known about a name server's DNSSEC validation.
type Validation int

// The findings about a server.
const (
	Unproved  Validation = iota // it was not asked, or did not answer
	Validates                   // its AD bit is believed
	Blind                       // it does not validate, so nothing is Secure
	Untrusted                   // others can change its answers, so nothing is Secure
)

// proof is what came of asking a server for one.
type proof struct {
	fault  error // why it does not validate; nil: it does
	at     time.Time
	logged time.Time
}

// verdict is what follows from it.
func (p *proof) verdict() (Validation, error) {
	if p.fault != nil {
		return Blind, p.fault
	}
	return Validates, nil
}

// How long a proof holds.
const (
	proofTime = time.Hour
	faultTime = time.Minute
)

// Faults of a server that does not validate.
var (
	errNoAD  = errors.New("it does not say that it has validated the root zone")
	errBogus = errors.New("it answers for " + Bogus + ", whose signatures are wrong")
)

// Bogus is a name whose signatures are wrong on purpose: a server that validates has no answer
// for it. Comcast keeps it for that.
const Bogus = "dnssec-failed.org."

// believes reports whether the AD bit of a server counts: it and all of Servers, of which it may no
// longer be one, are trusted, and it validates. The error is temporary: a proof is due and could not
// be had.
func (r *Resolver) believes(ctx context.Context, server string) (bool, error) {
	if !r.trusts(server) || slices.ContainsFunc(r.Servers(), func(other string) bool { return !r.trusts(other) }) {
		return false, nil
	}
	v, err := r.prove(ctx, server, proofTime)
	if v == Unproved {
		return false, err
	}
	if v == Validates {
		r.believed.Store(true)
	}
	return v == Validates, nil
}

// trusts reports a server whose answers nobody can change on the way.
func (r *Resolver) trusts(server string) bool { return r.cfg.Trusted || isNear(server) }

// Lapsed reports that an answer since a time may lack Secure only because of the servers: all are
// trusted, but one does not validate, or has no proof from the last minute, or memory was emptied
// since then (forget); or one is not trusted that has taken the place of those that were believed.
func (r *Resolver) Lapsed(ctx context.Context, since time.Time) (lapsed bool) {
	servers := r.Servers()
	for _, server := range servers {
		if !r.trusts(server) {
			return r.believed.Load()
		}
		v, _ := r.prove(ctx, server, faultTime)
		lapsed = lapsed || v != Validates
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.follow(servers)
	return lapsed || r.emptied.After(since)
}

// Watch renews the proofs each minute until ctx ends, so that the log names a server that no longer
// validates, or another in its place that is not trusted, before mail needs it.
func (r *Resolver) Watch(ctx context.Context) {
	var told []string
	for ctx.Err() == nil {
		servers := r.Servers()
		for _, server := range servers {
			if r.trusts(server) {
				_, _ = r.prove(ctx, server, faultTime) // without an answer the former proof holds
			}
			switch v, err := r.Validation(ctx, server); {
			case v == Unproved && ctx.Err() == nil:
				r.cfg.Log.Warn("the name server does not say whether it validates DNSSEC", "server", server, "error", err)
			case v == Untrusted && !slices.Contains(told, server):
				r.cfg.Log.Info("this name server is not trusted for DNSSEC, so DANE is off", "server", server)
			}
		}
		told = servers
		select {
		case <-ctx.Done():
		case <-time.After(faultTime):
		}
	}
}

// Validation returns what one of Servers is. Without a proof it is asked for one. The error says
// why it is Blind, or Unproved.
func (r *Resolver) Validation(ctx context.Context, server string) (Validation, error) {
	if !r.trusts(server) {
		return Untrusted, nil
	}
	return r.prove(ctx, server, proofTime)
}

// prove has a server prove that it validates, unless it has within that time, and keeps the result.
func (r *Resolver) prove(ctx context.Context, server string, within time.Duration) (Validation, error) {
	if known := r.proof(server, within); known != nil {
		return known.verdict()
	}
	came := time.Now()
	select {
	case r.proving <- struct{}{}:
		defer func() { <-r.proving }()
	case <-ctx.Done():
		return Unproved, ctx.Err()
	}
	if known := r.proof(server, within); known != nil {
		return known.verdict() // another has asked meanwhile
	}
	if last := r.lastTrouble(server); last.at.After(came) {
		return Unproved, last.err // for all that have waited: each would wait for the others
	}
	fault, err := r.examine(ctx, server)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("it is not known whether the name server validates: %w", err)
		if ctx.Err() == nil {
			r.troubles[server] = trouble{err, time.Now()}
		}
		return Unproved, err
	}
	next := &proof{fault: fault, at: time.Now()}
	known := r.proofs[server]
	r.proofs[server] = next
	if known != nil && known.fault != nil && fault == nil {
		r.forget() // its answers of before would lack Secure until their TTL ends
	}
	if known != nil && (known.fault == nil) == (fault == nil) && time.Since(known.logged) < proofTime {
		next.logged = known.logged
		return next.verdict()
	}
	next.logged = time.Now()
	if fault != nil {
		r.cfg.Log.Error("the name server does not validate DNSSEC, so DANE is off", "server", server, "error", fault)
	} else {
		r.cfg.Log.Info("the name server validates DNSSEC", "server", server)
	}
	return next.verdict()
}

// proof is what came of asking a server; nil when it is time to ask.
func (r *Resolver) proof(server string, within time.Duration) *proof {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.proofs[server]
	if known != nil && known.fault != nil {
		within = faultTime
	}
	if known == nil || time.Since(known.at) >= within {
		return nil
	}
	return known
}

// trouble is why a server could not be examined.
type trouble struct {
	err error
	at  time.Time
}

func (r *Resolver) lastTrouble(server string) trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.troubles[server]
}

// examine asks a server for the root zone, which it must have validated, and for Bogus. The first
// error is what is wrong with it; the second one is temporary.
func (r *Resolver) examine(ctx context.Context, server string) (fault, err error) {
	var no refusal
	root, err := r.askOne(ctx, server, question{".", dns.TypeNS})
	switch {
	case errors.As(err, &no) && no.rcode != dns.RcodeServerFailure: // which may be trouble on the way
		return err, nil
	case err != nil:
		return nil, err
	case !root.Secure:
		return errNoAD, nil
	}
	if wrong, err := r.askOne(ctx, server, question{Bogus, dns.TypeA}); err == nil && wrong.err == nil {
		return errBogus, nil
	}
	return nil, nil
}
