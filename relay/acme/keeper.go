package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"postern/internal/await"
	"postern/relay/certificate"

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

// clock is the time by which orders are made.
type clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Keeper gets certificates from an ACME authority, renews them, and shares them with
// the other nodes. It is safe for concurrent use.
type Keeper struct {
	cfg       Config
	log       *slog.Logger
	clock     clock
	storage   *storage
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
	trouble certificate.Trouble
	// Orders in a row that have failed without the other nodes' being told, as when
	// what was issued could not be stored, and until when this node makes none.
	failures  int
	notBefore time.Time
}

// Start shows the stored certificates and begins to renew them. A name without a certificate
// gets a self-signed one until the first is issued. The error is of the database.
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
		k.log.Info("answering the authority's validations", "challenge", k.cfg.Challenge, "address", k.ChallengeAddress())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop, k.tidyAt = stop, k.clock.Now().Add(time.Hour)
	for _, name := range k.cfg.Names {
		k.passes.Go(func() { k.lookAfter(running, name) })
	}
	return nil
}

// Close ends the work and gives back locks, or stops waiting for that when ctx ends.
// The certificates in memory are shown until the process ends. It may be called without Start.
func (k *Keeper) Close(ctx context.Context) error {
	if k.stop != nil {
		k.stop()
	}
	err := await.All(ctx, func() {
		k.passes.Wait()
		if k.responder != nil {
			k.responder.stop()
		}
	})
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	return nil
}

// lookAfter looks after one name until ctx ends.
func (k *Keeper) lookAfter(ctx context.Context, name string) {
	for {
		k.work(ctx, name)
		select {
		case <-ctx.Done():
			return
		case <-k.wake[name]:
		case <-k.clock.After(k.pause(name)):
		}
	}
}

// work is one round for name. A panic, which may come from what an authority or a DNS
// server sent, costs the round and not the process.
func (k *Keeper) work(ctx context.Context, name string) {
	defer func() {
		if p := recover(); p != nil {
			k.log.Error("certificate check panicked", "name", name, "panic", p, "stack", string(debug.Stack()))
			k.unknown(name, fmt.Errorf("a defect: %v", p))
		}
	}()
	k.pass(ctx, name)
	if name == k.cfg.Names[0] {
		k.tidy(ctx)
	}
}

// pause is how long nothing need be done for name.
func (k *Keeper) pause(name string) time.Duration {
	kept := k.kept(name)
	pause := k.cfg.lookEvery
	if kept.cert == nil {
		pause = min(pause, lookWithout)
	}
	if kept.trouble.Last != nil {
		pause = min(pause, max(kept.trouble.Next.Sub(k.clock.Now()), 0))
	}
	return pause
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

// LookNow checks each name now: it shows the stored certificate, and renews it if that is due.
// It does not wait for that, nor for a database that is away.
func (k *Keeper) LookNow() {
	for _, name := range k.cfg.Names {
		k.update(name, func(kept *kept) { kept.notBefore = time.Time{} })
		select {
		case k.wake[name] <- struct{}{}:
		default: // it is awake
		}
	}
}

// Status returns the status of each name.
func (k *Keeper) Status() []certificate.Status {
	list := make([]certificate.Status, 0, len(k.cfg.Names))
	for _, name := range k.cfg.Names {
		list = append(list, k.statusOf(name))
	}
	return slices.Clip(list)
}

func (k *Keeper) statusOf(name string) certificate.Status {
	kept := k.kept(name)
	cert := kept.cert
	if cert == nil {
		cert = k.standIn
	}
	s := kept.trouble.Status(cert)
	s.Name, s.Source, s.StandIn = name, "acme "+k.authority, kept.cert == nil
	if s.StandIn {
		s.Names = []string{name}
	}
	return s
}
