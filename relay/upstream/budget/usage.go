package budget

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// Usage is what is used of a limit.
type Usage struct {
	Upstream string
	Limit
	Spent     int64     // in the window; 0 for sessions
	FreeAt    time.Time // when the first of Spent comes back; zero: nothing was spent
	WaitsFrom time.Time // mail waits for it since; zero: none
	Portions  []Portion // not spent yet
	Waiting   int64     // recipients that wait for the upstream's budget
	Nodes     int       // that live, once the budget was asked for
}

// Portion is what a node may spend. It counts as used.
type Portion struct {
	Node string `json:"node"` // "": it is dead
	N    int64  `json:"n"`
}

// Used is what counts now.
func (u *Usage) Used() int64 {
	n := u.Spent
	for _, p := range u.Portions {
		n += p.N
	}
	return n
}

// Read returns what is used of the limits of one upstream's setting.
func Read(ctx context.Context, db pg.DB, settings map[string]string) ([]Usage, error) {
	var list []Usage
	for name, setting := range settings {
		limits, err := Parse(setting)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
		for _, l := range limits {
			list = append(list, Usage{Upstream: name, Limit: l})
		}
	}
	slices.SortStableFunc(list, func(a, b Usage) int { return cmp.Compare(a.Upstream, b.Upstream) })
	rows, err := db.Query(ctx, sqlUsage)
	if err != nil {
		return nil, fmt.Errorf("read the budgets of upstreams: %w", err)
	}
	var found Usage
	var window int32
	var free, waits *time.Time
	var nodes []string
	var n []int64
	_, err = pgx.ForEachRow(rows, []any{&found.Upstream, &found.Kind, &window, &found.Zone, &found.Spent, &free, &waits, &nodes, &n, &found.Waiting, &found.Nodes}, func() error {
		found.Window = time.Duration(window) * time.Second
		for i := range list {
			if u := &list[i]; u.Upstream == found.Upstream && u.sameCount(found.Limit) {
				u.Spent, u.Waiting, u.Nodes = found.Spent, found.Waiting, found.Nodes
				u.FreeAt, u.WaitsFrom = timeOf(free), timeOf(waits)
				for k := range nodes {
					u.Portions = append(u.Portions, Portion{nodes[k], n[k]})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the budgets of upstreams: %w", err)
	}
	return list, nil
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
