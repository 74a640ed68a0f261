package explain

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/policy/quota"
)

// Limit is a limit as --json prints it.
type Limit struct {
	Kind         quota.Kind  `json:"kind"`
	Limit        string      `json:"limit"` // as it is written
	Max          int64       `json:"max"`
	WindowS      int64       `json:"window_s,omitempty"`
	Scope        quota.Scope `json:"source"`
	Domain       string      `json:"domain,omitempty"`
	CredentialID int64       `json:"credential_id,omitempty"`
	Tightest     *bool       `json:"tightest,omitempty"` // of those that count the same
	Used         *int64      `json:"used,omitempty"`
	Left         *int64      `json:"left,omitempty"`
}

// LimitOf is a limit without its use.
func LimitOf(l quota.Limit) Limit {
	v := Limit{Kind: l.Kind, Limit: l.Text(), Max: l.Max, WindowS: int64(l.Window.Seconds()), Scope: l.Scope}
	switch l.Scope {
	case quota.Domain:
		v.Domain = l.Subject
	case quota.Credential:
		v.CredentialID, _ = strconv.ParseInt(l.Subject, 10, 64)
	}
	return v
}

// Limits are the limits of a domain, or of a user and of its credentials that work, with their
// use.
func Limits(ctx context.Context, pool *pgxpool.Pool, target auth.LimitTarget) ([]Limit, error) {
	users := auth.NewStore(pool)
	if target.Domain != "" {
		limits, err := users.Limits(ctx, target)
		if err != nil {
			return nil, err
		}
		used, err := quota.ReadUsage(ctx, pool, limits)
		return withUse(limits, used), err
	}
	user, err := users.User(ctx, target.User)
	if err != nil {
		return nil, err
	}
	credentials, err := users.Credentials(ctx, user.Name)
	if err != nil {
		return nil, err
	}
	id, err := users.Identity(ctx, user.ID, 0)
	if err != nil {
		return nil, err
	}
	under := [][]quota.Limit{id.Limits}
	for _, c := range credentials {
		if !c.RevokedAt.IsZero() {
			continue
		}
		if id, err = users.Identity(ctx, user.ID, c.ID); err != nil {
			return nil, err
		}
		under = append(under, id.Limits)
	}
	used, err := quota.ReadUsage(ctx, pool, slices.Concat(under...))
	views := withUse(under[0], used)
	for _, limits := range under[1:] {
		views = append(views, slices.DeleteFunc(withUse(limits, used), func(v Limit) bool { return v.Scope != quota.Credential })...)
	}
	return views, err
}

// withUse are the limits that somebody is under, with their use.
func withUse(limits []quota.Limit, now quota.Usage) []Limit {
	return screen.Each(limits, func(l quota.Limit) Limit {
		v := LimitOf(l)
		tightest := quota.Binds(limits, l)
		v.Tightest = &tightest
		if used, ok := now.Of(l); ok {
			left := max(0, l.Max-used)
			v.Used, v.Left = &used, &left
		}
		return v
	})
}

// PrintLimits prints limits with their use.
func PrintLimits(w io.Writer, views []Limit) error {
	if len(views) == 0 {
		_, err := io.WriteString(w, "no limits set; only the server's own apply ([submission] in the configuration)\n")
		return err
	}
	t := screen.Table{Head: []string{"LIMIT", "", "SET FOR", "", "USED", "LEFT"}}
	for _, v := range views {
		source := map[quota.Scope]string{quota.Default: "each user (default)", quota.User: "the user"}[v.Scope]
		switch v.Scope {
		case quota.Domain:
			source = "*@" + v.Domain + ", together"
		case quota.Credential:
			source = fmt.Sprintf("credential %d", v.CredentialID)
		}
		wins := ""
		if *v.Tightest {
			wins = "tightest"
		}
		t.Add(v.Kind.Name(), v.Limit, source, wins, amountOrDash(v.Kind, v.Used), amountOrDash(v.Kind, v.Left))
	}
	if !slices.ContainsFunc(views, func(v Limit) bool { return !*v.Tightest }) {
		t.Columns = []int{0, 1, 2, 4, 5} // that all are says nothing
	}
	return t.Print(w)
}

// amountOrDash is a number of messages, recipients or sessions, or octets in a unit.
func amountOrDash(kind quota.Kind, n *int64) string {
	switch {
	case n == nil:
		return "-"
	case kind == quota.Bytes && *n > 0:
		return units.RoughOctets(*n)
	}
	return strconv.FormatInt(*n, 10)
}
