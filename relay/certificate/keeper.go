package certificate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	// lookEvery is how often a certificate is looked after: whether it must be renewed,
	// whether another node has renewed it, whether its OCSP staple is fresh.
	lookEvery = 10 * time.Minute
	// lookWithout is how often a node without a certificate looks whether another got one.
	lookWithout = 15 * time.Second
	// passTime bounds one look with all that follows from it.
	passTime = 8 * time.Minute
)

// delays come between attempts that fail, over all nodes; the last one stays. No more
// than five fall into one hour: what Let's Encrypt allows for one name.
var delays = []time.Duration{time.Minute, 4 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour}

// delay is the wait after so many failures in a row.
func delay(failures int) time.Duration {
	return delays[min(max(failures, 1), len(delays))-1]
}

// Clock is the time by which attempts are made.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// errNotDue keeps a node from ordering when another's attempt has failed a moment ago.
var errNotDue = errors.New("the next attempt is not due yet")

// Keeper gets certificates from an ACME authority, renews them, and shares them with
// the other nodes. It is safe for concurrent use.
type Keeper struct {
	cfg       ACME
	log       *slog.Logger
	clock     Clock
	storage   *Storage
	issuer    *certmagic.ACMEIssuer
	config    *certmagic.Config // for answering validations; passes have their own
	authority string
	responder *responder // nil: DNS-01
	standIn   *tls.Certificate
	tidyAt    time.Time // the work of the first name's goroutine

	mu    sync.Mutex
	names map[string]*kept

	wake   map[string]chan struct{}
	stop   context.CancelFunc
	passes sync.WaitGroup
}

// kept is what is known of one name.
type kept struct {
	cert    *tls.Certificate // nil: none yet
	trouble trouble
	// Attempts in a row that have failed without the other nodes' being told, as when
	// what was issued could not be stored, and until when this node makes none.
	failures int
	hold     time.Time
}

// Start shows what the storage has and begins to look after it. A name without a
// certificate gets a self-signed one until the first is issued. The error is about
// the database.
func (k *Keeper) Start(ctx context.Context) error {
	var without []string
	for _, name := range k.cfg.Names {
		if err := k.adopt(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("certificate for %s: %w", name, err)
		}
		if k.kept(name).cert == nil {
			without = append(without, name)
		}
	}
	if len(without) > 0 {
		k.log.Error("no certificate yet: until the authority has issued one, clients get a self-signed one, which they do not trust",
			"names", without, "authority", k.authority)
	}
	if k.responder != nil {
		k.responder.start(k.log)
		k.log.Info("the authority's validations are answered", "challenge", k.cfg.Challenge, "address", k.ChallengeAddress())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop, k.tidyAt = stop, k.clock.Now().Add(time.Hour)
	for _, name := range k.cfg.Names {
		k.passes.Go(func() { k.lookAfter(running, name) })
	}
	return nil
}

// Close ends the work and gives back locks, or stops waiting for that when ctx ends.
// What is in memory is shown on. It may be called without Start.
func (k *Keeper) Close(ctx context.Context) error {
	if k.stop != nil {
		k.stop()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.passes.Wait()
		if k.responder != nil {
			k.responder.stop()
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("certificates: %w", ctx.Err())
	}
}

// lookAfter looks after one name until ctx ends.
func (k *Keeper) lookAfter(ctx context.Context, name string) {
	for {
		k.pass(ctx, name)
		if name == k.cfg.Names[0] {
			k.tidy(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake[name]:
		case <-k.clock.After(k.pause(name)):
		}
	}
}

// pause is how long nothing need be done for name.
func (k *Keeper) pause(name string) time.Duration {
	kept := k.kept(name)
	pause := k.cfg.lookEvery
	if kept.cert == nil {
		pause = min(pause, lookWithout)
	}
	if kept.trouble.last != nil {
		pause = min(pause, max(kept.trouble.next.Sub(k.clock.Now()), 0))
	}
	return pause
}

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
	if record.NextAttempt.After(k.clock.Now()) {
		k.wait(ctx, name, record)
		return
	}
	if kept := k.kept(name); kept.hold.After(k.clock.Now()) && !record.RenewedAt.After(kept.trouble.since) {
		_ = k.adopt(ctx, name) // there is an error to tell already
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

// stopping reports that the node stops: what was given up for that is no failure.
func stopping(ctx context.Context) bool { return errors.Is(context.Cause(ctx), context.Canceled) }

// wait takes over what another node has told or got.
func (k *Keeper) wait(ctx context.Context, name string, record Record) {
	err := k.adopt(ctx, name)
	if record.NextAttempt.IsZero() { // it was done meanwhile
		return
	}
	k.update(name, func(kept *kept) {
		kept.trouble.failure(record.FailingSince, errors.New(record.LastError), record.NextAttempt)
		kept.trouble.since = record.FailingSince
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("the certificate in the database cannot be read", "name", name, "error", err)
	}
}

// manage lets certmagic do all that is due for name, and makes one attempt of each.
// Its cache is new each time: what is stored is looked at, not what was remembered.
func (k *Keeper) manage(ctx context.Context, name string, record Record) error {
	ctx, end := withScope(ctx)
	defer end(nil)
	config, cache := k.fresh()
	defer cache.Stop()
	err := config.ManageSync(ctx, []string{name})
	cert := newest(cache, name)
	if err == nil && !record.RenewAsked.IsZero() && cert != nil && cert.Leaf.SerialNumber.Text(16) == record.Serial {
		if err = config.RenewCertSync(ctx, name, true); err == nil {
			_, err = config.CacheManagedCertificate(ctx, name)
			cert = newest(cache, name)
		}
	}
	if cert != nil {
		k.show(name, cert)
	}
	if lost := context.Cause(ctx); errors.Is(lost, ErrLeaseLost) && err != nil {
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
		record, err := k.storage.record(ctx, k.authority, name)
		forced, _ := data["forced"].(bool)
		if err == nil && (record.NextAttempt.After(k.clock.Now()) || forced && record.RenewAsked.IsZero()) {
			err = errNotDue // another node's attempt came before
		}
		return err
	case "cert_failed":
		failure, _ := data["error"].(error)
		if failure == nil || ctx.Err() != nil {
			return nil // given up, not refused
		}
		return k.tell(ctx, name, failure)
	case "cert_obtained":
		// Now, and not after the question for an OCSP staple.
		if err := k.adopt(ctx, name); err != nil {
			k.log.Warn("a certificate that was just issued cannot be read", "name", name, "error", err)
		}
	}
	return nil
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
	record.LastError, record.NextAttempt = plain(failure), now.Add(delay(record.Failures+1))
	return k.storage.failed(ctx, record)
}

// plain is an authority's error in one line.
func plain(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// unknown is when the database does not tell whether an attempt is due.
func (k *Keeper) unknown(name string, err error) {
	now := k.clock.Now()
	k.update(name, func(kept *kept) { kept.trouble.failure(now, err, now.Add(time.Minute)) })
	k.log.Warn("certificate not looked after", "name", name, "error", err)
}

func (k *Keeper) failed(ctx context.Context, name string, err error) {
	now := k.clock.Now()
	record, readErr := k.storage.record(context.WithoutCancel(ctx), k.authority, name)
	k.update(name, func(kept *kept) {
		if readErr == nil && record.NextAttempt.After(now) { // an attempt that all nodes know of
			kept.failures, kept.hold = 0, time.Time{}
			kept.trouble.last, kept.trouble.since, kept.trouble.next = errors.New(record.LastError), record.FailingSince, record.NextAttempt
			return
		}
		kept.failures++
		kept.hold = now.Add(delay(kept.failures))
		kept.trouble.failure(now, errors.New(plain(err)), kept.hold)
	})
	status := k.statusOf(name)
	k.log.Error("certificate not issued", "name", name, "authority", k.authority, "error", status.Error,
		"failing_since", status.FailingSince, "next_attempt", status.NextAttempt, "expires", status.NotAfter, "stand_in", status.StandIn)
}

func (k *Keeper) succeeded(ctx context.Context, name string) {
	now := k.clock.Now()
	var cert *tls.Certificate
	var failing bool
	k.update(name, func(kept *kept) {
		failing = kept.trouble.last != nil
		kept.failures, kept.hold, cert = 0, time.Time{}, kept.cert
		kept.trouble.success(now)
	})
	if failing {
		k.log.Info("certificate in order again", "name", name, "authority", k.authority)
	}
	if cert == nil {
		return
	}
	if err := k.storage.succeeded(ctx, k.authority, name, cert.Leaf, now); err != nil {
		k.log.Warn("the other nodes could not be told of a certificate", "name", name, "error", err)
	}
}

// adopt shows the certificate for name that is in the storage. One from another
// authority, of an earlier configuration, is better than none or one that has expired.
func (k *Keeper) adopt(ctx context.Context, name string) error {
	own, err := k.load(ctx, k.authority, name)
	if err == nil && time.Now().Before(own.Leaf.NotAfter) {
		k.show(name, own)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	authorities, listErr := k.storage.List(ctx, "certificates", false)
	if listErr != nil {
		return listErr
	}
	newest := own
	for _, path := range authorities {
		cert, loadErr := k.load(ctx, strings.TrimPrefix(path, "certificates/"), name)
		if loadErr != nil && !errors.Is(loadErr, fs.ErrNotExist) {
			err = loadErr
		}
		if loadErr == nil && (newest == nil || cert.Leaf.NotAfter.After(newest.Leaf.NotAfter)) {
			newest = cert
		}
	}
	if newest == nil {
		return err
	}
	k.show(name, newest)
	return nil
}

func (k *Keeper) load(ctx context.Context, authority, name string) (*tls.Certificate, error) {
	chain, err := k.storage.Load(ctx, certmagic.StorageKeys.SiteCert(authority, name))
	if err != nil {
		return nil, err
	}
	key, err := k.storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(authority, name))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s of %s: %w", name, authority, err)
	}
	return &cert, nil
}

// show lets handshakes use cert from now on.
func (k *Keeper) show(name string, cert *tls.Certificate) {
	var before *tls.Certificate
	k.update(name, func(kept *kept) {
		before = kept.cert
		if before != nil && before.Leaf.Equal(cert.Leaf) && cert.OCSPStaple == nil {
			cert.OCSPStaple = before.OCSPStaple
		}
		kept.cert = cert
	})
	if before == nil || !before.Leaf.Equal(cert.Leaf) {
		k.log.Info("certificate in use", "name", name, "issuer", cert.Leaf.Issuer.CommonName, "expires", cert.Leaf.NotAfter)
	}
}

func (k *Keeper) update(name string, change func(*kept)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k.names[name])
}

func (k *Keeper) kept(name string) kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *k.names[name]
}

// shown are the certificates of all names, the stand-in last when one lacks.
func (k *Keeper) shown() []*tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]*tls.Certificate, 0, len(k.cfg.Names)+1)
	lacking := false
	for _, name := range k.cfg.Names {
		if cert := k.names[name].cert; cert != nil {
			list = append(list, cert)
		} else {
			lacking = true
		}
	}
	if lacking {
		list = append(list, k.standIn)
	}
	return list
}

// Reload reads what is stored now, and lets what is due be done.
func (k *Keeper) Reload(ctx context.Context) error {
	var errs []error
	for _, name := range k.cfg.Names {
		if err := k.adopt(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		k.update(name, func(kept *kept) { kept.hold = time.Time{} })
		select {
		case k.wake[name] <- struct{}{}:
		default: // it is awake
		}
	}
	return errors.Join(errs...)
}

// Status tells of each name.
func (k *Keeper) Status() []Status {
	list := make([]Status, 0, len(k.cfg.Names))
	for _, name := range k.cfg.Names {
		list = append(list, k.statusOf(name))
	}
	return slices.Clip(list)
}

func (k *Keeper) statusOf(name string) Status {
	kept := k.kept(name)
	cert := kept.cert
	if cert == nil {
		cert = k.standIn
	}
	s := statusOf(cert, kept.trouble)
	s.Name, s.Source, s.StandIn = name, "acme "+k.authority, kept.cert == nil
	if s.StandIn {
		s.Names = []string{name}
	}
	return s
}
