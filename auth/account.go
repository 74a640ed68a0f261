package auth

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
)

// account is what an authentication needs to know of a user. The zero value is an
// unknown user: it is never allowed in.
type account struct {
	id           int64
	version      int64
	name         string
	enabled      bool
	credentialID int64
	hash         string // "" when the user has no password
	expires      time.Time
	networks     []netip.Prefix // empty: any
	senders      []string
	limits       []Limit
}

// admits says whether the account may be used at all, its password apart.
func (a account) admits(peer netip.Addr, now time.Time) bool {
	if a.id == 0 || !a.enabled || a.hash == "" {
		return false
	}
	if !a.expires.IsZero() && !now.Before(a.expires) {
		return false
	}
	if len(a.networks) == 0 {
		return true
	}
	for _, network := range a.networks {
		if network.Contains(peer.Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

func (a account) identity() Identity {
	return Identity{
		UserID: a.id, CredentialID: a.credentialID, Name: a.name,
		Senders: a.senders, Limits: a.limits,
	}
}

// account reads a user by canonical name; an unknown one is the zero value.
func (s *Store) account(ctx context.Context, name string) (account, error) {
	a := account{name: name}
	var expires *time.Time
	err := s.pool.QueryRow(ctx, `
		select u.id, u.version, u.enabled,
		       coalesce(c.id, 0), coalesce(c.hash, ''), c.expires_at, coalesce(c.allowed_networks, '{}'),
		       array(select p.pattern from sender_pattern p where p.user_id = u.id order by p.pattern)
		from app_user u
		left join credential c on c.user_id = u.id and c.kind = 'password' and c.revoked_at is null
		where u.name = $1`, name).Scan(
		&a.id, &a.version, &a.enabled,
		&a.credentialID, &a.hash, &expires, &a.networks, &a.senders)
	if errors.Is(err, pgx.ErrNoRows) {
		return account{}, nil
	}
	if err != nil {
		return account{}, err
	}
	if expires != nil {
		a.expires = *expires
	}
	return a, nil
}
