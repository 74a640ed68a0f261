package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"postern/internal/panics"
)

// ErrNone is the definite answer that a name, or the type of record that was asked for, does not
// exist (NXDOMAIN, or an answer without such a record). Answer.Secure holds for it too.
var ErrNone = errors.New("there is no such record")

// ErrAliases is the trouble of a name whose aliases do not end. It is temporary.
var ErrAliases = errors.New("aliases (CNAME) lead in a circle")

// ErrElsewhere is what a server that is asked directly ([Resolver.At]) says about a name that is
// an alias into a zone of others. Answer.Canonical is the name that it stands for.
var ErrElsewhere = errors.New("the name is an alias into another zone")

// Error is the error of every question, with ErrNone or what happened.
type Error struct {
	Question string // name and type
	Err      error
}

func (e *Error) Error() string { return e.Question + ": " + e.Err.Error() }

// Unwrap is ErrNone, or what happened.
func (e *Error) Unwrap() error { return e.Err }

// Config configures a Resolver. Zero values take the defaults named.
type Config struct {
	// Servers are recursive name servers, as host:port; none: those of /etc/resolv.conf,
	// which is read again when it changes.
	Servers []string
	// Trusted says that nobody can change what comes from Servers, though they are not on loopback.
	Trusted bool
	Log     *slog.Logger  // nil: nothing is logged
	Guard   *panics.Guard // of questions

	// Exchange puts one query to a server; nil: over UDP, and TCP if the answer is cut off.
	// Others are for tests.
	Exchange func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error)
}

// Resolver asks name servers. It is safe for concurrent use.
type Resolver struct {
	cfg    Config
	system *system // the machine's configuration
	asked  chan struct{}
	direct bool // one server is asked about its own zones

	believed atomic.Bool // the AD bit of a server has counted

	mu       sync.Mutex
	of       []string // the servers that cache and flights are of
	cache    *cache
	flights  map[question]*flight
	proofs   map[string]*proof
	troubles map[string]trouble // the last of each server that gave no proof
	emptied  time.Time          // when forget last emptied cache and flights
	proving  chan struct{}      // one at a time is asked for a proof
	stats    Stats
}

// New makes a Resolver; it asks nothing yet.
func New(cfg Config) *Resolver {
	r := &Resolver{cfg: cfg, system: &system{path: resolvConf, hosts: hostsFile}, asked: make(chan struct{}, maxAsked), cache: newCache(),
		flights: make(map[question]*flight), proofs: make(map[string]*proof), troubles: make(map[string]trouble), proving: make(chan struct{}, 1)}
	if r.cfg.Log == nil {
		r.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if r.cfg.Exchange == nil {
		r.cfg.Exchange = exchange
	}
	return r
}

// At is a Resolver that asks one server, host:port, about the zones that it is authoritative for.
// It keeps no answers, nothing of it is Secure, and an answer without authority is temporary.
func (r *Resolver) At(server string) *Resolver {
	at := New(Config{Servers: []string{server}, Log: r.cfg.Log, Guard: r.cfg.Guard, Exchange: r.cfg.Exchange})
	at.asked, at.direct = r.asked, true
	return at
}

// Servers are the recursive name servers that are asked, as host:port.
func (r *Resolver) Servers() []string {
	if len(r.cfg.Servers) > 0 {
		return r.cfg.Servers
	}
	return r.system.servers()
}

// Answer is what the DNS says. It is shared: nobody may change Records.
type Answer struct {
	Records   []dns.RR // of the type that was asked for, at least one if there is no error
	Canonical string   // the name that has them, at the end of the aliases; in lower case, with its final dot
	Secure    bool     // DNSSEC proves it, with every alias on the way: see the package comment
}

// Of are the records of a type, as in Of[*dns.TLSA](answer).
func Of[T dns.RR](a Answer) []T {
	list := make([]T, 0, len(a.Records))
	for _, record := range a.Records {
		if one, ok := record.(T); ok {
			list = append(list, one)
		}
	}
	return list
}

type question struct {
	name string // in lower case, with its final dot
	kind uint16
}

func (q question) String() string { return q.name + " " + dns.TypeToString[q.kind] }

// Lookup asks for the records of a type. The name is a whole one; its final dot may be missing.
// The error is an *Error: ErrNone, or temporary.
func (r *Resolver) Lookup(ctx context.Context, name string, kind uint16) (Answer, error) {
	q := question{dns.CanonicalName(name), kind}
	if !isName(q.name) {
		return Answer{}, &Error{strconv.Quote(name), ErrNone}
	}
	return r.await(ctx, r.begin(ctx, q))
}

// isName reports a name that a zone can have.
func isName(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok
}

// Bounds of a question.
const (
	maxAsked = 1000            // questions at the same time, each with a descriptor
	tryTime  = 5 * time.Second // for one server to answer
	tries    = 2               // for each server that does not
)

// flight is a question that is being asked, or an answer that was kept.
type flight struct {
	question
	landed  chan struct{}
	cancel  context.CancelFunc
	waiting int // callers that await it; mu of the Resolver

	found found // once landed
	err   error
}

// landed is closed: where kept answers land.
var landed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// begin takes an answer of the cache, or asks. The same question meanwhile gets the same flight.
// Each flight that was begun is to be awaited.
func (r *Resolver) begin(ctx context.Context, q question) *flight {
	servers := r.Servers()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.follow(servers)
	if kept, ok := r.cache.get(q, time.Now()); ok {
		r.stats.Kept++
		return &flight{question: q, landed: landed, found: kept}
	}
	f := r.flights[q]
	if f == nil {
		f = &flight{question: q, landed: make(chan struct{})}
		r.flights[q] = f
		ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		go r.fly(ctx, f)
	}
	f.waiting++
	return f
}

// follow forgets the answers of other servers than these. mu is held.
func (r *Resolver) follow(servers []string) {
	if r.of != nil && !slices.Equal(r.of, servers) {
		r.forget()
	}
	r.of = servers
}

// forget drops the answers in memory, and those on their way, which then are not kept: asked again,
// they may be Secure. mu is held.
func (r *Resolver) forget() {
	r.emptied, r.cache, r.flights = time.Now(), newCache(), make(map[question]*flight)
}

func (r *Resolver) fly(ctx context.Context, f *flight) {
	defer f.cancel()
	began := time.Now()
	f.err = r.cfg.Guard.Try("a lookup", func() (err error) {
		f.found, err = r.ask(ctx, f.question)
		return err
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.count(f, time.Since(began))
	if r.flights[f.question] == f {
		delete(r.flights, f.question)
		if f.err == nil && !r.direct {
			r.cache.put(f.question, f.found, time.Now())
		}
	}
	close(f.landed)
}

// await waits for a flight, which is cancelled when the last caller gives up.
func (r *Resolver) await(ctx context.Context, f *flight) (Answer, error) {
	select {
	case <-f.landed:
	case <-ctx.Done():
		r.leave(f)
		return Answer{}, &Error{f.String(), ctx.Err()}
	}
	answer, err := f.found.Answer, f.err
	if err == nil && answer.Secure {
		answer.Secure, err = r.believes(ctx, f.found.server)
	}
	if err != nil {
		return Answer{}, &Error{f.String(), err}
	}
	if f.found.err != nil {
		err = &Error{f.String(), f.found.err}
	}
	return answer, err
}

func (r *Resolver) leave(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.cancel()
		if r.flights[f.question] == f {
			delete(r.flights, f.question)
		}
	}
}

// ask puts a question to one server after the other until one answers it.
func (r *Resolver) ask(ctx context.Context, q question) (found, error) {
	select {
	case r.asked <- struct{}{}:
		defer func() { <-r.asked }()
	case <-ctx.Done():
		return found{}, ctx.Err()
	}
	servers := r.Servers()
	var trouble error
	for range tries {
		var silent []string
		for _, server := range servers {
			answer, err := r.askOne(ctx, server, q)
			if err == nil || ctx.Err() != nil {
				return answer, err
			}
			if !errors.As(err, new(refusal)) {
				silent = append(silent, server)
			}
			trouble = cmp.Or(trouble, err)
		}
		servers = silent
	}
	return found{}, trouble
}

// refusal is a reply that does not answer the question; its server is not asked again.
type refusal struct {
	rcode int
	text  string
}

func (r refusal) Error() string { return r.text }

// askOne puts a question to a server.
func (r *Resolver) askOne(ctx context.Context, server string, q question) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	query := new(dns.Msg).SetQuestion(q.name, q.kind)
	query.RecursionDesired = !r.direct
	query.SetEdns0(udpSize, true)
	reply, err := r.cfg.Exchange(ctx, server, query)
	if err == nil && isWithoutEDNS(reply) {
		query.Extra = nil
		reply, err = r.cfg.Exchange(ctx, server, query)
	}
	if err != nil {
		return found{}, fmt.Errorf("name server %s: %w", server, err)
	}
	answer, err := r.read(reply, q)
	if err != nil {
		return found{}, fmt.Errorf("name server %s: %w", server, err)
	}
	answer.server = server
	return answer, nil
}
