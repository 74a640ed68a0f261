package desk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/queue"
	"postern/relay/smtp"
)

var (
	sqlList       = texts.Bind("list", append(filterNames, "rows", "after_id", "after_n")...)
	sqlShow       = texts.Bind("show", "id")
	sqlStaying    = texts.Bind("staying", "way")
	sqlAccepted   = texts.Bind("accepted", "id")
	sqlEvents     = texts.Bind("events", "id")
	sqlNotices    = texts.Bind("notices", "id")
	sqlLost       = texts.Bind("lost", "rows")
	sqlFind       = texts.Bind("find", "header_id", "address", "rows")
	sqlSummaries  = texts.Bind("summaries", "ids")
	sqlUserStates = texts.Bind("user_states", "user_id")
)

// ErrNotFound says that neither the queue nor its history knows the message.
var ErrNotFound = errors.New("no such message")

// Admin is the operator's view of the queue. It needs only the database: it works while no
// node runs, and its changes are fenced like all others.
type Admin struct {
	db    pg.DB // a transaction, to make several changes together
	actor string
}

// NewAdmin makes an Admin.
func NewAdmin(db pg.DB) *Admin { return &Admin{db: db, actor: "unknown"} }

// As returns an Admin that acts as actor, for the audit and the history.
func (a *Admin) As(actor string) *Admin { return &Admin{a.db, pg.Storable(actor)} }

// State is the state of a recipient (docs/queue-states.md).
type State string

const (
	StateWaiting   State = "waiting"
	StateSending   State = "sending" // a node has it in hand
	StateHeld      State = "held"
	StateFailed    State = "failed"    // its sender is still to be told
	StateDelivered State = "delivered" // its sender is still to be told
)

// Entry is one live recipient with its message. Times are the database's.
type Entry struct {
	ID                queue.ID   `json:"id"`
	N                 int        `json:"n"`
	State             State      `json:"state"`
	UserID            int64      `json:"user_id,omitempty"`       // 0 is a notice of the relay
	CredentialID      int64      `json:"credential_id,omitempty"` // by which it came
	Sender            string     `json:"sender"`                  // "" is the null path
	Recipient         string     `json:"recipient"`
	Size              int64      `json:"size"`
	AcceptedAt        time.Time  `json:"accepted_at"`
	NextAttemptAt     time.Time  `json:"next_attempt_at"`
	ExpiresAt         time.Time  `json:"expires_at"`
	HeldAt            *time.Time `json:"held_at,omitempty"`
	SetAside          string     `json:"set_aside,omitempty"` // why the queue itself holds it: its row is bad
	Attempts          int        `json:"attempts"`
	LastAttemptAt     *time.Time `json:"last_attempt_at,omitempty"`
	LastReply         string     `json:"last_reply,omitempty"`
	RemoteMTA         string     `json:"remote_mta,omitempty"`
	Upstream          string     `json:"upstream,omitempty"`   // of the last attempt
	StaysWith         string     `json:"stays_with,omitempty"` // the only way that it may take, since it may be there
	Doubt             string     `json:"in_doubt,omitempty"`   // it may have been delivered: retry (there), hold or notice
	Owner             int64      `json:"owner,omitempty"`
	Node              string     `json:"node,omitempty"` // of the owner
	PossibleDuplicate bool       `json:"possible_duplicate,omitempty"`
}

// List returns live recipients, the oldest message first.
func (a *Admin) List(ctx context.Context, f Filter) ([]Entry, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	return entries(ctx, a.db, sqlList, append(f.args(), f.Limit, f.AfterID, f.AfterN)...)
}

func entries(ctx context.Context, db pg.DB, sql string, args ...any) ([]Entry, error) {
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
		&e.NextAttemptAt, &e.ExpiresAt, &e.HeldAt, &e.SetAside, &e.Attempts, &e.LastAttemptAt, &reply.code, &reply.enhanced, &reply.text,
		&e.RemoteMTA, &e.Owner, &e.Node, &e.PossibleDuplicate, &e.UserID, &e.CredentialID, &e.Upstream, &e.StaysWith, &e.Doubt)
	e.Sender, e.Recipient, e.LastReply = sender.String(), rcpt.String(), reply.String()
	return e, err
}

// Staying returns how many recipients may take no other way than one of that name: they may
// have been delivered there.
func (a *Admin) Staying(ctx context.Context, way string) (n int, err error) {
	if err = a.db.QueryRow(ctx, sqlStaying, way).Scan(&n); err != nil {
		err = fmt.Errorf("count mail in doubt: %w", err)
	}
	return n, err
}

// Accepted is a message as it was accepted.
type Accepted struct {
	ID           queue.ID   `json:"id"`
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
	Rule         string     `json:"rule,omitempty"`  // of the policy, that allowed the sender; and what was removed before the header
	Usage        []Use      `json:"usage,omitempty"` // of its limits, with this message
	Node         string     `json:"node"`
	VoidedAt     *time.Time `json:"voided_at,omitempty"` // refused after all
	Tags         []string   `json:"tags,omitempty"`      // of the application, as is Metadata
	Metadata     any        `json:"metadata,omitempty"`
}

// Use is what was used of a limit.
type Use struct {
	Kind    string `json:"kind"` // messages, recipients or bytes
	Used    int64  `json:"used"`
	Max     int64  `json:"max"`
	Window  int64  `json:"window_s"`
	Scope   string `json:"scope,omitempty"`   // domain or credential: who used it; "": the user
	Subject string `json:"subject,omitempty"` // the domain, or the credential's id
}

// Event is one line of the history: an attempt, or something that the queue or an
// operator did ("unknown", "expired", "noticed", "retry", "void" …).
type Event struct {
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
	SentAs            string     `json:"sent_as,omitempty"` // the mailbox in the sender's place
	Node              string     `json:"node,omitempty"`
	Scope             string     `json:"scope,omitempty"` // what was at fault: "" is the recipient or the message
	Epoch             int64      `json:"epoch,omitempty"`
	OutcomeUnknown    bool       `json:"outcome_unknown,omitempty"`
	PossibleDuplicate bool       `json:"possible_duplicate,omitempty"`
	DSNPassed         bool       `json:"dsn_passed,omitempty"`
	Fenced            bool       `json:"fenced,omitempty"`

	Left []queue.LeftWay `json:"left_ways,omitempty"` // the attempt's other ways
}

// NoticeEnd is a notice and, if it was lost, how.
type NoticeEnd struct {
	ID     queue.ID         `json:"id"`
	About  queue.ID         `json:"about"` // the message that it is about
	Kind   queue.NoticeKind `json:"kind"`
	Lost   string           `json:"lost,omitempty"` // "": it waits, or was delivered
	LostAt *time.Time       `json:"lost_at,omitempty"`
	To     string           `json:"to,omitempty"`    // when it was lost
	Reply  string           `json:"reply,omitempty"` // when it was lost: the last that it got
}

// History is everything that the database knows of a message.
type History struct {
	Message Accepted    `json:"message"`
	Live    []Entry     `json:"live"`
	Events  []Event     `json:"history"`
	Notice  *NoticeEnd  `json:"notice,omitempty"`  // the message is one
	Notices []NoticeEnd `json:"notices,omitempty"` // about the message
}

// Done reports that nothing is left to be done for the message.
func (h *History) Done() bool { return len(h.Live) == 0 }

// Trace returns the history of a message; ErrNotFound if it is unknown or was deleted.
func (a *Admin) Trace(ctx context.Context, id queue.ID) (*History, error) {
	var h *History
	err := a.snapshot(ctx, func(tx pgx.Tx) (err error) {
		if h, err = show(ctx, tx, id); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sqlEvents, id)
		if err == nil {
			h.Events, err = pgx.CollectRows(rows, scanEvent)
		}
		if err != nil {
			return fmt.Errorf("trace: %w", err)
		}
		return h.findNotices(ctx, tx)
	})
	return h, err
}

// findNotices adds the message's own record if it is a notice, and the notices about it.
func (h *History) findNotices(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, sqlNotices, h.Message.ID)
	if err != nil {
		return fmt.Errorf("trace: notices: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanNoticeEnd)
	if err != nil {
		return fmt.Errorf("trace: notices: %w", err)
	}
	for _, n := range list {
		if n.ID == h.Message.ID {
			h.Notice = &n
			continue
		}
		h.Notices = append(h.Notices, n)
	}
	return nil
}

// Lost lists the lost notices that the history still has, the latest loss first.
func (a *Admin) Lost(ctx context.Context, limit int) ([]NoticeEnd, error) {
	rows, err := a.db.Query(ctx, sqlLost, limit)
	if err != nil {
		return nil, fmt.Errorf("list lost notices: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanNoticeEnd)
	if err != nil {
		return nil, fmt.Errorf("list lost notices: %w", err)
	}
	return list, nil
}

// Show is Trace without the events and the notices.
func (a *Admin) Show(ctx context.Context, id queue.ID) (*History, error) {
	var h *History
	err := a.snapshot(ctx, func(tx pgx.Tx) (err error) {
		h, err = show(ctx, tx, id)
		return err
	})
	return h, err
}

// snapshot reads everything as of one moment, so that a recipient and its events agree.
func (a *Admin) snapshot(ctx context.Context, read func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set transaction isolation level repeatable read, read only`); err != nil {
			return err
		}
		return read(tx)
	})
}

func show(ctx context.Context, tx pgx.Tx, id queue.ID) (*History, error) {
	var h History
	var sender addressColumns
	m := &h.Message
	err := tx.QueryRow(ctx, sqlAccepted, id).Scan(&m.ID, &m.UserID, &m.CredentialID, &sender.local, &sender.domain, &m.Size,
		&m.Recipients, &m.MessageID, &m.EnvID, &m.AcceptedAt, &m.ClientAddr, &m.ClientHello, &m.Listener, &m.TLS, &m.Rule, &m.Usage, &m.Node, &m.VoidedAt, &m.Tags, &m.Metadata)
	unknown := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !unknown {
		return nil, fmt.Errorf("show message: %w", err)
	}
	m.ID, m.Sender = id, sender.String()
	h.Live, err = entries(ctx, tx, sqlShow, id)
	if err == nil && unknown && h.Done() { // a recipient may have lost its message
		return nil, ErrNotFound
	}
	return &h, err
}

func scanEvent(row pgx.CollectableRow) (Event, error) {
	var t Event
	var rcpt addressColumns
	var reply replyColumns
	err := row.Scan(&t.N, &t.At, &t.StartedAt, &t.Result, &rcpt.local, &rcpt.domain, &reply.code, &reply.enhanced, &reply.text,
		&t.RemoteMTA, &t.RemoteAddr, &t.TLS, &t.Upstream, &t.SentAs, &t.Node, &t.Scope, &t.Epoch, &t.OutcomeUnknown, &t.PossibleDuplicate, &t.DSNPassed, &t.Fenced, &t.Left)
	t.Recipient, t.Reply = rcpt.String(), reply.String()
	return t, err
}

func scanNoticeEnd(row pgx.CollectableRow) (NoticeEnd, error) {
	var n NoticeEnd
	var to addressColumns
	var reply replyColumns
	err := row.Scan(&n.ID, &n.About, &n.Kind, &n.Lost, &n.LostAt, &to.local, &to.domain, &reply.code, &reply.enhanced, &reply.text)
	if n.Lost != "" {
		n.To, n.Reply = to.String(), reply.String()
	}
	return n, err
}

// Find returns the newest messages with a Message-ID field (with or without its
// brackets), or with an address as sender or recipient.
func (a *Admin) Find(ctx context.Context, what string, limit int) ([]queue.ID, error) {
	header, address := what, strings.Trim(what, "<>")
	if a, err := smtp.ParseRecipient(address); err == nil {
		address = a.Local + "@" + a.Domain // as stored, without the quotes of the wire
	}
	if !strings.HasPrefix(header, "<") {
		header = "<" + header + ">"
	}
	rows, err := a.db.Query(ctx, sqlFind, header, spellings(address), limit)
	if err != nil {
		return nil, fmt.Errorf("find message: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[queue.ID])
	if err != nil {
		return nil, fmt.Errorf("find message: %w", err)
	}
	return list, nil
}

// Summary is a message and how many of its recipients are in which state.
type Summary struct {
	ID         queue.ID  `json:"id"`
	UserID     int64     `json:"user_id,omitempty"`
	Sender     string    `json:"sender"`
	Recipient  string    `json:"recipient"` // the first of them
	Recipients int       `json:"recipients"`
	AcceptedAt time.Time `json:"accepted_at"`
	Voided     bool      `json:"voided,omitempty"` // refused after all
	Delivered  int       `json:"delivered"`
	Failed     int       `json:"failed"`
	Cancelled  int       `json:"cancelled"`
	Waiting    int       `json:"waiting"`
	Sending    int       `json:"sending"`
	Held       int       `json:"held"`
}

// Summaries returns a summary of each message, in the order of ids, without those that are
// unknown.
func (a *Admin) Summaries(ctx context.Context, ids []queue.ID) ([]Summary, error) {
	rows, err := a.db.Query(ctx, sqlSummaries, octets(ids))
	if err != nil {
		return nil, fmt.Errorf("summaries: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanSummary)
	if err != nil {
		return nil, fmt.Errorf("summaries: %w", err)
	}
	return list, nil
}

func scanSummary(row pgx.CollectableRow) (Summary, error) {
	var s Summary
	var sender, rcpt addressColumns
	err := row.Scan(&s.ID, &s.UserID, &sender.local, &sender.domain, &rcpt.local, &rcpt.domain, &s.Recipients, &s.AcceptedAt,
		&s.Voided, &s.Delivered, &s.Failed, &s.Cancelled, &s.Waiting, &s.Sending, &s.Held)
	s.Sender, s.Recipient = sender.String(), rcpt.String()
	return s, err
}

// Counts returns how many live recipients a user has in each state.
func (a *Admin) Counts(ctx context.Context, user int64) (map[State]int, error) {
	rows, err := a.db.Query(ctx, sqlUserStates, user)
	if err != nil {
		return nil, fmt.Errorf("count mail: %w", err)
	}
	counts := make(map[State]int)
	var state State
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		counts[state] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count mail: %w", err)
	}
	return counts, nil
}
