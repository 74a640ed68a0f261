package breaker

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/upstream"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlStates   = texts.Bind("states")
	sqlOpen     = texts.Bind("open", "upstream", "node", "stage", "scope", "reply", "sender", "account", "past_probe", "waits", "recently")
	sqlTake     = texts.Bind("take", "upstream", "node", "span")
	sqlFail     = texts.Bind("fail", "upstream", "lease", "stage", "scope", "reply", "account", "past_probe", "waits")
	sqlGiveBack = texts.Bind("give_back", "upstream", "lease", "wait")
	sqlClose    = texts.Bind("close", "upstream", "node", "lease", "opening")
	sqlHurry    = texts.Bind("hurry", "upstream")
)

const (
	callTime  = 5 * time.Second  // for one statement
	recently  = 10 * time.Minute // for how long a node does not reopen what another node has closed
	mostReply = 300              // octets that are kept of a reply
)

// Cause is why an upstream's breaker is open.
type Cause struct {
	Stage  upstream.Stage `json:"stage,omitempty"` // where in the conversation
	Scope  upstream.Scope `json:"scope,omitempty"` // what is at fault
	Reply  string         `json:"reply,omitempty"` // the server's, or what happened in its place
	Sender string         `json:"-"`               // with whose MAIL a probe asks; "" for none
	Wait   time.Duration  `json:"-"`               // before the next probe; 0: by the backoff
}

// Account reports that mail was refused for our account: other than trouble with connections,
// it is the same for all nodes, and ends the use of those that are open.
func (c *Cause) Account() bool {
	return c.Scope == upstream.ScopeAccount && !c.Stage.BeforeMail()
}

// pastProbe reports a refusal of mail where no probe comes.
func (c *Cause) pastProbe() bool {
	return !c.Stage.BeforeMail() && (c.Stage != upstream.StageMail || c.Sender == "")
}

// Why is the cause in a line, with the server's text as it came.
func (c *Cause) Why() string { return fmt.Sprintf("%s, %s: %s", c.Stage, c.Scope, c.Reply) }

// waits are those before the first probe, and after each that fails.
func (c *Cause) waits(backoff []time.Duration) []time.Duration {
	if c.Wait > 0 {
		return []time.Duration{c.Wait}
	}
	return backoff
}

func (c *Cause) storedReply() string {
	return pg.Storable(c.Reply[:min(len(c.Reply), mostReply)])
}

// State is the breaker of an upstream. The zero State is closed.
type State struct {
	Upstream string    `json:"-"`
	Phase    string    `json:"state"`          // closed, open, half-open
	Open     bool      `json:"-"`              // or half-open
	Since    time.Time `json:"since,omitzero"` // that it is open, or closed; zero if it never opened
	Opening  int64     `json:"openings"`       // how many there were
	Node     string    `json:"node,omitempty"` // that opened it
	Cause              // of the last opening, or of the last probe that failed; Wait is unused

	Failures  int       `json:"failed_probes,omitempty"` // of this opening
	NextProbe time.Time `json:"next_probe,omitzero"`     // zero if it is closed
	Prober    string    `json:"prober,omitempty"`        // the node that probes now; "": none
	paused    bool      // by an admin
	account   bool      // Account, of any cause since it opened
	past      bool      // pastProbe, likewise
}

// Account reports that mail was refused for our account since it opened.
func (s State) Account() bool { return s.account }

// States are those of all upstreams, by their names.
type States []State

// Of is the breaker of an upstream, closed if there is no such upstream.
func (l States) Of(upstream string) State {
	for i := range l {
		if l[i].Upstream == upstream {
			return l[i]
		}
	}
	return State{}
}

// List reads the breakers of all upstreams.
func List(ctx context.Context, db pg.DB) (States, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := db.Query(ctx, sqlStates)
	if err != nil {
		return nil, fmt.Errorf("read the breakers of upstreams: %w", err)
	}
	var list States
	var s State
	var since, next *time.Duration
	_, err = pgx.ForEachRow(rows, []any{&s.Upstream, &s.Phase, &s.Opening, &since, &s.Node, &s.Stage, &s.Scope, &s.Reply, &s.Sender,
		&s.Failures, &next, &s.Prober, &s.paused, &s.account, &s.past}, func() error {
		s.Open, s.Since, s.NextProbe = next != nil, time.Time{}, time.Time{}
		if now := time.Now(); since != nil {
			s.Since = now.Add(-*since)
			if s.Open {
				s.NextProbe = now.Add(*next)
			}
		}
		list = append(list, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the breakers of upstreams: %w", err)
	}
	return list, nil
}

// Hurry has the open breaker of an upstream probed now, those of all if it is "", and returns how
// many that are. Running nodes see it within a second.
func Hurry(ctx context.Context, db pg.DB, upstream string) (n int64, err error) {
	if err = db.QueryRow(ctx, sqlHurry, upstream).Scan(&n); err != nil {
		err = fmt.Errorf("have upstreams probed: %w", err)
	}
	return n, err
}

// table is the table upstream_breaker, as a node writes it.
type table struct {
	db      pg.DB
	node    string
	backoff []time.Duration
}

// open reports whether this opened the breaker.
func (t *table) open(ctx context.Context, upstream string, c *Cause) (opened bool, err error) {
	n, err := t.change(ctx, "open", sqlOpen, upstream, t.node, c.Stage, c.Scope, c.storedReply(), pg.Storable(c.Sender), c.Account(), c.pastProbe(), c.waits(t.backoff), recently)
	return n > 0, err
}

// close reports whether this closed the breaker: what was open by the count of openings or,
// after a probe, by its lease.
func (t *table) close(ctx context.Context, upstream string, lease, opening int64) (closed bool, err error) {
	n, err := t.change(ctx, "close", sqlClose, upstream, t.node, lease, opening)
	return n > 0, err
}

// take takes the lease of the probe that is due; 0: another node has it, or none is due.
func (t *table) take(ctx context.Context, upstream string, span time.Duration) (lease int64, err error) {
	return t.change(ctx, "take the probe of", sqlTake, upstream, t.node, span)
}

// fail records a probe that did not get through.
func (t *table) fail(ctx context.Context, upstream string, lease int64, c *Cause) error {
	_, err := t.change(ctx, "keep open", sqlFail, upstream, lease, c.Stage, c.Scope, c.storedReply(), c.Account(), c.pastProbe(), c.waits(t.backoff))
	return err
}

// giveBack ends the lease of a probe that could not be made.
func (t *table) giveBack(ctx context.Context, upstream string, lease int64, wait time.Duration) error {
	_, err := t.change(ctx, "give back the probe of", sqlGiveBack, upstream, lease, wait)
	return err
}

// change runs a statement that returns the row's opening or lease, if it has changed it; else 0.
func (t *table) change(ctx context.Context, what, sql, upstream string, args ...any) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = t.db.QueryRow(ctx, sql, append([]any{upstream}, args...)...).Scan(&n)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("%s the breaker of upstream %s: %w", what, upstream, err)
	}
	return n, nil
}
