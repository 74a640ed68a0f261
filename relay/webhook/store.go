package webhook

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/relay/feed"
	"postern/relay/seal"
)

var (
	sqlList   = texts.Bind("list", "name")
	sqlTries  = texts.Bind("tries", "id", "most")
	sqlCounts = texts.Bind("counts", "user_id")
	sqlAdd    = texts.Bind("add", "name", "url", "user_id", "kinds", "concurrency", "per_minute", "cursor", "secret")
	sqlFind   = texts.Bind("find", "name")
	sqlSet    = texts.Bind("set", "id", "concurrency", "per_minute")
	sqlRotate = texts.Bind("rotate", "id", "secret", "keep")
	sqlPause  = texts.Bind("pause", "id")
	sqlResume = texts.Bind("resume", "id")
	sqlRemove = texts.Bind("remove", "id")
	sqlRoom   = texts.Bind("room", "id")
	sqlReplay = texts.Bind("replay", "id", "events", "kinds", "bodies")
)

const (
	callTime = 10 * time.Second // bounds what is asked of the database at a time
	oldFor   = 24 * time.Hour   // a former secret signs as well
	heldLong = time.Minute      // shorter transactions hold the feed back all the time
)

// Store has the webhooks as admins change them. Each change is in the audit.
type Store struct {
	DB     pg.DB        // a pool
	Sealer *seal.Sealer // for Add, Rotate and Secrets
	Actor  string       // for the audit
}

// List returns the webhook of a name, or with "" all, in the order of their names.
func (s *Store) List(ctx context.Context, name string) ([]Webhook, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := s.DB.Query(ctx, sqlList, name)
	var list []Webhook
	if err == nil {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (w Webhook, err error) {
			err = row.Scan(&w.ID, &w.Name, &w.URL, &w.User, &w.Kinds, &w.State, &w.Reason, &w.Concurrency, &w.PerMinute, &w.Failures, &w.GivenUp, &w.CreatedAt,
				&w.WaitUntil, &w.GoneUntil, &w.GoneAt, &w.OldUntil, &w.Waiting, &w.Behind)
			return w, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	if name != "" && len(list) == 0 {
		return nil, unknown(name)
	}
	if len(list) > 0 {
		held, err := feed.Hold(ctx, s.DB)
		if err != nil {
			return nil, err
		}
		for i := range list {
			list[i].FeedHeld = heldSince(held, time.Now())
		}
	}
	return list, nil
}

// heldSince is since when the feed has noticeably been held back, or nil.
func heldSince(h *feed.Holder, now time.Time) *time.Time {
	if h == nil || now.Sub(h.Since) < heldLong {
		return nil
	}
	return &h.Since
}

func unknown(name string) error {
	return refusal.NotFound("no webhook is named %q: see 'postern webhook list'", name)
}

// Show returns a webhook and its last tries, the newest first. Errors: refusal.ErrNotFound.
func (s *Store) Show(ctx context.Context, name string) (w Webhook, tries []Try, err error) {
	list, err := s.List(ctx, name)
	if err != nil {
		return w, nil, err
	}
	w = list[0]
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := s.DB.Query(ctx, sqlTries, w.ID, KeptTries)
	if err == nil {
		tries, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Try, err error) {
			err = row.Scan(&t.EventID, &t.Kind, &t.At, &t.Status, &t.TookMS, &t.Error, &t.Answer)
			return t, err
		})
	}
	if err != nil {
		return w, nil, fmt.Errorf("read the tries of a webhook: %w", err)
	}
	return w, tries, nil
}

// New is a webhook to be added.
type New struct {
	Name   string
	URL    string // as Allow.Parse takes it
	UserID int64  // 0: all events
	User   string // its name, for the audit
	Kinds  []feed.Kind
	Limits
}

// Add makes a webhook that is sent what happens from now on, and returns its secret. Errors:
// refusal.ErrInvalid, refusal.ErrExists.
func (s *Store) Add(ctx context.Context, n New) (Secret, error) {
	if !nameForm.MatchString(n.Name) {
		return nil, refusal.Invalid("%q cannot be the name of a webhook: use up to 63 small letters, digits, '.', '_' and '-'", n.Name)
	}
	if err := n.Limits.check(); err != nil {
		return nil, err
	}
	if err := checkKinds(n.Kinds, n.UserID != 0); err != nil {
		return nil, err
	}
	secret := newSecret()
	sealed, err := s.Sealer.Seal(place(n.Name), secret)
	if err != nil {
		return nil, err
	}
	newest, err := feed.Newest(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	detail := map[string]any{"url": n.URL, "kinds": n.Kinds, "user": n.User}
	return secret, s.change(ctx, audit.Deed{Action: "webhook add", Object: n.Name, Detail: detail}, func(ctx context.Context, tx pgx.Tx) error {
		// One is added at a time, so that the bounds hold.
		if _, err := tx.Exec(ctx, `lock table webhook in share row exclusive mode`); err != nil {
			return err
		}
		var all, ofUser int
		if err := tx.QueryRow(ctx, sqlCounts, n.UserID).Scan(&all, &ofUser); err != nil {
			return err
		}
		if all >= Most || ofUser >= MostOfUser {
			return refusal.Invalid("there are %d webhooks, %d of the user, and at most %d and %d are allowed: remove one first", all, ofUser, Most, MostOfUser)
		}
		tag, err := tx.Exec(ctx, sqlAdd, n.Name, n.URL, n.UserID, append([]feed.Kind{}, n.Kinds...), n.Concurrency, n.PerMinute, newest.String(), sealed)
		if err == nil && tag.RowsAffected() == 0 {
			err = refusal.Exists("there is a webhook named %q already: choose another --name", n.Name)
		}
		return err
	})
}

// found is a webhook that is locked.
type found struct {
	id, userID int64
	url        string
	kinds      []feed.Kind
	state      State
	sealed     []byte
	both       bool
	oldUntil   *time.Time
}

func find(ctx context.Context, tx pgx.Tx, name string) (f found, err error) {
	err = tx.QueryRow(ctx, sqlFind, name).Scan(&f.id, &f.userID, &f.url, &f.kinds, &f.state, &f.sealed, &f.both, &f.oldUntil)
	if errors.Is(err, pgx.ErrNoRows) {
		err = unknown(name)
	}
	return f, err
}

// change does something in a transaction with its deed.
func (s *Store) change(ctx context.Context, deed audit.Deed, do func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		if err := do(ctx, tx); err != nil {
			return err
		}
		return audit.Record(ctx, tx, s.Actor, deed)
	})
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("%s: %w", deed.Action, err)
	}
	return err
}

// Set changes limits: those that are not nil. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Set(ctx context.Context, name string, concurrency, perMinute *int) error {
	detail, l := map[string]any{}, Limits{Concurrency: 1}
	if concurrency != nil {
		detail["concurrency"], l.Concurrency = *concurrency, *concurrency
	}
	if perMinute != nil {
		detail["per_minute"], l.PerMinute = *perMinute, *perMinute
	}
	if err := l.check(); err != nil {
		return err
	}
	return s.change(ctx, audit.Deed{Action: "webhook set", Object: name, Detail: detail}, func(ctx context.Context, tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err == nil {
			_, err = tx.Exec(ctx, sqlSet, f.id, concurrency, perMinute)
		}
		return err
	})
}

// Rotate makes a new secret, which signs beside the current one until a time a day later. Errors:
// refusal.ErrNotFound, and refusal.ErrInvalid while a former secret still signs.
func (s *Store) Rotate(ctx context.Context, name string) (secret Secret, oldUntil time.Time, err error) {
	secret = newSecret()
	err = s.change(ctx, audit.Deed{Action: "webhook rotate", Object: name}, func(ctx context.Context, tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err != nil {
			return err
		}
		if f.both {
			return refusal.Invalid("the former secret of %s signs until %s: rotate again then", name, f.oldUntil.UTC().Format(time.RFC3339))
		}
		before, err := open(s.Sealer, name, f.sealed, false)
		if err != nil {
			return err
		}
		sealed, err := s.Sealer.Seal(place(name), append(append([]byte{}, secret...), before[0]...))
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, sqlRotate, f.id, sealed, oldFor).Scan(&oldUntil)
	})
	return secret, oldUntil, err
}

// Secrets returns those that sign, and the URL. Errors: refusal.ErrNotFound.
func (s *Store) Secrets(ctx context.Context, name string) (secrets []Secret, url string, err error) {
	err = pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err != nil {
			return err
		}
		url = f.url
		secrets, err = open(s.Sealer, name, f.sealed, f.both)
		return err
	})
	return secrets, url, err
}

// Pause keeps a webhook from being sent anything; Resume and, for one that was disabled, Enable go on
// where it stopped. Errors: refusal.ErrNotFound, refusal.ErrInvalid in another state.
func (s *Store) Pause(ctx context.Context, name string) error {
	return s.move(ctx, "webhook pause", name, sqlPause, Active)
}

// Resume ends a pause: see Pause.
func (s *Store) Resume(ctx context.Context, name string) error {
	return s.move(ctx, "webhook resume", name, sqlResume, Paused)
}

// Enable makes a webhook active again that its endpoint has disabled: see Pause.
func (s *Store) Enable(ctx context.Context, name string) error {
	return s.move(ctx, "webhook enable", name, sqlResume, Disabled)
}

func (s *Store) move(ctx context.Context, action, name, sql string, from State) error {
	return s.change(ctx, audit.Deed{Action: action, Object: name}, func(ctx context.Context, tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err != nil {
			return err
		}
		if f.state != from {
			return refusal.Invalid("webhook %s is %s, not %s: see 'postern webhook show %s'", name, f.state, from, name)
		}
		_, err = tx.Exec(ctx, sql, f.id)
		return err
	})
}

// Remove deletes a webhook with all that waits for it. Errors: refusal.ErrNotFound.
func (s *Store) Remove(ctx context.Context, name string) error {
	return s.change(ctx, audit.Deed{Action: "webhook remove", Object: name}, func(ctx context.Context, tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err == nil {
			_, err = tx.Exec(ctx, sqlRemove, f.id)
		}
		return err
	})
}

// Choice chooses events of the feed to be sent again, among those that the webhook may get.
type Choice struct {
	ID    uuid.UUID   // only this one, unless zero
	Since time.Time   // not earlier, unless zero
	Until time.Time   // not later, unless zero
	Kinds []feed.Kind // empty: the webhook's
}

func (c *Choice) takes(e *feed.Event) bool {
	return (c.ID == uuid.Nil || e.ID == c.ID) && (c.Until.IsZero() || !e.At.After(c.Until))
}

// Count says how many events a Choice chooses. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (s *Store) Count(ctx context.Context, name string, c Choice) (n int, err error) {
	err = s.chosen(ctx, name, c, func(_ found, list []feed.Event) error {
		n += len(list)
		return nil
	})
	return n, err
}

// Replay sends events again that a Choice chooses: they wait as retries. Errors: refusal.ErrNotFound,
// refusal.ErrInvalid if there is no room for them.
func (s *Store) Replay(ctx context.Context, name string, c Choice) (n int, err error) {
	var of found
	var ids []uuid.UUID
	var kinds, bodies []string
	err = s.chosen(ctx, name, c, func(f found, list []feed.Event) error {
		for i := range list {
			body, err := encode(&list[i], f.userID != 0)
			if err != nil {
				return err
			}
			ids, kinds, bodies = append(ids, list[i].ID), append(kinds, string(list[i].Kind)), append(bodies, body)
		}
		if len(ids) > MostRetries {
			return refusal.Invalid("more than %d events: at most as many may wait, so choose fewer with --until or --kind", MostRetries)
		}
		of = f
		return nil
	})
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	// The feed was read before, so that no transaction is open meanwhile.
	detail := map[string]any{"events": len(ids)}
	if c.ID != uuid.Nil {
		detail["id"] = c.ID
	}
	if !c.Since.IsZero() {
		detail["since"] = c.Since.UTC().Truncate(time.Second)
	}
	err = s.change(ctx, audit.Deed{Action: "webhook replay", Object: name, Detail: detail}, func(ctx context.Context, tx pgx.Tx) error {
		f, err := find(ctx, tx, name)
		if err != nil {
			return err
		}
		if f.id != of.id {
			return unknown(name)
		}
		var waiting int
		if err := tx.QueryRow(ctx, sqlRoom, f.id).Scan(&waiting); err != nil {
			return err
		}
		if waiting+len(ids) > MostRetries {
			return refusal.Invalid("%d events, while %d wait already: at most %d may wait, so choose fewer with --until or --kind", len(ids), waiting, MostRetries)
		}
		_, err = tx.Exec(ctx, sqlReplay, f.id, ids, kinds, bodies)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(ids), nil
}

// chosen reads the feed in pages.
func (s *Store) chosen(ctx context.Context, name string, c Choice, do func(f found, list []feed.Event) error) error {
	var f found
	err := pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) (err error) {
		f, err = find(ctx, tx, name)
		return err
	})
	if err != nil {
		return err
	}
	if err := checkKinds(c.Kinds, f.userID != 0); err != nil {
		return err
	}
	filter := feed.Filter{UserID: f.userID, Kinds: f.kinds, Since: c.Since}
	if len(c.Kinds) > 0 {
		filter.Kinds = c.Kinds
	}
	at, err := feed.Before(ctx, s.DB, c.Since)
	for err == nil {
		var page feed.Page
		if page, err = feed.Read(ctx, s.DB, at, filter); err != nil {
			break
		}
		var list []feed.Event
		for i := range page.Events {
			if c.takes(&page.Events[i]) {
				list = append(list, page.Events[i])
			}
		}
		if len(list) > 0 {
			err = do(f, list)
		}
		at = page.Next
		if !page.More {
			break
		}
	}
	return err
}
