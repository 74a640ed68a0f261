package breaker

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlStates   = texts.Bind("states")
	sqlOpen     = texts.Bind("open", "upstream", "node", "stage", "scope", "reply", "sender", "waits", "proven", "recently")
	sqlTake     = texts.Bind("take", "upstream", "node", "span")
	sqlFail     = texts.Bind("fail", "upstream", "lease", "stage", "scope", "reply", "waits")
	sqlGiveBack = texts.Bind("give_back", "upstream", "lease", "wait")
	sqlClose    = texts.Bind("close", "upstream", "node", "lease", "opening")
	sqlHurry    = texts.Bind("hurry", "upstreams")
)

const (
	callTime  = 5 * time.Second  // for one statement
	recently  = 10 * time.Minute // how long a node's opening that another node ended tells against it
	mostReply = 500              // octets that are kept of a reply
)

// account is the scope of a fault of our account.
const account = "account"

// Cause is why an upstream is left alone.
type Cause struct {
	Stage  string        // where in the conversation, as tables of replies have it
	Scope  string        // what is at fault, as there
	Reply  string        // the server's, or what happened in its place
	Sender string        // with whose MAIL a probe asks; "" for none
	Wait   time.Duration // before the next probe; 0: by the backoff
}

// Account reports that mail was refused for our account: other than trouble with connections,
// it is the same for all nodes, and ends the use of those that are open.
func (c *Cause) Account() bool {
	return c.Scope == account && c.Stage != "connect" && c.Stage != "tls" && c.Stage != "auth"
}

// waits are those before the first probe, and after each that fails.
func (c *Cause) waits(backoff []time.Duration) []time.Duration {
	if c.Wait > 0 {
		return []time.Duration{c.Wait}
	}
	return backoff
}

func (c *Cause) storedReply() string {
	reply := c.Reply
	return pg.Storable(reply[:min(len(reply), mostReply)])
}

// State is the breaker of an upstream. The zero State is closed.
type State struct {
	Upstream string
	Open     bool
	Since    time.Time // that it is open, or closed
	Opening  int64     // how often it has opened
	Node     string    // that opened it
	Cause              // of the last opening, or of the last probe that failed; Wait is unused

	Failures  int       // probes of this opening that failed
	NextProbe time.Time // zero if it is closed
	Prober    string    // the node that probes now; "": none
	ClosedBy  string    // the node that closed it last; "": none
	paused    bool      // by an admin
}

// List reads the breakers of all upstreams, by name; Opening is 0 if one never opened.
func List(ctx context.Context, db pg.DB) ([]State, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := db.Query(ctx, sqlStates)
	if err != nil {
		return nil, fmt.Errorf("read the breakers of upstreams: %w", err)
	}
	var list []State
	var s State
	var since, next time.Duration
	_, err = pgx.ForEachRow(rows, []any{&s.Upstream, &s.Opening, &s.Open, &since, &s.Node, &s.Stage, &s.Scope, &s.Reply, &s.Sender,
		&s.Failures, &next, &s.Prober, &s.ClosedBy, &s.paused}, func() error {
		now := time.Now()
		s.Since, s.NextProbe = now.Add(-since), time.Time{}
		if s.Open {
			s.NextProbe = now.Add(next)
		}
		list = append(list, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the breakers of upstreams: %w", err)
	}
	return list, nil
}

// Hurry has the open breakers of the upstreams probed now, those of all if none is named. Running
// nodes see it within a second.
func Hurry(ctx context.Context, db pg.DB, upstreams ...string) error {
	if upstreams == nil {
		upstreams = []string{}
	}
	if _, err := db.Exec(ctx, sqlHurry, upstreams); err != nil {
		return fmt.Errorf("have upstreams probed: %w", err)
	}
	return nil
}

// table is the table upstream_breaker, as a node writes it.
type table struct {
	db      pg.DB
	node    string
	backoff []time.Duration
}

// open reports whether this opened the breaker.
func (t *table) open(ctx context.Context, upstream string, c *Cause) (opened bool, err error) {
	return t.one(ctx, "open", sqlOpen, upstream, t.node, c.Stage, c.Scope, c.storedReply(), pg.Storable(c.Sender), c.waits(t.backoff), c.Account(), recently)
}

// close reports whether this closed the breaker: what was open by the count of openings or,
// after a probe, by its lease.
func (t *table) close(ctx context.Context, upstream string, lease, opening int64) (closed bool, err error) {
	return t.one(ctx, "close", sqlClose, upstream, t.node, lease, opening)
}

// one runs a statement that returns whether it has changed the row, if it has.
func (t *table) one(ctx context.Context, what, sql, upstream string, args ...any) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = t.db.QueryRow(ctx, sql, append([]any{upstream}, args...)...).Scan(&changed)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s the breaker of upstream %s: %w", what, upstream, err)
	}
	return changed, nil
}

// take takes the lease of the probe that is due; 0: another node has it, or none is due.
func (t *table) take(ctx context.Context, upstream string, span time.Duration) (lease int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = t.db.QueryRow(ctx, sqlTake, upstream, t.node, span).Scan(&lease)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("take the probe of upstream %s: %w", upstream, err)
	}
	return lease, nil
}

// fail records a probe that did not get through.
func (t *table) fail(ctx context.Context, upstream string, lease int64, c *Cause) error {
	return t.write(ctx, upstream, sqlFail, lease, c.Stage, c.Scope, c.storedReply(), c.waits(t.backoff))
}

// giveBack ends the lease of a probe that could not be made.
func (t *table) giveBack(ctx context.Context, upstream string, lease int64, wait time.Duration) error {
	return t.write(ctx, upstream, sqlGiveBack, lease, wait)
}

func (t *table) write(ctx context.Context, upstream, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := t.db.Exec(ctx, sql, append([]any{upstream}, args...)...); err != nil {
		return fmt.Errorf("write the breaker of upstream %s: %w", upstream, err)
	}
	return nil
}
