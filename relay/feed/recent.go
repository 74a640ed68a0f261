package feed

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"strings"

	"postern/internal/pg"
)

// recentPages bounds the pages that are kept, and so their octets: each has pageOctets and a row at most.
const recentPages = 8

// Recent has the pages that the readers of a process have read last: those who are at the same place cost one
// query. Its method may be called concurrently.
type Recent struct {
	turn  chan struct{} // capacity 1: one reads at a time, and the others find what it has read
	pages []kept        // of whoever has the turn; the one that was used last is at the end
}

// kept is a page of all events.
type kept struct {
	Page
	from   Cursor // of the incarnation of Next
	newest Cursor // the end of the feed as it was known before the page was read
}

// NewRecent makes one.
func NewRecent() *Recent { return &Recent{turn: make(chan struct{}, 1)} }

// Read is the function Read for a reader who has looked for the end of the feed: newest. More is true also if
// the page was read before that.
func (r *Recent) Read(ctx context.Context, db pg.DB, after Cursor, f Filter, newest Cursor) (Page, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return Page{}, ctx.Err()
	}
	i := slices.IndexFunc(r.pages, func(k kept) bool { return k.has(after, newest) })
	if i < 0 {
		page, err := Read(ctx, db, after, Filter{})
		if err != nil {
			return Page{}, err
		}
		k := kept{page, after, newest}
		if after.lenient || after.incarnation != page.Next.incarnation {
			return k.behind(Cursor{}, f, newest), nil
		}
		if len(r.pages) == recentPages {
			r.pages = slices.Delete(r.pages, 0, 1)
		}
		r.pages = append(r.pages, k)
		return k.behind(after, f, newest), nil
	}
	k := r.pages[i]
	r.pages = append(slices.Delete(r.pages, i, i+1), k)
	return k.behind(after, f, newest), nil
}

// has reports that a reader at a place finds there what it would read now, or the beginning of it.
func (k *kept) has(at, newest Cursor) bool {
	if at.lenient || at.incarnation != k.Next.incarnation || at.compare(k.from) < 0 {
		return false
	}
	end := at.compare(k.Next)
	return end < 0 || end == 0 && !k.More && newest == k.newest
}

// behind is the part of the page behind a place.
func (k *kept) behind(at Cursor, f Filter, newest Cursor) Page {
	page := Page{Next: k.Next, More: k.More || newest != k.newest}
	first := sort.Search(len(k.Events), func(i int) bool {
		c, err := ParseCursor(k.Events[i].Cursor)
		return err != nil || c.compare(at) > 0
	})
	for i := first; i < len(k.Events); i++ {
		if f.takes(&k.Events[i]) {
			page.Events = append(page.Events, k.Events[i])
		}
	}
	return page
}

// compare orders places of one incarnation as the statement page does.
func (c Cursor) compare(d Cursor) int {
	return cmp.Or(cmp.Compare(c.feedAt, d.feedAt), cmp.Compare(c.source, d.source), strings.Compare(c.key, d.key))
}
