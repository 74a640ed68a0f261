package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postern/auth/throttle"
)

// contested handles a login that cannot be judged immediately: a public count keeps it
// waiting, or no permit was free in time.
//
// All that the client can observe depends on its address, on the name as typed and on
// earlier tries, never on whether the account exists or is known there: the login keeps its
// place among all others (public, nil when that is spent), is judged at its turn, and every
// failure is answered at until, whenever it was found. Beside that, unseen, goes the
// account's own way, which ends the wait if the password is right.
func (a *Authenticator) contested(ctx context.Context, try loginTry, public *throttle.Place, until time.Time) (account, error) {
	beside, cancel := context.WithCancel(ctx)
	defer cancel()
	right := make(chan account, 1)
	go func() {
		_ = a.guard.Try("auth: a login", func() error { // the public way goes on
			if acct, ok := a.ownWay(beside, try); ok {
				right <- acct
			}
			return nil
		})
	}()
	end := time.NewTimer(time.Until(until))
	defer end.Stop()
	for {
		select {
		case acct := <-right:
			return acct, nil
		case <-public.Granted():
			acct, err := a.judged(ctx, try, public.Judges)
			if public = nil; errors.Is(err, ErrBusy) {
				continue
			}
			if errors.Is(err, ErrCredentials) {
				select {
				case <-end.C:
				case <-ctx.Done():
				}
			}
			return acct, err
		case <-end.C:
			return account{}, fmt.Errorf("%w: too many failures", ErrBusy)
		case <-ctx.Done():
			return account{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
}

// ownWay judges a login as soon as the account's own count allows, under a permit
// that strangers do not wait for: the count of the account at its address when it is
// known there, or in its network when only that is known. A generated secret needs
// neither: it cannot be guessed, and costs no hash. The public way reports trouble.
func (a *Authenticator) ownWay(ctx context.Context, try loginTry) (acct account, right bool) {
	own := a.ownPlace(ctx, try)
	defer func() { a.throttle.Leave(own, time.Now()) }()
	select {
	case <-own.Granted():
		try.known = true
		acct, err := a.judged(ctx, try, own.Judges)
		return acct, err == nil
	case <-ctx.Done():
		return account{}, false
	}
}

// ownPlace is a place behind none but logins as the same account from the same address,
// or network; nil, which has no turn, when the account is not known there.
func (a *Authenticator) ownPlace(ctx context.Context, try loginTry) *throttle.Place {
	if try.secret() {
		return throttle.Open()
	}
	known, err := a.knownFrom(ctx, try)
	switch {
	case err != nil:
		return nil
	case known.address:
		return a.throttle.Join([]throttle.Key{try.address}, try.from, time.Now())
	case known.network:
		return a.throttle.Join([]throttle.Key{try.from.OwnNetwork()}, try.from, time.Now())
	}
	return nil
}
