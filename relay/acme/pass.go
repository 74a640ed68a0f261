package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// delays come between orders that fail, across all nodes; the last one stays. No more
// than five fall into one hour: what Let's Encrypt allows for one name.
var delays = []time.Duration{time.Minute, 4 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour}

// delay is the wait after so many failures in a row.
func delay(failures int) time.Duration {
	return delays[min(max(failures, 1), len(delays))-1]
}

// errNotDue keeps a node from ordering when another's order has failed a moment ago.
var errNotDue = errors.New("the next order is not due yet")

// pass is one look: certmagic loads what is stored and, when it is due, orders.
func (k *Keeper) pass(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeoutCause(ctx, passTime, fmt.Errorf("given up after %s", passTime))
	defer cancel()
	record, err := k.storage.record(ctx, k.authority, name)
	if err != nil {
		if !stopping(ctx) {
			k.unknown(name, err)
		}
		return
	}
	if k.early(record) {
		k.wait(ctx, name, record)
		return
	}
	if kept := k.kept(name); kept.notBefore.After(k.clock.Now()) && !record.RenewedAt.After(kept.trouble.Since) {
		_ = k.adopt(ctx, name) // there is an error to tell already
		return
	}
	if err := k.storage.clock(ctx); err != nil {
		_ = k.adopt(ctx, name) // there is an error to tell already
		if !stopping(ctx) {
			k.unknown(name, err)
		}
		return
	}
	err = k.manage(ctx, name, record)
	switch {
	case stopping(ctx):
	case errors.Is(err, errNotDue):
		if record, err := k.storage.record(ctx, k.authority, name); err == nil {
			k.wait(ctx, name, record)
		}
	case err != nil:
		k.failed(ctx, name, err)
	default:
		k.succeeded(ctx, name)
	}
}

// early reports that the next order is not due yet. One that is further off than any
// delay is from a node whose clock is wrong: it must not keep the others from renewing.
func (k *Keeper) early(record Record) bool {
	left := record.NextTry.Sub(k.clock.Now())
	return left > 0 && left <= delay(len(delays))
}

// stopping reports that the node stops: an order given up for that has not failed.
func stopping(ctx context.Context) bool { return errors.Is(context.Cause(ctx), context.Canceled) }

// wait takes over what another node has reported or obtained.
func (k *Keeper) wait(ctx context.Context, name string, record Record) {
	err := k.adopt(ctx, name)
	if record.NextTry.IsZero() { // it was done meanwhile
		if err == nil {
			k.succeeded(ctx, name)
		}
		return
	}
	k.update(name, func(kept *kept) {
		kept.trouble.Failure(record.FailingSince, errors.New(record.LastError), record.NextTry)
		kept.trouble.Since = record.FailingSince
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("the certificate in the database cannot be read", "name", name, "error", err)
	}
}

// namesNone is the attempt at which certmagic's order does not name the certificate that
// it replaces: an authority that does not know that one any more may refuse each order
// that does, and every second order after a failure is without.
const namesNone = 2

// manage lets certmagic do all that is due for name, and orders each once.
// Its cache is new each time: what is stored is looked at, not what was remembered.
func (k *Keeper) manage(ctx context.Context, name string, record Record) error {
	ctx, end := withScope(ctx)
	defer end(nil)
	config, cache := k.fresh()
	defer cache.Stop()
	if record.Failures%2 == 1 {
		ctx = context.WithValue(ctx, certmagic.AttemptsCtxKey, new(namesNone))
	}
	err := config.ManageSync(ctx, []string{name})
	cert := newest(cache, name)
	if err == nil && !record.RenewAsked.IsZero() && cert != nil && cert.Leaf.SerialNumber.Text(16) == record.Serial {
		if err = config.RenewCertSync(ctx, name, true); err == nil {
			return nil // onEvent has shown it
		}
	}
	if cert != nil {
		k.show(name, cert)
	}
	if lost := context.Cause(ctx); errors.Is(lost, errLeaseLost) && err != nil {
		return lost
	}
	return err
}

// newest is the certificate for name that was issued last.
func newest(cache *certmagic.Cache, name string) *tls.Certificate {
	var newest *tls.Certificate
	for _, cert := range cache.AllMatchingCertificates(name) {
		if newest == nil || cert.Leaf.NotBefore.After(newest.Leaf.NotBefore) {
			newest = &cert.Certificate
		}
	}
	return newest
}

// onEvent hears from certmagic, while it holds the name's lock.
func (k *Keeper) onEvent(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	switch event {
	case "cert_obtaining":
		forced, _ := data["forced"].(bool)
		if err := k.due(ctx, name, forced); err != nil {
			return certmagic.ErrNoRetry{Err: err} // there is a next pass
		}
	case "cert_failed":
		failure, _ := data["error"].(error)
		if failure == nil || ctx.Err() != nil {
			return nil // given up, not refused
		}
		return k.tell(ctx, name, failure)
	case "cert_obtained":
		k.obtained(ctx, name)
	}
	return nil
}

// due prevents an order that another node has made meanwhile. One that is forced, since
// an admin has asked or the certificate is revoked, is for the certificate that this
// node has seen, and not for what has taken its place.
func (k *Keeper) due(ctx context.Context, name string, forced bool) error {
	record, err := k.storage.record(ctx, k.authority, name)
	if err != nil {
		return err
	}
	seen := k.kept(name).cert
	replaced := seen == nil || seen.Leaf.SerialNumber.Text(16) != record.Serial
	if k.early(record) || forced && record.RenewAsked.IsZero() && replaced {
		return errNotDue
	}
	return nil
}

// obtained shows and tells of a new certificate: before the question for an OCSP staple,
// and before the lock is given to a node that would renew it once more.
func (k *Keeper) obtained(ctx context.Context, name string) {
	err := k.adopt(ctx, name)
	if cert := k.kept(name).cert; err == nil && cert != nil {
		err = k.storage.succeeded(ctx, k.authority, name, cert.Leaf, k.clock.Now())
	}
	if err != nil {
		k.log.Warn("cannot announce a new certificate to the other nodes", "name", name, "error", err)
	}
}

// tell records for all nodes that the authority did not issue.
func (k *Keeper) tell(ctx context.Context, name string, failure error) error {
	record, err := k.storage.record(ctx, k.authority, name)
	if err != nil {
		return err
	}
	now := k.clock.Now()
	if record.FailingSince.IsZero() {
		record.FailingSince = now
	}
	record.LastError, record.NextTry = plain(failure), now.Add(delay(record.Failures+1))
	return k.storage.failed(ctx, record)
}

// plain is an authority's error in one line of a bounded length: it may be a whole page.
func plain(err error) string { return storable(strings.Join(strings.Fields(err.Error()), " ")) }

// unknown is when the database does not tell whether an order is due.
func (k *Keeper) unknown(name string, err error) {
	now := k.clock.Now()
	k.update(name, func(kept *kept) { kept.trouble.Failure(now, err, now.Add(time.Minute)) })
	k.log.Warn("certificate check failed, will retry", "name", name, "error", err)
}

func (k *Keeper) failed(ctx context.Context, name string, err error) {
	now := k.clock.Now()
	record, readErr := k.storage.record(context.WithoutCancel(ctx), k.authority, name)
	k.update(name, func(kept *kept) {
		if readErr == nil && k.early(record) { // a failure that all nodes know of
			kept.failures, kept.notBefore = 0, time.Time{}
			kept.trouble.Last, kept.trouble.Since, kept.trouble.Next = errors.New(record.LastError), record.FailingSince, record.NextTry
			return
		}
		kept.failures++
		kept.notBefore = now.Add(delay(kept.failures))
		kept.trouble.Failure(now, errors.New(plain(err)), kept.notBefore)
	})
	status := k.statusOf(name)
	k.log.Error("certificate not issued", "name", name, "authority", k.authority, "error", status.Error,
		"failing_since", status.FailingSince, "next_try", status.NextTry, "expires", status.NotAfter, "stand_in", status.StandIn)
}

func (k *Keeper) succeeded(ctx context.Context, name string) {
	now := k.clock.Now()
	var cert *tls.Certificate
	var failing bool
	k.update(name, func(kept *kept) {
		failing = kept.trouble.Last != nil
		kept.failures, kept.notBefore, cert = 0, time.Time{}, kept.cert
		kept.trouble.Success(now)
	})
	if failing {
		k.log.Info("certificate renewed after failures", "name", name, "authority", k.authority)
	}
	if cert == nil {
		return
	}
	if err := k.storage.succeeded(ctx, k.authority, name, cert.Leaf, now); err != nil {
		k.log.Warn("cannot announce a certificate to the other nodes", "name", name, "error", err)
	}
}
