package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"postern/auth/audit"
	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
)

// ErrNewCredential is a credential that cannot be made.
var ErrNewCredential = errors.New("not a valid credential")

// CredentialKind is how a credential proves an identity.
type CredentialKind string

const (
	KindPassword CredentialKind = "password" // chosen by a person
	KindSecret   CredentialKind = "secret"   // generated here
)

// Credential is one way to log in as a user. Zero times are null: never.
type Credential struct {
	ID        int64
	UserID    int64
	User      string // canonical
	Kind      CredentialKind
	Label     string
	Expires   time.Time
	Networks  []netip.Prefix // from which alone it works; empty: any
	LastUse   Use
	CreatedAt time.Time
	RevokedAt time.Time

	Suppressed Suppressed // what it does with suppressed recipients
	// Duplicates is how long copies of a message are recognised, 0 for not at all; nil: as the
	// configuration says.
	Duplicates *time.Duration
}

// State says whether the credential is active, expired or revoked at a time.
func (c Credential) State(now time.Time) string {
	switch {
	case !c.RevokedAt.IsZero():
		return "revoked"
	case !c.Expires.IsZero() && !now.Before(c.Expires):
		return "expired"
	}
	return "active"
}

// Use is the time, to the minute, and origin of a login.
type Use struct {
	At   time.Time
	Addr netip.Addr
	TLS  string
}

// NewCredential are the properties of a credential for AddCredential.
type NewCredential struct {
	Label    string         // for people; at most 200 octets
	Expires  time.Time      // zero: never
	Networks []netip.Prefix // from which alone it works; empty: any
}

const maxLabel = 200

// check returns the credential as it is stored.
func (n NewCredential) check(now time.Time) (NewCredential, error) {
	n.Label = pg.Storable(n.Label)
	switch {
	case len(n.Label) > maxLabel:
		return n, fmt.Errorf("%w: the label is longer than %d octets", ErrNewCredential, maxLabel)
	case !n.Expires.IsZero() && !n.Expires.After(now):
		return n, fmt.Errorf("%w: it would have expired already", ErrNewCredential)
	}
	networks := make([]netip.Prefix, len(n.Networks))
	for i, p := range n.Networks {
		if p.Addr().Is4In6() && p.Bits() >= 96 { // as peers are compared
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if !p.IsValid() {
			return n, fmt.Errorf("%w: %s is not a network", ErrNewCredential, n.Networks[i])
		}
		networks[i] = p.Masked()
	}
	n.Networks = networks
	return n, nil
}

// AddCredential makes a secret for a user and returns it; it is never shown again. The error
// is ErrName, ErrNotFound or ErrNewCredential, or of the database.
func (s *Store) AddCredential(ctx context.Context, user string, n NewCredential) (c Credential, secret string, err error) {
	if n, err = n.check(time.Now()); err != nil {
		return Credential{}, "", err
	}
	random := GeneratePassword()
	detail := map[string]any{"label": n.Label}
	var id int64
	err = s.change(ctx, user, audit.Deed{Action: "credential add", Detail: detail}, func(ctx context.Context, tx pgx.Tx, userID int64) error {
		err := tx.QueryRow(ctx, `
			insert into credential (user_id, kind, hash, label, expires_at, allowed_networks)
			values ($1, 'secret', $2, $3, $4, $5) returning id`,
			userID, newSecretHash(random).String(), n.Label, nullTime(n.Expires), n.Networks).Scan(&id)
		detail["credential"] = id
		return err
	})
	if err != nil {
		return Credential{}, "", err
	}
	if c, err = s.Credential(ctx, id); err != nil {
		return Credential{}, "", err
	}
	return c, secretOf(id, random), nil
}

// Credentials returns a user's credentials, the revoked ones too, in the order in
// which they were made. The error is ErrName or ErrNotFound, or of the database.
func (s *Store) Credentials(ctx context.Context, user string) ([]Credential, error) {
	u, err := s.User(ctx, user)
	if err != nil {
		return nil, err
	}
	list, err := s.credentials(ctx, selectCredentials+` where c.user_id = $1 order by c.id`, u.ID)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", u.Name, err)
	}
	return list, nil
}

// Credential returns one credential. The error is ErrNotFound, or of the database.
func (s *Store) Credential(ctx context.Context, id int64) (Credential, error) {
	list, err := s.credentials(ctx, selectCredentials+` where c.id = $1`, id)
	if err != nil {
		return Credential{}, fmt.Errorf("read credential %d: %w", id, err)
	}
	if len(list) == 0 {
		return Credential{}, notFound(fmt.Sprintf("no credential %d", id))
	}
	return list[0], nil
}

// RevokeCredential ends a credential of either kind for ever and returns it. One already
// revoked is returned unchanged. The error is ErrNotFound, or of the database.
func (s *Store) RevokeCredential(ctx context.Context, id int64) (Credential, error) {
	c, err := s.Credential(ctx, id)
	if err != nil || !c.RevokedAt.IsZero() {
		return c, err
	}
	d := audit.Deed{Action: "credential revoke", Detail: map[string]any{"credential": id, "label": c.Label}}
	err = s.change(ctx, c.User, d, func(ctx context.Context, tx pgx.Tx, _ int64) error {
		_, err := tx.Exec(ctx, `
			update credential set revoked_at = now(), updated_at = now()
			where id = $1 and revoked_at is null`, id)
		return err
	})
	if err != nil {
		return Credential{}, err
	}
	return s.Credential(ctx, id)
}

// MaxDuplicates is the longest that copies of a message are recognised.
const MaxDuplicates = 7 * 24 * time.Hour

// SetDuplicates sets how long copies of what comes by a credential are recognised, 0 for not at all
// and nil for as the configuration says, and returns the credential. The error is ErrNotFound or
// ErrNewCredential, or of the database.
func (s *Store) SetDuplicates(ctx context.Context, id int64, span *time.Duration) (Credential, error) {
	var seconds *int32
	if span != nil {
		if *span < 0 || *span > MaxDuplicates {
			return Credential{}, fmt.Errorf("%w: copies are recognised for 0 to 7 days, not %s", ErrNewCredential, *span)
		}
		n := int32(*span / time.Second)
		seconds = &n
	}
	c, err := s.Credential(ctx, id)
	if err != nil {
		return Credential{}, err
	}
	d := audit.Deed{Action: "credential set", Detail: map[string]any{"credential": id, "label": c.Label, "duplicates_s": seconds}}
	err = s.change(ctx, c.User, d, func(ctx context.Context, tx pgx.Tx, _ int64) error {
		_, err := tx.Exec(ctx, `update credential set duplicates_s = $2, updated_at = now() where id = $1`, id, seconds)
		return err
	})
	if err != nil {
		return Credential{}, err
	}
	return s.Credential(ctx, id)
}

// spanOf is a number of seconds that may be null.
func spanOf(seconds *int32) *time.Duration {
	if seconds == nil {
		return nil
	}
	d := time.Duration(*seconds) * time.Second
	return &d
}

const selectCredentials = `
	select c.id, c.user_id, u.name, c.kind, c.label, c.expires_at, c.allowed_networks,
	       c.last_used_at, c.last_used_addr, coalesce(c.last_used_tls, ''), c.created_at, c.revoked_at, c.suppressed, c.duplicates_s
	from credential c join app_user u on u.id = c.user_id`

func (s *Store) credentials(ctx context.Context, sql string, args ...any) ([]Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Credential, err error) {
		var expires, used, revoked *time.Time
		var addr *netip.Addr
		var duplicates *int32
		err = row.Scan(&c.ID, &c.UserID, &c.User, &c.Kind, &c.Label, &expires, &c.Networks,
			&used, &addr, &c.LastUse.TLS, &c.CreatedAt, &revoked, &c.Suppressed, &duplicates)
		c.Duplicates = spanOf(duplicates)
		c.Expires, c.LastUse.At, c.RevokedAt = timeOf(expires), timeOf(used), timeOf(revoked)
		if addr != nil {
			c.LastUse.Addr = *addr
		}
		return c, err
	})
}

// nullTime is the zero time as a null.
func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
