package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotFound says that neither the queue nor its history knows the message.
var ErrNotFound = errors.New("no such message")

// Admin is the operator's view of the queue. It needs nothing but the database: it
// works while no node runs, and what it changes is fenced like everything else.
type Admin struct{ pool *pgxpool.Pool }

// NewAdmin makes an Admin.
func NewAdmin(pool *pgxpool.Pool) *Admin { return &Admin{pool} }

// State is a recipient's state in words for people (docs/queue-states.md).
type State string

const (
	StateWaiting   State = "waiting"
	StateOwned     State = "sending" // a node has it in hand
	StateHeld      State = "held"
	StateFailed    State = "failed"    // its sender is still to be told
	StateDelivered State = "delivered" // its sender is still to be told
)

// Filter chooses recipients to list; zero fields choose all.
type Filter struct {
	State  State
	Domain string // domain key of the recipient
	Limit  int    // 100 when 0
}

// Entry is one live recipient with its message. Times are the database's.
type Entry struct {
	ID                ID         `json:"id"`
	N                 int        `json:"n"`
	State             State      `json:"state"`
	Sender            string     `json:"sender"` // "" is the null path
	Recipient         string     `json:"recipient"`
	Size              int64      `json:"size"`
	AcceptedAt        time.Time  `json:"accepted_at"`
	NextAttemptAt     time.Time  `json:"next_attempt_at"`
	ExpiresAt         time.Time  `json:"expires_at"`
	HeldAt            *time.Time `json:"held_at,omitempty"`
	Attempts          int        `json:"attempts"`
	LastAttemptAt     *time.Time `json:"last_attempt_at,omitempty"`
	LastReply         string     `json:"last_reply,omitempty"`
	RemoteMTA         string     `json:"remote_mta,omitempty"`
	Owner             int64      `json:"owner,omitempty"`
	Node              string     `json:"node,omitempty"` // of the owner
	PossibleDuplicate bool       `json:"possible_duplicate,omitempty"`
}

const sqlEntries = `
select r.message_id, r.n, case when r.state <> 'queued' then r.state when r.owner is not null then 'sending'
		when r.held_at is not null then 'held' else 'waiting' end as st,
	m.sender_local, m.sender_domain, r.local, r.domain, m.size, r.accepted_at, r.next_attempt_at, r.expires_at, r.held_at,
	r.attempts, r.last_attempt_at, r.reply_code, r.reply_enhanced, r.reply_text, r.remote_mta, coalesce(r.owner, 0),
	coalesce(node.name, ''), r.possible_duplicate
from recipient r join message m on m.id = r.message_id left join node on node.epoch = r.owner`

// sqlList lists in order of acceptance.
const sqlList = sqlEntries + `
where ($1 = '' or case when r.state <> 'queued' then r.state when r.owner is not null then 'sending'
		when r.held_at is not null then 'held' else 'waiting' end = $1)
	and ($2 = '' or r.domain_key = $2)
order by r.message_id, r.n limit $3`

// List returns live recipients, the oldest message first.
func (a *Admin) List(ctx context.Context, f Filter) ([]Entry, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	return entries(ctx, a.pool, sqlList, string(f.State), f.Domain, f.Limit)
}

const sqlShow = sqlEntries + ` where r.message_id = $1 order by r.n`

// reader is a pool or a transaction.
type reader interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func entries(ctx context.Context, db reader, sql string, args ...any) ([]Entry, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("list queue: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanEntry)
	if err != nil {
		return nil, fmt.Errorf("list queue: %w", err)
	}
	return list, nil
}

func scanEntry(row pgx.CollectableRow) (Entry, error) {
	var e Entry
	var sender, rcpt addressColumns
	var reply replyColumns
	err := row.Scan(&e.ID, &e.N, &e.State, &sender.local, &sender.domain, &rcpt.local, &rcpt.domain, &e.Size, &e.AcceptedAt,
		&e.NextAttemptAt, &e.ExpiresAt, &e.HeldAt, &e.Attempts, &e.LastAttemptAt, &reply.code, &reply.enhanced, &reply.text,
		&e.RemoteMTA, &e.Owner, &e.Node, &e.PossibleDuplicate)
	e.Sender, e.Recipient, e.LastReply = sender.String(), rcpt.String(), reply.String()
	return e, err
}

// Accepted is what is known of a message from its acceptance.
type Accepted struct {
	ID           ID         `json:"id"`
	UserID       int64      `json:"user_id,omitempty"`
	CredentialID int64      `json:"credential_id,omitempty"`
	Sender       string     `json:"sender"`
	Size         int64      `json:"size"`
	Recipients   int        `json:"recipients"`
	MessageID    string     `json:"message_id,omitempty"`
	EnvID        string     `json:"envid,omitempty"`
	AcceptedAt   time.Time  `json:"accepted_at"`
	ClientAddr   string     `json:"client_addr,omitempty"`
	ClientHello  string     `json:"client_hello,omitempty"`
	Listener     string     `json:"listener,omitempty"`
	TLS          string     `json:"tls,omitempty"`
	Node         string     `json:"node"`
	VoidedAt     *time.Time `json:"voided_at,omitempty"` // refused after all
}

// Attempt is one line of the history: an attempt, or something the queue or an
// operator did ("unknown", "expired", "noticed", "retry", "void" …).
type Attempt struct {
	N                 int        `json:"n"`
	At                time.Time  `json:"at"`
	StartedAt         *time.Time `json:"started_at,omitempty"`
	Result            string     `json:"result"`
	Recipient         string     `json:"recipient"`
	Reply             string     `json:"reply,omitempty"`
	RemoteMTA         string     `json:"remote_mta,omitempty"`
	RemoteAddr        string     `json:"remote_addr,omitempty"`
	TLS               string     `json:"tls,omitempty"`
	Upstream          string     `json:"upstream,omitempty"`
	Node              string     `json:"node,omitempty"`
	Epoch             int64      `json:"epoch,omitempty"`
	OutcomeUnknown    bool       `json:"outcome_unknown,omitempty"`
	PossibleDuplicate bool       `json:"possible_duplicate,omitempty"`
	DSNPassed         bool       `json:"dsn_passed,omitempty"`
	Fenced            bool       `json:"fenced,omitempty"`
}

// History is everything that the database knows of a message.
type History struct {
	Message  Accepted  `json:"message"`
	Live     []Entry   `json:"live"`
	Attempts []Attempt `json:"attempts"`
}

// Done reports that nothing is left to be done for the message.
func (h *History) Done() bool { return len(h.Live) == 0 }

const sqlAccepted = `
select id, user_id, credential_id, sender_local, sender_domain, size, recipients, header_id, envid, accepted_at, client_addr,
	client_hello, listener, tls, node, voided_at
from message where id = $1`

const sqlAttempts = `
select n, at, started_at, result, local, domain, reply_code, reply_enhanced, reply_text, remote_mta, remote_addr, tls, upstream,
	node, epoch, outcome_unknown, possible_duplicate, dsn_passed, fenced
from attempt where message_id = $1 order by at, n`

// Trace tells what became of a message; ErrNotFound if it is not known (any more).
func (a *Admin) Trace(ctx context.Context, id ID) (*History, error) {
	var h *History
	err := a.atOnce(ctx, func(tx pgx.Tx) (err error) {
		if h, err = show(ctx, tx, id); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sqlAttempts, id)
		if err == nil {
			h.Attempts, err = pgx.CollectRows(rows, scanAttempt)
		}
		if err != nil {
			return fmt.Errorf("trace: %w", err)
		}
		return nil
	})
	return h, err
}

// Show is Trace without the attempts.
func (a *Admin) Show(ctx context.Context, id ID) (*History, error) {
	var h *History
	err := a.atOnce(ctx, func(tx pgx.Tx) (err error) {
		h, err = show(ctx, tx, id)
		return err
	})
	return h, err
}

// atOnce reads all at one moment, so that a recipient and its attempts agree.
func (a *Admin) atOnce(ctx context.Context, read func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, a.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, read)
}

func show(ctx context.Context, tx pgx.Tx, id ID) (*History, error) {
	var h History
	var sender addressColumns
	m := &h.Message
	err := tx.QueryRow(ctx, sqlAccepted, id).Scan(&m.ID, &m.UserID, &m.CredentialID, &sender.local, &sender.domain, &m.Size,
		&m.Recipients, &m.MessageID, &m.EnvID, &m.AcceptedAt, &m.ClientAddr, &m.ClientHello, &m.Listener, &m.TLS, &m.Node, &m.VoidedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("show message: %w", err)
	}
	m.Sender = sender.String()
	h.Live, err = entries(ctx, tx, sqlShow, id)
	return &h, err
}

func scanAttempt(row pgx.CollectableRow) (Attempt, error) {
	var t Attempt
	var rcpt addressColumns
	var reply replyColumns
	err := row.Scan(&t.N, &t.At, &t.StartedAt, &t.Result, &rcpt.local, &rcpt.domain, &reply.code, &reply.enhanced, &reply.text,
		&t.RemoteMTA, &t.RemoteAddr, &t.TLS, &t.Upstream, &t.Node, &t.Epoch, &t.OutcomeUnknown, &t.PossibleDuplicate, &t.DSNPassed, &t.Fenced)
	t.Recipient, t.Reply = rcpt.String(), reply.String()
	return t, err
}

// sqlFind has no index: it is asked by people, and seldom.
const sqlFind = `select id from message where header_id = $1 order by id desc limit $2`

// Find returns the newest messages with a Message-ID field, brackets included.
func (a *Admin) Find(ctx context.Context, messageID string, limit int) ([]ID, error) {
	rows, err := a.pool.Query(ctx, sqlFind, messageID, limit)
	if err != nil {
		return nil, fmt.Errorf("find message: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[ID])
	if err != nil {
		return nil, fmt.Errorf("find message: %w", err)
	}
	return list, nil
}

// sqlRetry makes waiting rows due. $1 null: all of them. Held rows stay held.
const sqlRetry = `
with w as materialized (select message_id, n, local, domain from recipient
	where owner is null and held_at is null and state = 'queued' and ($1::uuid[] is null or message_id = any($1)) for update skip locked),
back as (update recipient r set next_attempt_at = least(now(), r.next_attempt_at) from w where r.message_id = w.message_id and r.n = w.n),
h as (insert into attempt (message_id, n, at, epoch, result, local, domain, reply_text)
	select message_id, n, clock_timestamp(), 0, 'retry', local, domain, 'asked for by an operator' from w on conflict do nothing)
select count(*) from w`

// Retry makes the waiting recipients of messages due now and says how many there were.
func (a *Admin) Retry(ctx context.Context, ids []ID) (int, error) {
	list := make([][16]byte, len(ids))
	for i, id := range ids {
		list[i] = id
	}
	return a.retry(ctx, list)
}

// RetryAll makes all waiting recipients due now and says how many there were.
func (a *Admin) RetryAll(ctx context.Context) (int, error) { return a.retry(ctx, nil) }

func (a *Admin) retry(ctx context.Context, list [][16]byte) (int, error) {
	var count int
	if err := a.pool.QueryRow(ctx, sqlRetry, list).Scan(&count); err != nil {
		return 0, fmt.Errorf("retry: %w", err)
	}
	// Only a hint to hurry: poolers may not carry it, and polling finds the rows.
	_, _ = a.pool.Exec(ctx, sqlNotifyAsked)
	return count, nil
}
