// Package audit records what admins do: it is the one writer, reader and pruner of the table
// audit. A deed is recorded in the transaction of its change, so that neither exists without
// the other. It knows nothing about the meaning of deeds.
package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// Deed is one thing that an admin did.
type Deed struct {
	Action string         // "user disable"
	Object string         // a user's canonical name, "defaults", or what else it was done to
	Detail map[string]any // never a secret
}

const insertDeeds = `
	insert into audit (actor, action, object, detail)
	select $1, d.action, d.object, d.detail::jsonb
	from unnest($2::text[], $3::text[], $4::text[]) with ordinality d(action, object, detail, n) order by d.n`

// Record writes down what actor, the operating system's user, has done by db, the
// transaction of the change.
func Record(ctx context.Context, db pg.DB, actor string, deeds ...Deed) error {
	var actions, objects, details []string
	for _, d := range deeds {
		if d.Detail == nil {
			d.Detail = map[string]any{}
		}
		text, err := json.Marshal(d.Detail)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		actions, objects, details = append(actions, d.Action), append(objects, d.Object), append(details, string(text))
	}
	if _, err := db.Exec(ctx, insertDeeds, pg.Storable(actor), actions, objects, details); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Entry is a row of the audit.
type Entry struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor"`
	Action string          `json:"action"`
	Object string          `json:"object"`
	Detail json.RawMessage `json:"detail"`
}

const selectListed = `
	select distinct v from audit, jsonb_array_elements_text(case jsonb_typeof(detail->$2) when 'array' then detail->$2 else '[]' end) v
	where at > now() - $3::interval and object = $1`

// Listed returns what deeds to an object within a span have in a list of their details.
func Listed(ctx context.Context, db pg.DB, object, key string, span time.Duration) ([]string, error) {
	rows, err := db.Query(ctx, selectListed, object, key, span)
	var list []string
	if err == nil {
		list, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return list, nil
}

// Filter chooses entries; zero fields choose all.
type Filter struct {
	Since time.Duration // done within so long, to the microsecond
	Actor string
	User  string // what concerns the user of this canonical name: its own deeds, and those about its mail
	Limit int
}

const selectEntries = `
	select id, at, actor, action, object, detail from audit
	where ($1 = interval '0' or at > now() - $1::interval) and ($2 = '' or actor = $2)
	  and ($4 = '' or object = $4 or detail->>'user' = $4 or exists (
		select from unnest(string_to_array(object, ', ')) part
		where part = 'user ' || $4 or part = 'user ' || (select u.id from app_user u where u.name = $4)))
	order by id desc limit $3`

// List returns the latest entries, the newest first.
func List(ctx context.Context, db pg.DB, f Filter) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rows, err := db.Query(ctx, selectEntries, f.Since, f.Actor, f.Limit, f.User)
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return list, nil
}

// Rows are locked and deleted by their place: however many there are, nothing else is
// read. The feed (relay/feed) hears up to where it is no longer whole.
const deleteOld = `
	with old as materialized (select ctid as place, feed_at, at from audit where at < clock_timestamp() - $1::interval order by at for update skip locked limit $2),
	f as (update feed_state s set gone = l.feed_at, gone_at = l.at from (select feed_at, at from old order by feed_at desc limit 1) l where l.feed_at > s.gone)
	delete from audit where ctid = any(array(select place from old))`

// Expire deletes what is older than keep.
func Expire(ctx context.Context, db pg.DB, keep time.Duration) error {
	if err := pg.Expire(ctx, db, deleteOld, keep); err != nil {
		return fmt.Errorf("delete old audit: %w", err)
	}
	return nil
}
