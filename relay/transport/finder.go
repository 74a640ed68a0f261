package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"postern/internal/await"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/internal/share"
	"postern/relay/dkim"
	"postern/relay/maillog"
	"postern/relay/resolver"
)

const (
	keepTime   = 10 * time.Second // a row is not read again before
	maxKept    = 10_000           // rows in memory
	pollEvery  = 200 * time.Millisecond
	waitTime   = leaseTime + fetchTime // for a policy, though a node has died while it fetched
	renewEvery = time.Minute
	maxDue     = 10_000 // domains, of which the first are renewed at a time
	pruneEvery = time.Hour
)

// DNS asks name servers: *resolver.Resolver.
type DNS interface {
	Lookup(ctx context.Context, name string, kind uint16) (resolver.Answer, error)
	TXT(ctx context.Context, name string) ([]string, error)
}

// Config configures a Finder.
type Config struct {
	DB    pg.DB
	DNS   DNS
	Fetch *Fetcher
	Node  string
	Log   *slog.Logger  // nil: none
	Guard *panics.Guard // keeps what panics from ending the process; may be nil
}

// Finder finds what mail hosts must prove. It is safe for concurrent use.
type Finder struct {
	cfg    Config
	table  table
	places *share.Pool // one for each fetch at the same time, by organisational domain

	running context.Context
	cut     context.CancelFunc
	work    sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	kept    map[string]row
	flights map[string]*flight
}

// flight is the way to a policy, for all that wait for it.
type flight struct {
	done chan struct{}
	row  row // once done
	err  error
}

// New makes a Finder; Close ends its work.
func New(cfg Config) *Finder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Finder{cfg: cfg, table: table{cfg.DB, cfg.Node}, places: share.New(maxFetches, fetchPart), kept: map[string]row{}, flights: map[string]*flight{}}
	f.running, f.cut = context.WithCancel(context.Background())
	return f
}

// Close cuts off what is being fetched: the lease of that ends by itself.
func (f *Finder) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cut()
	if err := await.All(ctx, f.work.Wait); err != nil {
		return fmt.Errorf("transport policies: %w", err)
	}
	return nil
}

// Domain is what holds for all the mail hosts of a domain.
type Domain struct {
	Name     string
	Override *Override // nil: none
	STS      *STS      // nil: none
	Unsure   bool      // STS is nil, and there may be one that cannot be had now
}

// Domain finds what holds for a domain, and gets its MTA-STS policy if there is a new one; one that is
// kept holds if that cannot be tried now. The error is this side's trouble: without the database the
// demands of the domain are not known.
func (f *Finder) Domain(ctx context.Context, name string) (Domain, error) {
	r, err := f.read(ctx, name)
	if err != nil {
		return Domain{}, err
	}
	if r.override != nil && time.Since(r.at) < r.lifts {
		return Domain{Name: name, Override: r.override}, nil
	}
	id, published, trouble := f.publishedID(ctx, name)
	if ctx.Err() != nil {
		return Domain{}, ctx.Err()
	}
	if published && (r.policy(time.Now()) == nil || r.id != id) && (r.wait <= time.Since(r.at) || r.tried != id) {
		fresh, err := f.refresh(ctx, name, id, false)
		switch {
		case err == nil:
			r = fresh
		case ctx.Err() != nil || r.policy(time.Now()) == nil:
			return Domain{}, err
		}
	}
	policy := r.policy(time.Now())
	return Domain{Name: name, STS: policy, Unsure: policy == nil && (published || trouble != nil)}, nil
}

// publishedID is the id of a domain's policy. Where DNS gives no answer there is none: a policy that
// is kept holds, and another could not be trusted more than no answer (RFC 8461 section 3.1). trouble
// says that there may be one.
func (f *Finder) publishedID(ctx context.Context, domain string) (id string, published bool, trouble error) {
	texts, err := f.cfg.DNS.TXT(ctx, "_mta-sts."+domain)
	if errors.Is(err, resolver.ErrNone) {
		err = nil
	}
	id, published = parseID(texts)
	return id, published, err
}

// read returns the row of a domain, from memory if it was read just now, or if the database does not
// answer and a policy is known that holds.
func (f *Finder) read(ctx context.Context, domain string) (row, error) {
	f.mu.Lock()
	r, known := f.kept[domain]
	f.mu.Unlock()
	if known && time.Since(r.at) < keepTime {
		return r, nil
	}
	fresh, err := f.table.read(ctx, domain)
	if err != nil {
		if known && (r.policy(time.Now()) != nil || r.override != nil && time.Since(r.at) < r.lifts) {
			return r, nil
		}
		return row{}, err
	}
	if fresh.forgot {
		if err := f.table.use(ctx, domain); err != nil {
			f.cfg.Log.Warn("the use of a transport policy is not recorded", "domain", domain, "error", err)
		}
	}
	f.keep(domain, fresh)
	return fresh, nil
}

// keep keeps a row in memory. There is no order in which rows leave: they are old after seconds.
func (f *Finder) keep(domain string, r row) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other := range f.kept {
		if len(f.kept) < maxKept {
			break
		}
		delete(f.kept, other)
	}
	f.kept[domain] = r
}

// refresh gets the policy of an id, unless another node does, and returns the row as it is then.
// now says: though it is not due.
func (f *Finder) refresh(ctx context.Context, domain, id string, now bool) (row, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return row{}, errors.New("this node is stopping")
	}
	fl := f.flights[domain]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.flights[domain] = fl
		f.work.Go(func() {
			fl.err = f.cfg.Guard.Try("a transport policy", func() (err error) {
				fl.row, err = f.fly(domain, id, now)
				return err
			})
			f.land(domain, fl)
		})
	}
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.row, fl.err
	case <-ctx.Done():
		return row{}, ctx.Err()
	}
}

func (f *Finder) land(domain string, fl *flight) {
	f.mu.Lock()
	delete(f.flights, domain)
	f.mu.Unlock()
	if fl.err == nil {
		f.keep(domain, fl.row)
	}
	close(fl.done)
}

// fly fetches a policy under a lease, or waits for the node that has the lease.
func (f *Finder) fly(domain, id string, now bool) (row, error) {
	ctx, cancel := context.WithTimeout(f.running, waitTime)
	defer cancel()
	for {
		lease, err := f.table.take(ctx, domain, id, now)
		if err != nil {
			return row{}, err
		}
		if lease != 0 {
			if err := f.fetch(ctx, domain, id, lease); err != nil {
				return row{}, err
			}
		}
		r, err := f.table.read(ctx, domain)
		if err != nil || !r.leased {
			return r, err
		}
		select {
		case <-ctx.Done():
			return row{}, fmt.Errorf("wait for node %s, which gets the policy of %s: %w", r.holder, domain, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// fetch gets a policy and writes it down, or why there is none.
func (f *Finder) fetch(ctx context.Context, domain, id string, lease int64) error {
	organisation := dkim.Organisation(domain)
	if err := f.places.Wait(ctx, 1, organisation); err != nil {
		return fmt.Errorf("wait for the end of other fetches: %w", err)
	}
	defer f.places.Give(1, organisation)
	policy, failure := f.cfg.Fetch.Policy(ctx, domain)
	if f.running.Err() != nil {
		return f.running.Err()
	}
	if failure != nil {
		failure = errors.New(maillog.Clean(failure.Error())) // it may quote the host
		f.cfg.Log.Warn("the MTA-STS policy of a domain cannot be had; one that is kept holds", "domain", domain, "policy_id", id, "error", failure)
	} else {
		f.cfg.Log.Info("the MTA-STS policy of a domain is kept", "domain", domain, "policy_id", id, "mode", policy.Mode, "mx", maillog.Clean(strings.Join(policy.MX, " ")), "max_age", policy.MaxAge)
	}
	return f.table.settle(ctx, domain, id, lease, policy, failure)
}

// Refresh gets the MTA-STS policy of a domain now. The error says why there is none, in words for
// the person who asked.
func (f *Finder) Refresh(ctx context.Context, domain string) error {
	id, published, trouble := f.publishedID(ctx, domain)
	switch {
	case trouble != nil:
		return trouble
	case !published:
		return fmt.Errorf("_mta-sts.%s has no TXT record with the id of a policy", domain)
	}
	r, err := f.refresh(ctx, domain, id, true)
	if err == nil && r.failure != "" {
		err = errors.New(r.failure)
	}
	return err
}

// Run renews the policies in use before they end, until ctx does.
func (f *Finder) Run(ctx context.Context) {
	var pruned time.Time
	for {
		if err := f.cfg.Guard.Try("transport policies", func() error { return f.renew(ctx) }); err != nil && ctx.Err() == nil {
			f.cfg.Log.Warn("transport policies are not renewed now", "error", err)
		}
		if time.Since(pruned) > pruneEvery {
			pruned = time.Now()
			if err := f.table.prune(ctx); err != nil && ctx.Err() == nil {
				f.cfg.Log.Warn("former transport policies are not deleted now", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewEvery):
		}
	}
}

// renew gets the policies that are due. One whose TXT record is gone is not withdrawn by that
// (RFC 8461 section 3.1): it is asked for by the id that it had.
func (f *Finder) renew(ctx context.Context) error {
	domains, err := f.table.due(ctx, maxDue)
	if err != nil {
		return err
	}
	var all panics.Group
	for _, domain := range fair(domains) {
		all.Go(func() {
			r, err := f.table.read(ctx, domain)
			if err != nil {
				return // and is due again in a minute
			}
			id, published, _ := f.publishedID(ctx, domain)
			if !published {
				id = r.id
			}
			_, _ = f.refresh(ctx, domain, id, false) // how it ended is in its row and the log
		})
	}
	all.Wait()
	return ctx.Err()
}

// fair are the first of a list of domains whose policies can be fetched at the same time: others do not
// wait for an organisation whose hosts all hang.
func fair(domains []string) (list []string) {
	of := map[string]int{}
	for _, domain := range domains {
		organisation := dkim.Organisation(domain)
		if of[organisation]++; of[organisation] <= maxOfOne && len(list) < maxFetches {
			list = append(list, domain)
		}
	}
	return list
}

// Host gives the policy of one mail host of a domain. mxSecure says that the domain's MX records, or
// that there are none, were validated; addrs is what its addresses were found by. The error is
// ErrNotAllowed, or that DNS gives no answer that can be trusted: then nothing is known about what
// the host must prove, and mail waits (RFC 7672 section 2.1.1).
func (f *Finder) Host(ctx context.Context, d Domain, host string, mxSecure bool, addrs resolver.Addresses) (Policy, error) {
	facts := Facts{Override: d.Override, STS: d.STS, Domain: d.Name, Host: host, MXSecure: mxSecure}
	if d.Override == nil {
		var err error
		if facts.Base, facts.TLSA, err = f.tlsa(ctx, host, addrs); err != nil {
			return Policy{Source: SourceDANE}, err
		}
	}
	return Decide(facts)
}

// tlsa looks the TLSA records of a mail host up, and tells where they are: at the name that the host
// is an alias of, or at its own (RFC 7672 section 2.2.2). A host whose addresses are not validated
// has none: its zone is not signed, and many name servers of such zones cannot answer the question.
func (f *Finder) tlsa(ctx context.Context, host string, addrs resolver.Addresses) (base string, records []TLSA, err error) {
	canonical := strings.TrimSuffix(addrs.Canonical, ".")
	alias := canonical != "" && !strings.EqualFold(canonical, host)
	bases := []string{host}
	switch {
	case addrs.Secure && alias:
		bases = []string{canonical, host}
	case alias: // perhaps only the zone at the end is not signed
		answer, err := f.cfg.DNS.Lookup(ctx, host, dns.TypeCNAME)
		if err != nil && !errors.Is(err, resolver.ErrNone) {
			return "", nil, err
		}
		if !answer.Secure {
			return "", nil, nil
		}
	case !addrs.Secure:
		return "", nil, nil
	}
	for _, base := range bases {
		answer, err := f.cfg.DNS.Lookup(ctx, "_25._tcp."+base, dns.TypeTLSA)
		if err != nil && !errors.Is(err, resolver.ErrNone) {
			return "", nil, err
		}
		if err == nil && answer.Secure {
			for _, rr := range resolver.Of[*dns.TLSA](answer) {
				records = append(records, newTLSA(rr))
			}
			return base, records, nil
		}
	}
	return "", nil, nil
}
