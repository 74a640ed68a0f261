package suppression

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
)

var (
	sqlPut    = texts.Bind("put", "user_id", "address", "source", "reason", "reply", "added_at", "expires_at", "imported")
	sqlRemove = texts.Bind("remove", "user_id", "addresses")
	sqlList   = texts.Bind("list", "any_user", "user_id", "address", "most")
	sqlPage   = texts.Bind("page", "user_id", "after", "most")
	sqlCount  = texts.Bind("count", "user_id")
)

// Chunk is how many entries one transaction of Import writes, and one look of Each reads.
const Chunk = 1000

// maxReason bounds the reason of an entry, in octets.
const maxReason = 500

// Owner is whose entries they are.
type Owner struct {
	UserID int64  // 0: all users'
	Name   string // of the user, for the audit
}

func (o Owner) String() string {
	if o.UserID == 0 {
		return "global"
	}
	return "user " + o.Name
}

// Store is the list as admins change it.
type Store struct {
	db    pg.DB
	actor string
}

// NewStore returns a Store on a pool, whose changes the audit attributes to actor.
func NewStore(db pg.DB, actor string) *Store { return &Store{db, actor} }

// check brings an entry into the form that is stored.
func (e *Entry) check(o Owner, now time.Time) (err error) {
	if e.Address, err = ParseKey(e.Address, o.UserID == 0); err != nil {
		return err
	}
	e.Reason, e.Reply = pg.Storable(e.Reason), pg.Storable(short(e.Reply))
	if e.Source == "" {
		e.Source = Admin
	}
	switch {
	case e.Source != Admin && e.Source != Bounce:
		return refusal.Invalid("source %q is neither %s nor %s", e.Source, Bounce, Admin)
	case e.Source == Bounce && (o.UserID == 0 || e.ExpiresAt == nil):
		return refusal.Invalid("an entry with source %s is for --user and needs a time in expires", Bounce)
	case len(e.Reason) > maxReason:
		return refusal.Invalid("the reason has %d octets, at most %d are allowed", len(e.Reason), maxReason)
	case e.ExpiresAt != nil && !e.ExpiresAt.After(now):
		return refusal.Invalid("expires must be in the future")
	}
	return nil
}

// Add suppresses addresses for a reason until a time, nil for ever, and returns the entries, which replace
// existing ones. Errors: refusal.ErrInvalid.
func (s *Store) Add(ctx context.Context, o Owner, addresses []string, reason string, expires *time.Time) ([]Entry, error) {
	var list []Entry
	now := time.Now()
	for _, a := range addresses {
		e := Entry{Address: a, Reason: reason, ExpiresAt: expires}
		if err := e.check(o, now); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	list = latest(list)
	detail := map[string]any{"addresses": addressesOf(list), "reason": reason}
	if expires != nil {
		detail["expires"] = expires
	}
	return list, s.put(ctx, o, list, false, audit.Deed{Action: "suppression add", Object: o.String(), Detail: detail})
}

// Import adds entries that ParseCSV has returned, one transaction for each Chunk, and replaces existing ones;
// done hears how many are written. Errors are the database's.
func (s *Store) Import(ctx context.Context, o Owner, entries []Entry, done func(n int)) error {
	written := 0
	deeds := []audit.Deed{{Action: "suppression import", Object: o.String(), Detail: map[string]any{"entries": len(entries)}}}
	for part := range slices.Chunk(entries, Chunk) {
		if err := s.put(ctx, o, part, true, deeds...); err != nil {
			return fmt.Errorf("%d of %d entries are imported, repeat the import: %w", written, len(entries), err)
		}
		deeds = nil // one for all
		written += len(part)
		done(written)
	}
	return nil
}

func (s *Store) put(ctx context.Context, o Owner, part []Entry, imported bool, deeds ...audit.Deed) error {
	var source, reason, reply []string
	var added, expires []*time.Time
	for i := range part {
		e := &part[i]
		source, reason, reply = append(source, e.Source), append(reason, e.Reason), append(reply, e.Reply)
		expires, added = append(expires, e.ExpiresAt), append(added, nullTime(e.AddedAt))
	}
	err := s.change(ctx, func(ctx context.Context, tx pgx.Tx) ([]audit.Deed, error) {
		_, err := tx.Exec(ctx, sqlPut, o.UserID, addressesOf(part), source, reason, reply, added, expires, imported)
		return deeds, err
	})
	if err != nil {
		return fmt.Errorf("add suppressions: %w", err)
	}
	return nil
}

func addressesOf(list []Entry) (addresses []string) {
	for i := range list {
		addresses = append(addresses, list[i].Address)
	}
	return addresses
}

// latest leaves out entries that a later one of the same address replaces.
func latest(entries []Entry) []Entry {
	at := make(map[string]int, len(entries))
	list := make([]Entry, 0, len(entries))
	for _, e := range entries {
		if n, twice := at[e.Address]; twice {
			list[n] = e
			continue
		}
		at[e.Address] = len(list)
		list = append(list, e)
	}
	return list
}

// Remove removes the entries of addresses. Errors: refusal.ErrInvalid, or ErrNotFound if one has none;
// then nothing is changed.
func (s *Store) Remove(ctx context.Context, o Owner, addresses []string) error {
	keys := make([]string, len(addresses))
	for i, a := range addresses {
		var err error
		if keys[i], err = ParseKey(a, o.UserID == 0); err != nil {
			return err
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	err := s.change(ctx, func(ctx context.Context, tx pgx.Tx) ([]audit.Deed, error) {
		rows, err := tx.Query(ctx, sqlRemove, o.UserID, keys)
		if err != nil {
			return nil, err
		}
		gone, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			if !slices.Contains(gone, key) {
				return nil, refusal.NotFound("%s has no entry (%s): see 'postern suppression list'", key, o)
			}
		}
		return []audit.Deed{{Action: "suppression remove", Object: o.String(), Detail: map[string]any{"addresses": keys}}}, nil
	})
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("remove suppressions: %w", err)
	}
	return err
}

// change runs fn in a transaction, which records its deeds.
func (s *Store) change(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) ([]audit.Deed, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime)
	defer cancel()
	return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		deeds, err := fn(ctx, tx)
		if err != nil || len(deeds) == 0 {
			return err
		}
		return audit.Record(ctx, tx, s.actor, deeds...)
	})
}

// List returns the latest entries that hold, at most so many, the newest first: of an owner, or with
// anybody those of all. An address that is not "" must be as ParseKey gives it.
func (s *Store) List(ctx context.Context, o Owner, anybody bool, address string, most int) ([]Entry, error) {
	return s.read(ctx, sqlList, anybody, o.UserID, address, most)
}

// Count is how many entries of an owner hold.
func (s *Store) Count(ctx context.Context, o Owner) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := s.db.QueryRow(ctx, sqlCount, o.UserID).Scan(&n); err != nil {
		return 0, fmt.Errorf("count suppressions: %w", err)
	}
	return n, nil
}

// Each calls do for all entries of an owner that hold, Chunk by Chunk, in the order of their
// addresses. Nothing is held in the database meanwhile.
func (s *Store) Each(ctx context.Context, o Owner, do func([]Entry) error) error {
	for after := ""; ; {
		list, err := s.read(ctx, sqlPage, o.UserID, after, Chunk)
		if err == nil {
			err = do(list)
		}
		if err != nil || len(list) < Chunk {
			return err
		}
		after = list[len(list)-1].Address
	}
}

func (s *Store) read(ctx context.Context, sql string, args ...any) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime)
	defer cancel()
	rows, err := s.db.Query(ctx, sql, args...)
	var list []Entry
	if err == nil {
		list, err = pgx.CollectRows(rows, scan)
	}
	if err != nil {
		return nil, fmt.Errorf("list suppressions: %w", err)
	}
	return list, nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
