package transport

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
	"postern/internal/pg"
	"postern/internal/refusal"
)

var (
	sqlPolicies  = texts.Bind("policies", "domain", "most")
	sqlEnding    = texts.Bind("ending", "span", "most")
	sqlOverrides = texts.Bind("overrides", "domain", "most")
	sqlOverride  = texts.Bind("override", "domain", "level", "reason", "actor", "span")
	sqlClear     = texts.Bind("clear", "domain")
)

// MaxOverride is how long an override lasts at most.
const MaxOverride = 366 * 24 * time.Hour

// Override is what an admin demands in place of what a domain publishes.
type Override struct {
	Domain    string    `json:"domain"`
	Level     Level     `json:"level"`
	Reason    string    `json:"reason"`
	SetBy     string    `json:"set_by"`
	SetAt     time.Time `json:"set_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Levels are the names of those that an override may have, the weakest first.
func Levels() []string { return []string{"opportunistic", "encrypted", "verified"} }

// ParseLevel reads such a name.
func ParseLevel(name string) (Level, error) {
	n := slices.Index(Levels(), name)
	if n < 0 {
		return 0, fmt.Errorf("%q is not a level; the levels are %s", name, strings.Join(Levels(), ", "))
	}
	return Level(n), nil
}

// MarshalText writes the name of a level.
func (l Level) MarshalText() ([]byte, error) { return []byte(append(Levels(), "matched")[l]), nil }

// SetOverride sets an override for a time; it takes the place of another one, and running nodes
// follow within keepTime. Errors: refusal.ErrInvalid.
func SetOverride(ctx context.Context, db pg.DB, actor string, o Override, span time.Duration) (Override, error) {
	level, _ := o.Level.MarshalText()
	switch {
	case o.Level == Matched:
		return o, refusal.Invalid("the level of an override is not %s", level)
	case o.Reason == "":
		return o, refusal.Invalid("an override needs a reason")
	case strings.ContainsAny(o.Reason, "\r\n"):
		return o, refusal.Invalid("the reason of an override is one line")
	case span < time.Minute || span > MaxOverride:
		return o, refusal.Invalid("an override lasts between a minute and 366 days")
	}
	o.SetBy, o.SetAt = actor, time.Now()
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, sqlOverride, o.Domain, string(level), pg.Storable(o.Reason), pg.Storable(actor), span).Scan(&o.ExpiresAt)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, actor, audit.Deed{Action: "transport override", Object: o.Domain,
			Detail: map[string]any{"level": string(level), "reason": o.Reason, "expires": o.ExpiresAt}})
	})
	if err != nil {
		return o, fmt.Errorf("override the transport policy of %s: %w", o.Domain, err)
	}
	return o, nil
}

// ClearOverride ends a domain's override. Errors: refusal.ErrNotFound.
func ClearOverride(ctx context.Context, db pg.DB, actor, domain string) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sqlClear, domain)
		switch {
		case err != nil:
			return err
		case tag.RowsAffected() == 0:
			return refusal.NotFound("%s has no override", domain)
		}
		return audit.Record(ctx, tx, actor, audit.Deed{Action: "transport override --clear", Object: domain})
	})
	if err != nil && !refusal.Is(err) {
		return fmt.Errorf("clear the override of %s: %w", domain, err)
	}
	return err
}

// Overrides lists the overrides that hold, or that of one domain.
func Overrides(ctx context.Context, db pg.DB, domain string, most int) ([]Override, error) {
	rows, _ := db.Query(ctx, sqlOverrides, domain, most)
	var list []Override
	var o Override
	var level string
	_, err := pgx.ForEachRow(rows, []any{&o.Domain, &level, &o.Reason, &o.SetBy, &o.SetAt, &o.ExpiresAt}, func() (err error) {
		o.Level, err = ParseLevel(level)
		list = append(list, o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the overrides: %w", err)
	}
	return list, nil
}

// Kept is an MTA-STS policy as the nodes keep it. Its Mode is "" while none holds, since fetching it fails.
type Kept struct {
	Domain       string     `json:"domain"`
	ID           string     `json:"id"`
	Mode         Mode       `json:"mode"`
	MX           []string   `json:"mx"`
	FetchedAt    time.Time  `json:"fetched_at"`
	ExpiresAt    time.Time  `json:"expires_at"`
	FailingSince *time.Time `json:"failing_since,omitempty"`
	LastError    string     `json:"last_error,omitempty"`
}

// Policies lists the MTA-STS policies that are kept or cannot be fetched, or that of one domain.
func Policies(ctx context.Context, db pg.DB, domain string, most int) ([]Kept, error) {
	return policies(ctx, db, sqlPolicies, domain, most)
}

// Ending lists the MTA-STS policies that end within a span, or have ended, since they cannot be
// renewed; the first to end come first.
func Ending(ctx context.Context, db pg.DB, span time.Duration, most int) ([]Kept, error) {
	return policies(ctx, db, sqlEnding, span, most)
}

func policies(ctx context.Context, db pg.DB, sql string, args ...any) ([]Kept, error) {
	rows, _ := db.Query(ctx, sql, args...)
	list, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (k Kept, err error) {
		var since time.Time
		err = r.Scan(&k.Domain, &k.ID, &k.Mode, &k.MX, &k.FetchedAt, &k.ExpiresAt, &since, &k.LastError)
		if k.LastError != "" {
			k.FailingSince = &since
		}
		return k, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the policies: %w", err)
	}
	return list, nil
}
