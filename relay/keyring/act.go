package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/seal"
)

// KeptFor is how long an old key is kept after another was taken into use: a command that began
// before may still store what it sealed.
const KeptFor = time.Hour

// actTime bounds an act.
const actTime = 30 * time.Second

// Key is a key, by what this machine's file, the nodes and the values say.
type Key struct {
	ID     string     `json:"id"`
	State  string     `json:"state"` // current, new, old; missing: not in this machine's file
	Since  *time.Time `json:"since,omitempty"`
	Values int        `json:"values"` // that it has sealed
	Nodes  []string   `json:"nodes"`  // alive, that have it
}

// View is what is known of the keys.
type View struct {
	Keys     []Key         // in the order of this machine's file; the missing behind them
	Current  string        // of Keys
	Age      time.Duration // since when it is current; 0: from the beginning
	Unopened []string      // values that no key of this machine opens, by their places
	Nodes    []string      // alive, that need keys
}

// Lacking are the living nodes that do not have a key.
func (v *View) Lacking(id string) []string {
	return slices.DeleteFunc(slices.Clone(v.Nodes), func(node string) bool { return slices.Contains(v.known(id).Nodes, node) })
}

// Read looks at the keys of a Sealer, and at the nodes and values of a database.
func Read(ctx context.Context, db pg.DB, sealer *seal.Sealer) (*View, error) {
	id, since, age, err := current(ctx, db)
	if err != nil {
		return nil, err
	}
	v, here := &View{Current: id, Age: age}, sealer.Keys()
	if id == "" && here != nil {
		v.Current = here[0]
	}
	at := slices.Index(here, v.Current)
	for i, id := range here {
		v.known(id).State = "old"
		if i == at {
			v.known(id).State = "current"
		} else if i > at && at >= 0 {
			v.known(id).State = "new"
		}
	}
	if id != "" {
		v.known(id).Since = &since
	}
	rows, _ := db.Query(ctx, sqlRings) // ForEachRow has its error
	var node string
	var ids []string
	_, err = pgx.ForEachRow(rows, []any{&node, &ids}, func() error {
		v.Nodes = append(v.Nodes, node)
		for _, id := range ids {
			v.known(id).Nodes = append(v.known(id).Nodes, node)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which node has which sealing keys: %w", err)
	}
	for _, c := range columns() {
		err := each(ctx, db, c, nil, func(x value) bool {
			id, err := sealer.KeyOf(x.place(), x.sealed)
			if err != nil {
				v.Unopened = append(v.Unopened, strings.Join(x.parts, " "))
			}
			if id != "" {
				v.known(id).Values++
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// known is one of Keys, which is missing if nothing else is known of it.
func (v *View) known(id string) *Key {
	i := slices.IndexFunc(v.Keys, func(k Key) bool { return k.ID == id })
	if i < 0 {
		i = len(v.Keys)
		v.Keys = append(v.Keys, Key{ID: id, State: "missing", Nodes: []string{}})
	}
	return &v.Keys[i]
}

// Admin changes the keys, in this machine's file and in the database.
type Admin struct {
	Pool   *pgxpool.Pool
	Sealer *seal.Sealer
	Actor  string // for the audit
}

// deed is one act: a transaction that keeps others from acting, and what is known in it.
type deed struct {
	pgx.Tx
	*View
	actor string
}

func (d *deed) record(ctx context.Context, action, id string, detail map[string]any) error {
	return audit.Record(ctx, d, d.actor, audit.Deed{Action: action, Object: id, Detail: detail})
}

// act does one act while nobody else does one. do changes the file as its last step, for what it
// has recorded is committed then. With lost, this machine's file may lack the current key.
func (a *Admin) act(ctx context.Context, lost bool, do func(ctx context.Context, d *deed) error) error {
	ctx, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	err := pgx.BeginFunc(ctx, a.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLock); err != nil {
			return err
		}
		if err := a.Sealer.Reload(); err != nil {
			return err
		}
		if err := Follow(ctx, tx, a.Sealer); err != nil && !(lost && errors.Is(err, seal.ErrSeal)) {
			return err
		}
		v, err := Read(ctx, tx, a.Sealer)
		if err != nil {
			return err
		}
		return do(ctx, &deed{tx, v, a.Actor})
	})
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("sealing key: %w", err)
	}
	return err
}

// Rotate adds a new key to the file; if it has one already, that is returned and no other is
// added.
func (a *Admin) Rotate(ctx context.Context) (id string, added bool, err error) {
	err = a.act(ctx, false, func(ctx context.Context, d *deed) (err error) {
		i := slices.IndexFunc(d.Keys, func(k Key) bool { return k.State == "new" })
		if added = i < 0; !added {
			id = d.Keys[i].ID
			return d.recordAdded(ctx, id)
		}
		id, err = a.Sealer.Add(func(id string) error { return d.record(ctx, "key rotate", id, nil) })
		return err
	})
	return id, added, err
}

// recordAdded records who added a key of the file, unless that is recorded: the commit of Rotate
// may have failed.
func (d *deed) recordAdded(ctx context.Context, id string) error {
	var recorded bool
	if err := d.QueryRow(ctx, sqlAdded, id).Scan(&recorded); err != nil || recorded {
		return err
	}
	return d.record(ctx, "key rotate", id, nil)
}

// Use makes a key of the file the current one. Unless it is forced, every living node must have
// it, and the file the former one. Errors: refusal.ErrNotFound, refusal.ErrExists, refusal.ErrInvalid.
func (a *Admin) Use(ctx context.Context, id string, force bool) error {
	return a.act(ctx, force, func(ctx context.Context, d *deed) error {
		lacking := d.Lacking(id)
		switch {
		case d.known(id).State == "missing":
			return refusal.NotFound("this machine's file has no key %q; see 'postern key list'", id)
		case d.Current == id:
			return refusal.Exists("key %s is in use already", id)
		case len(lacking) > 0 && !force:
			return refusal.Invalid("nodes without this key: %s; copy the file there first, a node reads it within seconds", strings.Join(lacking, ", "))
		}
		if d.known(id).State == "new" {
			if err := d.recordAdded(ctx, id); err != nil {
				return err
			}
		}
		if _, err := d.Exec(ctx, sqlUse, id); err != nil {
			return err
		}
		return d.record(ctx, "key use", id, map[string]any{"before": d.Current, "lacking": lacking})
	})
}

// Remove takes an old or new key out of this machine's file. It is recorded first: if the file
// is not changed then, the key is still there. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (a *Admin) Remove(ctx context.Context, id string) error {
	err := a.act(ctx, false, func(ctx context.Context, d *deed) error {
		if err := d.removable(id); err != nil {
			return err
		}
		return d.record(ctx, "key remove", id, nil)
	})
	if err != nil {
		return err
	}
	return a.act(ctx, false, func(_ context.Context, d *deed) error {
		if err := d.removable(id); err != nil { // by what others did meanwhile
			return err
		}
		return a.Sealer.Remove(id)
	})
}

// removable is why a key must not be removed.
func (v *View) removable(id string) error {
	key, lacking := v.known(id), v.Lacking(v.Current)
	switch {
	case key.State == "missing":
		return refusal.NotFound("this machine's file has no key %q; see 'postern key list'", id)
	case v.Current == id:
		return refusal.Invalid("key %s is in use; make another one with 'postern key rotate' first", id)
	case key.Values > 0:
		return refusal.Invalid("key %s still seals values: %d; a running node seals them anew within seconds", id, key.Values)
	case v.known(v.Current).Since != nil && v.Age < KeptFor: // less than 0 if the clock was set back
		return refusal.Invalid("key %s was in use less than %s ago, and a command that began then may still use it: wait %s", id, units.FormatSpan(KeptFor), units.FormatSpan((KeptFor - v.Age + time.Minute).Truncate(time.Minute)))
	case len(lacking) > 0:
		return refusal.Invalid("nodes without the current key: %s; they seal with an old one, so copy the file there first", strings.Join(lacking, ", "))
	}
	return nil
}
