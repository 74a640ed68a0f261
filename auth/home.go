package auth

import (
	"context"
	"fmt"
	"time"
)

const (
	// That a user is at home in a network is written down once in so long, and then
	// learned again.
	homeEvery = 24 * time.Hour
	// A network stays new for a day, so that a thief who logs in for each message is
	// as new with the second.
	newFor = 24 * time.Hour
	// That a user is not at home in a network is remembered for so long.
	strangerTTL = 5 * time.Second
)

// atHome says whether the user has logged in from the network within 30 days. It matters,
// and costs a query, only when an attempt would have to wait.
func (a *Authenticator) atHome(ctx context.Context, try attempt) (bool, error) {
	now := time.Now()
	if _, _, ok := a.homes.get(try.pair, now); ok {
		return true, nil
	}
	if _, _, ok := a.strangers.get(try.pair, now); ok || !a.throttle.late(try.from, now) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	h, err := a.users.stay(ctx, try.question())
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if h.last.IsZero() {
		a.strangers.put(try.pair, struct{}{}, now)
		return false, nil
	}
	return true, nil
}

// welcome notes a login and says who it is.
func (a *Authenticator) welcome(acct account, try attempt, now time.Time) Identity {
	h, _, here := a.homes.get(try.pair, now)
	if !here {
		if h = acct.stay; h.since.IsZero() {
			h.since = now
		}
		if now.Sub(h.last) >= homeEvery {
			h.last = now
			a.notes.atHome(dwelling{acct.id, try.from.wide})
		}
		a.homes.put(try.pair, h, h.last)
	}
	a.notes.used(acct.credentialID, Use{At: now, Addr: try.peer.Addr, TLS: try.peer.TLS})
	id := acct.identity()
	id.NewNetwork = now.Sub(h.since) < newFor
	return id
}
