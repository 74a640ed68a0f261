package budget

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postern/internal/pg"
	"postern/internal/refusal"
)

// Usage is what is used of an upstream's budget.
type Usage struct {
	Upstream string     `json:"-"`
	Limits   []Used     `json:"limits"`
	Waiting  int64      `json:"waiting"`             // recipients that wait for it
	LastTurn *time.Time `json:"last_turn,omitempty"` // of them
	Nodes    int        `json:"-"`                   // that live
	Err      error      `json:"-"`                   // why it cannot be reckoned: nothing else is known, and its mail waits
}

// Used is what counts against one limit.
type Used struct {
	Limit  `json:"-"`
	Text   string     `json:"limit"`
	Used   int64      `json:"used"` // with what is leased to nodes
	Left   int64      `json:"left"`
	FreeAt *time.Time `json:"free_at,omitempty"` // the first of Used; of sessions never known
}

// Headroom says how much is left of each limit, as 'messages 30/m: 12 left, sessions 3: 0 left'.
func (u *Usage) Headroom() string {
	if u.Err != nil {
		return "its budget cannot be computed"
	}
	var parts []string
	for _, l := range u.Limits {
		parts = append(parts, fmt.Sprintf("%s: %d left", l.Text, l.Left))
	}
	return strings.Join(parts, ", ")
}

// Spent reports a limit of which nothing is left. Sessions are in use, not spent.
func (u *Usage) Spent() bool {
	return slices.ContainsFunc(u.Limits, func(l Used) bool { return l.Window > 0 && l.Left == 0 })
}

// Read returns what is used of the budgets of upstreams, by their names, as settings has them. One
// that cannot be reckoned has an Err of its own.
func Read(ctx context.Context, db pg.DB, settings map[string]string) (list []Usage, err error) {
	list, err = read(ctx, db, settings)
	if err == nil || pg.IsDown(err) && !refusal.Is(err) {
		return list, err
	}
	list = nil
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		one, err := read(ctx, db, map[string]string{name: settings[name]})
		switch {
		case err == nil:
			list = append(list, one...)
		case pg.IsDown(err) && !refusal.Is(err):
			return nil, err
		default:
			list = append(list, Usage{Upstream: name, Err: err})
		}
	}
	return list, nil
}

func read(ctx context.Context, db pg.DB, settings map[string]string) (list []Usage, err error) {
	var upstream, kind, zone []string
	var window []int32
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		limits, err := Parse(settings[name])
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
		if len(limits) == 0 {
			continue
		}
		u := Usage{Upstream: name}
		for _, l := range limits {
			u.Limits = append(u.Limits, Used{Limit: l, Text: l.String()})
			upstream, kind = append(upstream, name), append(kind, string(l.Kind))
			window, zone = append(window, int32(l.Window/time.Second)), append(zone, l.Zone)
		}
		list = append(list, u)
	}
	if list == nil {
		return nil, nil
	}
	rows, err := db.Query(ctx, sqlUsage, upstream, kind, window, zone)
	if err != nil {
		return nil, fmt.Errorf("read the budgets of upstreams: %w", err)
	}
	defer rows.Close()
	for i := range list {
		u := &list[i]
		for k := range u.Limits {
			l := &u.Limits[k]
			if rows.Next() {
				err = rows.Scan(&l.Used, &l.FreeAt, &u.Waiting, &u.LastTurn, &u.Nodes)
			}
			if err = errors.Join(err, rows.Err()); err != nil {
				return nil, fmt.Errorf("read the budgets of upstreams: %w", err)
			}
			l.Left = max(l.Max-l.Used, 0)
		}
	}
	return list, nil
}
