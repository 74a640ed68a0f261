package queue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config configures a Queue; zero durations take the defaults named.
type Config struct {
	EnqueuePool *pgxpool.Pool // commits of accepted mail and notices
	WorkPool    *pgxpool.Pool // claims, settles, heartbeats, sweeps
	Node        string        // this node's name, for traces
	Log         *slog.Logger

	Heartbeat time.Duration // 5 s
	Lease     time.Duration // 30 s, by the database's clock
	Trust     time.Duration // 20 s since the last successful heartbeat was sent
	ReapAfter time.Duration // 15 s after the lease ended
	Poll      time.Duration // 2 s: how late a claim may be without NOTIFY

	Lifetime    time.Duration // 5 days: then a recipient fails
	DelayNotice time.Duration // 4 h
	History     time.Duration // 30 days

	StrictGate bool // mark rows before the final dot
	NoNotify   bool // do without LISTEN and NOTIFY (poolers)
}

// Queue is one node's side of the queue.
type Queue struct{}

// New makes a Queue; Start begins its work.
func New(cfg Config) *Queue { panic("not yet") }

// Start takes an epoch and begins the heartbeat, the committers, the settler, the
// sweep and the listener. ctx bounds only the start.
func (q *Queue) Start(ctx context.Context) error { return errors.New("not yet") }

// Close flushes what is settled, hands back what this node still owns, ends the
// epoch and stops. Deliveries must have ended before.
func (q *Queue) Close(ctx context.Context) error { return errors.New("not yet") }

// Enqueue commits m durably in a group with others. With owned the recipients are
// born owned by this node and returned as a Delivery, whose Body is body with one
// more reference; otherwise they wait for any node's claim and the Delivery is
// nil. ctx does not cancel a commit that has begun. An *Error has the reply for the client; after it
// the message is not in the queue and never will be.
func (q *Queue) Enqueue(ctx context.Context, m Message, rcpts []Recipient, body Body, owned bool) (*Delivery, error) {
	panic("not yet")
}

// ClaimRequest says how much work is wanted.
type ClaimRequest struct {
	Messages       int      // at most so many deliveries
	PerDestination int      // at most so many recipients of one domain
	Busy           []string // domain keys that are not wanted now
}

// Claim takes recipients that are due, for this node's epoch. It is over when it
// returns: nothing is held but the rows' owner. Small bodies come in memory,
// larger ones are read from the database as they are sent.
func (q *Queue) Claim(ctx context.Context, want ClaimRequest) ([]*Delivery, error) { panic("not yet") }

// Wait returns when a Claim may find work: after a notification, when the next
// row falls due, or after the poll interval.
func (q *Queue) Wait(ctx context.Context) error { panic("not yet") }

// Gate is called just before the final dot for recipients ns of d. An error means
// that the epoch is no longer surely ours: the dot must not be sent.
func (q *Queue) Gate(ctx context.Context, d *Delivery, ns []int) error { panic("not yet") }

// Valid reports that epoch is this node's and still trusted.
func (q *Queue) Valid(epoch int64) bool { panic("not yet") }

// Settle hands over outcomes; they are written in batches, fenced by their epoch,
// and tried again until they are written or fenced off. It blocks only while too
// many outcomes wait.
func (q *Queue) Settle(outcomes ...Outcome) { panic("not yet") }

// Release gives recipients back without an attempt, due again after the wait.
func (q *Queue) Release(d *Delivery, ns []int, wait time.Duration) { panic("not yet") }

// ClaimNotices takes recipients whose sender is to be told something. Failed
// recipients whose lifetime ended while they waited are among them.
func (q *Queue) ClaimNotices(ctx context.Context, messages int) ([]*Notice, error) {
	panic("not yet")
}

// EnqueueNotice commits the notice message and marks its recipients as told, in
// one transaction fenced by the epoch. A nil body marks them told without a
// message (null sender, NOTIFY=NEVER).
func (q *Queue) EnqueueNotice(ctx context.Context, n *Notice, m Message, rcpt Recipient, body []byte) error {
	panic("not yet")
}

// ReleaseNotice gives a notice back, due again after the wait.
func (q *Queue) ReleaseNotice(n *Notice, wait time.Duration) { panic("not yet") }
