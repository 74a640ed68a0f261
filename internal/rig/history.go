package rig

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
)

// Event is one row of the relay's own history.
type Event struct {
	MessageID         string // the Message-ID field, or the queue's id of a message that it does not have
	Recipient         string
	Epoch             int64
	At                time.Time
	Result            string
	Node              string
	ReplyText         string
	OutcomeUnknown    bool
	PossibleDuplicate bool
	Fenced            bool
}

const sqlHistory = `
select coalesce(m.header_id, a.message_id::text), a.local || '@' || a.domain, a.epoch, a.at, a.result, a.node, a.reply_text,
	a.outcome_unknown, a.possible_duplicate, a.fenced
from history a left join message m on m.id = a.message_id order by a.at`

// History reads what the relay recorded.
func (r *Rig) History(ctx context.Context) ([]Event, error) {
	rows, err := r.pool.Query(ctx, sqlHistory)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return list, nil
}

// Drain waits until the queue is empty: no recipient and no body is left. The database may
// be away for a while. It gives up when nothing has left the queue for Patience: how fast
// it empties is the machine's affair.
func (r *Rig) Drain() {
	r.t.Helper()
	began, patience, least := time.Now(), time.NewTimer(Patience), math.MaxInt
	defer patience.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		// A look at all bodies would keep their tables from being truncated.
		left, err := r.Count(ctx, `select count(*) + exists (select from stored_body)::int from recipient`)
		cancel()
		if err == nil && left == 0 {
			r.t.Logf("drained in %.1f s", time.Since(began).Seconds())
			return
		}
		if err == nil && left < least {
			least = left
			patience.Reset(Patience)
		}
		select {
		case <-look.C:
		case <-patience.C:
			r.t.Fatalf("nothing has left the queue for %v: %v\n%s", Patience, err, r.left())
		}
	}
}

// left describes what is still in the queue.
func (r *Rig) left() string {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var text string
	err := r.pool.QueryRow(ctx, `
select coalesce(string_agg(t::text, E'\n'), 'bodies only') from (
	select r.message_id, r.n, r.state, r.owner, r.next_attempt_at - now() as due, r.attempts, r.reply_code, r.reply_text, n.name, n.reaped_at
	from recipient r left join node n on n.epoch = r.owner limit 10) t`).Scan(&text)
	if err != nil {
		return err.Error()
	}
	return text + "\n" + r.space(ctx)
}

// space describes what takes up the database's disk, the largest first.
func (r *Rig) space(ctx context.Context) string {
	var text string
	err := r.pool.QueryRow(ctx, `
select format('log of commits %s, all %s, ', pg_size_pretty((select sum(size) from pg_ls_waldir())), pg_size_pretty(pg_database_size(current_database())))
	|| (select string_agg(relname || ' ' || pg_size_pretty(size), ', ') from (
	select relname, pg_total_relation_size(oid) as size from pg_class where relkind = 'r' order by size desc limit 8) t)`).Scan(&text)
	if err != nil {
		return err.Error()
	}
	return text
}

// Evidence ends the load's account: what the clients, the sink and the relay say.
func (r *Rig) Evidence(l *Ledger, sinks ...*Sink) Evidence {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	history, err := r.History(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	e := Evidence{Sent: l.Sent(), Permanent: l.Permanent(), History: history}
	for _, s := range sinks {
		e.Received = append(e.Received, s.Received()...)
	}
	if e.Rows, err = r.Count(ctx, `select count(*) from recipient`); err != nil {
		r.t.Fatal(err)
	}
	if e.Bodies, err = r.Count(ctx, `select count(*) from stored_body`); err != nil {
		r.t.Fatal(err)
	}
	return e
}

// Epoch is the epoch that a node lives in.
func (r *Rig) Epoch(node string) int64 {
	r.t.Helper()
	n, err := r.Count(r.t.Context(), `select max(epoch) from node where name = $1 and reaped_at is null and superseded_at is null`, node)
	if err != nil {
		r.t.Fatal(err)
	}
	return int64(n)
}
