package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/smtp"
)

// Bounds of a page. A page of events of mail with many recipients has fewer rows.
const (
	pageRows   = 500
	pageOctets = 4 << 20
	pageTime   = 30 * time.Second
)

// Filter chooses events; its zero value chooses all.
type Filter struct {
	UserID int64     // only events of this user's mail and addresses; never those of upstreams, limits or admins
	Kinds  []Kind    // only these
	Since  time.Time // only what happened then or later
}

func (f *Filter) takes(e *Event) bool {
	return (f.UserID == 0 || e.userID == f.UserID && (e.Message != nil || e.Kind.ofUser())) && (len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) && !e.At.Before(f.Since)
}

// Page is a part of the feed.
type Page struct {
	Events []Event
	Next   Cursor // behind all rows of the page, also behind those that the filter leaves out
	More   bool   // there are rows behind it now
}

var (
	sqlState  = texts.Bind("state", "incarnation")
	sqlPage   = texts.Bind("page", "feed_at", "source", "key", "number", "horizon", "rows")
	sqlNewest = texts.Bind("newest")
	sqlBefore = texts.Bind("before", "since")
)

// Read returns the events behind a cursor that can be read now. A transaction that is open keeps all
// later ones back. The error is a GoneError, or the database's.
func Read(ctx context.Context, db pg.DB, after Cursor, f Filter) (page Page, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	tx, err := db.Begin(ctx)
	if err != nil {
		return page, fmt.Errorf("read events: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// One snapshot for the state and the page.
	if _, err := tx.Exec(ctx, `set transaction isolation level repeatable read, read only`); err != nil {
		return page, fmt.Errorf("read events: %w", err)
	}
	var s state
	if err := tx.QueryRow(ctx, sqlState, after.incarnation).Scan(&s.incarnation, &s.gone, &s.goneAt, &s.horizon, &s.ended, &s.before, nil, nil, nil, nil, nil); err != nil {
		return page, fmt.Errorf("read events: %w", err)
	}
	from, err := s.resume(after)
	if err != nil {
		return page, err
	}
	page, err = read(ctx, tx, from, s.horizon, f)
	if err != nil {
		return page, fmt.Errorf("read events: %w", err)
	}
	return page, nil
}

func read(ctx context.Context, tx pgx.Tx, from Cursor, horizon int64, f Filter) (Page, error) {
	page := Page{Next: from}
	rows, err := tx.Query(ctx, sqlPage, from.feedAt, from.source, from.key, from.number, horizon, pageRows)
	if err != nil {
		return page, err
	}
	defer rows.Close()
	n, octets := 0, 0
	for rows.Next() {
		if octets > pageOctets {
			page.More = true
			return page, nil
		}
		var r row
		if err := r.scan(rows); err != nil {
			return page, err
		}
		for _, text := range rows.RawValues() {
			octets += len(text)
		}
		n++
		page.Next.feedAt, page.Next.source, page.Next.key, page.Next.number = r.feedAt, r.source, r.key, r.number()
		if e := r.event(); e.Kind != "" && f.takes(&e) {
			e.Cursor = page.Next.String()
			page.Events = append(page.Events, e)
		}
	}
	page.More = n == pageRows
	return page, rows.Err()
}

// Newest finds the place behind all that can be read now.
func Newest(ctx context.Context, db pg.DB) (c Cursor, err error) {
	c.source = sources
	if err := db.QueryRow(ctx, sqlNewest).Scan(&c.incarnation, &c.feedAt); err != nil {
		return c, fmt.Errorf("find the newest event: %w", err)
	}
	return c, nil
}

// Before finds a place a few minutes in front of a time, or in front of all that is kept.
func Before(ctx context.Context, db pg.DB, since time.Time) (c Cursor, err error) {
	c.lenient = true
	if err := db.QueryRow(ctx, sqlBefore, since).Scan(&c.incarnation, &c.feedAt); err != nil {
		return c, fmt.Errorf("find the events of a time: %w", err)
	}
	return c, nil
}

// The tables by their numbers.
const (
	ofMessage = 1 + iota
	ofHistory
	ofAudit
	ofEvent
	sources
)

// row is a row of the page.
type row struct {
	feedAt                     int64
	source                     int
	key, kind, user            string
	at                         time.Time
	id                         *uuid.UUID
	fenced, unknown, duplicate bool
	userID, size               int64
	label, headerID            string
	sender, rcpt               smtp.Address
	known                      bool // the message
	locals, domains            []string
	reply                      Reply
	remote                     Remote
	scope, upstream, node      string
	attempt                    int
	next                       *time.Time
	actor, action, object      string
	tags                       []string
	metadata, detail           *string
}

func (r *row) scan(rows pgx.Rows) error {
	return rows.Scan(&r.feedAt, &r.source, &r.key, &r.at, &r.id, &r.kind, &r.fenced, &r.unknown, &r.duplicate,
		&r.userID, &r.user, &r.label, &r.headerID, &r.sender.Local, &r.sender.Domain, &r.size, &r.tags, &r.metadata, &r.known, &r.locals, &r.domains,
		&r.rcpt.Local, &r.rcpt.Domain, &r.reply.Code, &r.reply.Enhanced, &r.reply.Text,
		&r.scope, &r.upstream, &r.remote.Host, &r.remote.Address, &r.remote.TLS, &r.node,
		&r.attempt, &r.next, &r.actor, &r.action, &r.object, &r.detail)
}

// number is the id of a row of audit or event, by which its table is ordered.
func (r *row) number() (n int64) {
	if r.source == ofAudit || r.source == ofEvent {
		_, _ = fmt.Sscanf(r.key, "%d", &n)
	}
	return n
}

// event is the row's event; its Kind is "" if it has none.
func (r *row) event() Event {
	e := Event{ID: idOf(r.source, r.key, r.at), Kind: Kind(r.kind), At: r.at.UTC(), User: r.user, userID: r.userID}
	switch r.source {
	case ofMessage:
		e.Message, e.Node = r.message(), r.node
		for i := range r.locals {
			e.Message.Recipients = append(e.Message.Recipients, smtp.Address{Local: r.locals[i], Domain: r.domains[i]}.String())
		}
	case ofHistory:
		e.Kind = kindOf(r.kind, r.fenced, r.unknown)
		e.Message, e.Recipient = r.message(), r.rcpt.String()
		if r.reply != (Reply{}) {
			e.Reply = &r.reply
		}
		if r.remote != (Remote{}) {
			e.Remote = &r.remote
		}
		e.Scope, e.Upstream, e.Node, e.Attempt, e.NextAttempt = r.scope, r.upstream, r.node, r.attempt, r.next
		e.MayHaveArrived, e.MayBeDuplicate, e.ArrivedByPerson = r.unknown, r.duplicate, r.kind == "resolve"
	default:
		e.Actor, e.Action, e.Object = r.actor, r.action, r.object
		if r.detail != nil {
			e.Detail = json.RawMessage(*r.detail)
		}
	}
	return e
}

func (r *row) message() *Message {
	m := &Message{Credential: r.label, HeaderID: r.headerID, Size: r.size, Tags: r.tags}
	if r.id != nil {
		m.ID = *r.id
	}
	if r.known {
		m.Sender = r.sender.String()
	}
	if r.metadata != nil {
		m.Metadata = json.RawMessage(*r.metadata)
	}
	return m
}

// ErrNoUser means that no user of a name was removed lately.
var ErrNoUser = errors.New("no such user")

var sqlFormerUser = texts.Bind("former_user", "name")

// FormerUser finds a user who was removed, by its canonical name. The error is ErrNoUser, also if another
// user has the name now, or the database's.
func FormerUser(ctx context.Context, db pg.DB, name string) (id int64, err error) {
	err = db.QueryRow(ctx, sqlFormerUser, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrNoUser
	}
	return id, err
}
