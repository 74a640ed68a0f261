package feed

import (
	"context"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// counted counts the pages that are read.
type counted struct {
	pg.DB
	reads int
}

func (c *counted) Begin(ctx context.Context) (pgx.Tx, error) {
	c.reads++
	return c.DB.Begin(ctx)
}

// Readers at one place cost as many queries as one; each gets what it would read alone, wherever it began and
// whoever is behind.
func TestRecent(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	_, begin := all(t, db, Cursor{}, Filter{})
	for n := range 4 {
		exec(t, db.Pool, insertMessage, 600*n+1, 600*n+600)
		exec(t, db.Pool, insertHistory, 600*n+1, 600*n+100, "delivered")
	}
	want, _ := all(t, db, begin, Filter{})
	newest, err := Newest(t.Context(), db.Pool)
	must(t, err)
	source, r := &counted{DB: db.Pool}, NewRecent()
	walk := func(at Cursor, newest Cursor, f Filter, pages int) (got []Event, next Cursor, more bool) {
		t.Helper()
		for range pages {
			page, err := r.Read(t.Context(), source, at, f, newest)
			must(t, err)
			got, at = append(got, page.Events...), page.Next
			if !page.More {
				return got, at, false
			}
		}
		return got, at, true
	}
	same := func(got, want []Event) bool {
		return slices.EqualFunc(got, want, func(a, b Event) bool { return a.ID == b.ID && a.Cursor == b.Cursor })
	}
	got, end, _ := walk(begin, newest, Filter{}, 100)
	if !same(got, want) {
		t.Fatalf("%d events of %d", len(got), len(want))
	}
	alone := source.reads
	if alone < 5 || alone > recentPages {
		t.Fatalf("one reader has cost %d pages", alone)
	}
	for first := 0; first < len(want); first += 97 { // in the midst of pages too
		at, err := ParseCursor(want[first].Cursor)
		must(t, err)
		if got, next, _ := walk(at, newest, Filter{}, 100); !same(got, want[first+1:]) || next != end {
			t.Fatalf("behind event %d: %d events, want %d", first, len(got), len(want)-first-1)
		}
	}
	f := Filter{Kinds: []Kind{Delivered}}
	if got, _, _ := walk(begin, newest, f, 100); len(got) != 400 {
		t.Errorf("%d events of 400 of a kind", len(got))
	}
	if source.reads != alone {
		t.Errorf("many readers have cost %d pages, one %d", source.reads, alone)
	}

	// Those that know of a later end look again, and only once.
	exec(t, db.Pool, insertMessage, 2401, 2405)
	if got, _, _ := walk(end, newest, Filter{}, 1); len(got) != 0 || source.reads != alone {
		t.Errorf("a reader who knows of nothing new has read %d events", len(got))
	}
	want, _ = all(t, db, end, Filter{})
	later, err := Newest(t.Context(), db.Pool)
	must(t, err)
	for range 10 {
		if got, _, more := walk(end, later, Filter{}, 100); !same(got, want) || len(got) != 5 || more {
			t.Fatalf("%d new events, more: %v", len(got), more)
		}
	}
	if source.reads != alone+1 {
		t.Errorf("new events have cost %d pages", source.reads-alone)
	}
	if got, _, _ := walk(Cursor{}.Leniently(), later, Filter{}, 100); len(got) < 2805 || source.reads == alone+1 {
		t.Errorf("one that is far behind has read %d events", len(got))
	}
	if len(r.pages) > recentPages {
		t.Errorf("%d pages are kept", len(r.pages))
	}
}
