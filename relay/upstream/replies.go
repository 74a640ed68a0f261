package upstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
)

const loadRows = `
select upstream, id, stage, code, enhanced, text, result, scope, wait
from upstream_reply order by upstream, position, id`

// loadReplies reads the rows that admins have added, by upstream.
func loadReplies(ctx context.Context, db pg.DB) (map[string][]Row, error) {
	rows, err := db.Query(ctx, loadRows)
	if err != nil {
		return nil, err
	}
	added := map[string][]Row{}
	var name string
	var w Row
	_, err = pgx.ForEachRow(rows, []any{&name, &w.ID, &w.Stage, &w.Code, &w.Enhanced, &w.Text, &w.Result, &w.Scope, &w.Wait}, func() error {
		// A row of a form that is not known here, of a newer program, is ignored.
		if row := w; row.normalise() == nil {
			added[name] = append(added[name], row)
		}
		return nil
	})
	return added, err
}

// Replies returns the table of an upstream. Errors: refusal.ErrNotFound.
func (s *Store) Replies(ctx context.Context, name string) (*Replies, error) {
	l, err := s.Named(ctx, name)
	if err != nil {
		return nil, err
	}
	added, err := loadReplies(ctx, s.pool)
	if err != nil {
		return nil, fmt.Errorf("read replies of upstreams: %w", err)
	}
	return tableOf(l.Preset, added[name]), nil
}

const addRow = `
insert into upstream_reply (upstream, position, stage, code, enhanced, text, result, scope, wait)
select $1, case when $2 then coalesce(min(position), 0) - 1 else coalesce(max(position), 0) + 1 end, $3, $4, $5, $6, $7, $8, $9
from upstream_reply where upstream = $1
returning id`

// AddReply adds a row to an upstream's, behind those that are there or, with first, before them.
// It returns the row as it is stored. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) AddReply(ctx context.Context, name string, w Row, first bool) (Row, error) {
	if err := w.normalise(); err != nil {
		return w, err
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := Require(ctx, tx, []string{name}); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, addRow, name, first, w.Stage, w.Code, w.Enhanced, w.Text, w.Result, w.Scope, w.Wait).Scan(&w.ID)
		if err != nil {
			return err
		}
		return s.recordReply(ctx, tx, "upstream reply add", name, w)
	})
	if err != nil && !refusal.Is(err) {
		return w, fmt.Errorf("add reply: %w", err)
	}
	return w, err
}

const removeRow = `
delete from upstream_reply where upstream = $1 and id = $2
returning id, stage, code, enhanced, text, result, scope, wait`

// RemoveReply removes a row that AddReply has added, and returns it. Errors: refusal.ErrNotFound.
func (s *Store) RemoveReply(ctx context.Context, name string, id int64) (w Row, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, removeRow, name, id).Scan(&w.ID, &w.Stage, &w.Code, &w.Enhanced, &w.Text, &w.Result, &w.Scope, &w.Wait)
		if errors.Is(err, pgx.ErrNoRows) {
			return refusal.NotFound("upstream %q has no row %d of its own; see 'postern upstream reply list %s'", name, id, name)
		}
		if err != nil {
			return err
		}
		return s.recordReply(ctx, tx, "upstream reply remove", name, w)
	})
	if err != nil && !refusal.Is(err) {
		return w, fmt.Errorf("remove reply: %w", err)
	}
	return w, err
}

func (s *Store) recordReply(ctx context.Context, tx pgx.Tx, action, name string, w Row) error {
	detail := map[string]any{"row": w.ID, "reply": w.String(), "result": w.Result, "scope": w.Scope}
	if w.Wait > 0 {
		detail["wait"] = w.Wait.String()
	}
	return s.record(ctx, tx, "upstream.changed", audit.Deed{Action: action, Object: name, Detail: detail})
}
