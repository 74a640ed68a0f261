package resolver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// Validation is what is known about a name server's DNSSEC validation.
type Validation int

// What a server may be.
const (
	Unproved  Validation = iota // it was not asked, or did not answer
	Validates                   // its AD bit is believed
	Blind                       // it does not validate, so nothing is Secure
	Untrusted                   // what it says may come from anybody, so nothing is Secure
)

func (v Validation) String() string {
	return [...]string{"unproved", "validates", "does not validate", "not trusted"}[v]
}

// proof is what a server proved.
type proof struct {
	validates bool
	until     time.Time
}

// How long a proof holds.
const (
	proofTime    = time.Hour
	disproofTime = time.Minute
)

// Bogus is a name whose signatures are wrong on purpose: a server that validates has no answer
// for it. Comcast keeps it for that.
const Bogus = "dnssec-failed.org."

// believes reports whether the AD bit of a server counts. The error is temporary: a proof is due and could not be had.
func (r *Resolver) believes(ctx context.Context, server string) (bool, error) {
	for _, other := range r.Servers() {
		if r.direct || !r.cfg.Trusted && !isNear(other) {
			return false, nil
		}
	}
	v, err := r.prove(ctx, server)
	return v == Validates, err
}

// Validation returns what each server is, by its address. Servers without a proof are asked for it.
func (r *Resolver) Validation(ctx context.Context) map[string]Validation {
	all := make(map[string]Validation)
	for _, server := range r.Servers() {
		if !r.cfg.Trusted && !isNear(server) {
			all[server] = Untrusted
			continue
		}
		all[server], _ = r.prove(ctx, server)
	}
	return all
}

// prove has a server prove that it validates: it says that it has validated the root zone's name
// servers, and it has no answer for Bogus.
func (r *Resolver) prove(ctx context.Context, server string) (Validation, error) {
	r.mu.Lock()
	known := r.proofs[server]
	r.mu.Unlock()
	if known != nil && time.Now().Before(known.until) {
		if known.validates {
			return Validates, nil
		}
		return Blind, nil
	}
	root, err := r.askOne(ctx, server, question{".", dns.TypeNS})
	if err != nil && !errors.Is(err, errRefused) {
		return Unproved, fmt.Errorf("it is not known whether the name server validates: %w", err)
	}
	validates := err == nil && root.Secure
	if validates {
		wrong, err := r.askOne(ctx, server, question{Bogus, dns.TypeA})
		validates = err != nil || wrong.err != nil
	}
	next := &proof{validates, time.Now().Add(disproofTime)}
	if validates {
		next.until = time.Now().Add(proofTime)
	}
	r.mu.Lock()
	r.proofs[server] = next
	r.mu.Unlock()
	if validates {
		r.cfg.Log.Info("the name server validates", "server", server)
		return Validates, nil
	}
	r.cfg.Log.Error("the name server does not validate, so DANE is off", "server", server)
	return Blind, nil
}
