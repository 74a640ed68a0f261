package keys

import (
	"context"
	"crypto"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/dkim"
	"postern/relay/resolver"
	"postern/relay/seal"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlPoll         = texts.Bind("poll")
	sqlKeys         = texts.Bind("keys", "domain")
	sqlPrivate      = texts.Bind("private", "known")
	sqlTake         = texts.Bind("take", "node", "now", "span", "most")
	sqlLock         = texts.Bind("lock", "domain", "lease")
	sqlDone         = texts.Bind("done", "domain", "lease", "next")
	sqlWrite        = texts.Bind("write", "domain", "selector", "state", "since", "looks", "gone", "looked", "found")
	sqlInsert       = texts.Bind("insert", "domain", "selector", "algorithm", "public", "sealed", "state", "now")
	sqlDelete       = texts.Bind("delete", "domain", "selector")
	sqlAddDomain    = texts.Bind("add_domain", "domain", "now")
	sqlSetEvery     = texts.Bind("set_every", "domain", "days")
	sqlHurry        = texts.Bind("hurry", "domain", "now")
	sqlRemoveDomain = texts.Bind("remove_domain", "domain")
	sqlTell         = texts.Bind("tell", "domain", "selector", "change")
	sqlChanged      = texts.Bind("changed")
)

const (
	pollEvery = time.Second
	callTime  = 10 * time.Second // for a reading, or a transaction
	openAgain = time.Minute      // a node tries again to open what it could not
)

// Config configures a Ring. All but Sealer and Guard must be set.
type Config struct {
	Pool     *pgxpool.Pool
	Sealer   *seal.Sealer // nil: this node signs nothing, and its keys have no Signer
	Node     string
	Lifetime time.Duration // of the queue
	Log      *slog.Logger
	Guard    *panics.Guard // keeps what panics from ending the process; may be nil
}

// Ring are the keys of all domains, as a node knows them, and its part in their life. Keys and List
// ask no database and may be called from several goroutines.
type Ring struct {
	cfg     Config
	clock   func(time.Time) time.Time // what a test makes of the database's clock
	current atomic.Pointer[snapshot]
	version int64  // of current
	said    string // the last error that was logged
	looking sync.WaitGroup
	places  chan struct{} // of looks that this node makes at a time
}

// snapshot is what was last read. It is never changed.
type snapshot struct {
	keys    []Key
	signers Signers
	opened  map[string]crypto.Signer // by domain and selector; nil: does not open here
	closed  bool                     // some do not
	at      time.Time
}

// New returns a Ring; Load and Run have to be called.
func New(cfg Config) *Ring {
	return &Ring{cfg: cfg, clock: func(t time.Time) time.Time { return t }, places: make(chan struct{}, mostLooks)}
}

var _ dkim.Keys = (*Ring)(nil)

// Keys are those that sign for a domain now, in A-labels and small letters: at most one of each algorithm.
func (r *Ring) Keys(domain string) []dkim.Key {
	if s := r.current.Load(); s != nil {
		return s.signers[domain]
	}
	return nil
}

// List are the keys of all domains as last read.
func (r *Ring) List() []Key {
	if s := r.current.Load(); s != nil {
		return s.keys
	}
	return nil
}

// Load reads the keys, unless they are as they were, and returns the database's time.
func (r *Ring) Load(ctx context.Context) (now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var version int64
	if err := r.cfg.Pool.QueryRow(ctx, sqlPoll).Scan(&version, &now); err != nil {
		return now, fmt.Errorf("ask for changes of the DKIM keys: %w", err)
	}
	now = r.clock(now)
	was := r.current.Load()
	if was != nil && version == r.version && !(was.closed && now.Sub(was.at) > openAgain) {
		return now, nil
	}
	s, err := r.read(ctx)
	if err != nil {
		return now, err
	}
	s.at = now
	r.current.Store(s)
	r.version = version // the next poll reads later changes
	return now, nil
}

func (r *Ring) read(ctx context.Context) (*snapshot, error) {
	list, err := List(ctx, r.cfg.Pool, "")
	if err != nil {
		return nil, err
	}
	s := &snapshot{keys: list, signers: Signers{}, opened: map[string]crypto.Signer{}}
	if r.cfg.Sealer != nil {
		if err := r.open(ctx, s); err != nil {
			return nil, err
		}
	}
	for domain, signers := range SignersOf(list) {
		for _, k := range signers {
			if k.Signer = s.opened[domain+" "+k.Selector]; k.Signer != nil || r.cfg.Sealer == nil {
				s.signers[domain] = append(s.signers[domain], k)
			}
		}
	}
	return s, nil
}

// open opens the private halves that were not opened before.
func (r *Ring) open(ctx context.Context, s *snapshot) error {
	known, was := []string{}, r.current.Load()
	if was == nil {
		was = &snapshot{}
	}
	for i := range s.keys {
		name := s.keys[i].Domain + " " + s.keys[i].Selector
		if signer := was.opened[name]; signer != nil && s.keys[i].State != Retired {
			s.opened[name], known = signer, append(known, name)
		}
	}
	rows, _ := r.cfg.Pool.Query(ctx, sqlPrivate, known)
	var domain, selector string
	var sealed []byte
	_, err := pgx.ForEachRow(rows, []any{&domain, &selector, &sealed}, func() error {
		signer, err := open(r.cfg.Sealer, domain, selector, sealed)
		s.closed = s.closed || err != nil
		if _, said := was.opened[domain+" "+selector]; err != nil && !said {
			r.cfg.Log.Error("a DKIM key cannot be used by this node, so it signs no mail with it; see 'postern check --only key' here",
				"domain", domain, "selector", selector, "error", err)
		}
		s.opened[domain+" "+selector] = signer
		return nil
	})
	if err != nil {
		return fmt.Errorf("read DKIM keys: %w", err)
	}
	return nil
}

// Run follows the keys, and looks at the records of those that are due by asking dns, nil for none,
// until ctx ends.
func (r *Ring) Run(ctx context.Context, dns *resolver.Resolver) {
	defer r.looking.Wait()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := r.round(ctx, dns)
		switch {
		case err == nil:
			r.said = ""
		case ctx.Err() == nil && err.Error() != r.said:
			r.cfg.Log.Warn("the DKIM keys cannot be followed, will try again", "error", err)
			r.said = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round reads what has changed, and begins the looks that are due.
func (r *Ring) round(ctx context.Context, dns *resolver.Resolver) error {
	now, err := r.Load(ctx)
	if err != nil || dns == nil || r.cfg.Sealer == nil || len(r.List()) == 0 {
		return err
	}
	free := cap(r.places) - len(r.places)
	if free == 0 {
		return nil
	}
	ctxTake, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, _ := r.cfg.Pool.Query(ctxTake, sqlTake, r.cfg.Node, now, leaseTime, free)
	var domain string
	var lease int64
	_, err = pgx.ForEachRow(rows, []any{&domain, &lease}, func() error {
		r.places <- struct{}{}
		r.looking.Go(func() {
			defer func() { <-r.places }()
			r.visit(ctx, dns, visit{domain, lease, now})
		})
		return nil
	})
	if err != nil {
		return fmt.Errorf("take domains whose DKIM records are due for a look: %w", err)
	}
	return nil
}

// visit looks at a domain under its lease, and logs what it could not do.
func (r *Ring) visit(ctx context.Context, dns *resolver.Resolver, v visit) {
	err := r.cfg.Guard.Try("look at DKIM records", func() error { return r.lookAt(ctx, dns, v) })
	if err != nil && ctx.Err() == nil && !errors.Is(err, errLost) {
		r.cfg.Log.Warn("the DKIM keys of a domain could not be looked at", "domain", v.domain, "error", err)
	}
}
