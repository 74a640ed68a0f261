package auth

import (
	"context"
	"net/netip"
	"time"

	"postern/auth/throttle"
	"postern/policy/quota"
)

// account is the part of a user and one credential that authentication needs. The
// zero value is an unknown user: it is never allowed in.
type account struct {
	id           int64
	version      int64
	name         string
	enabled      bool
	credentialID int64
	hash         string // "" when there is no such credential, or it is revoked
	expires      time.Time
	networks     []netip.Prefix // empty: any
	senders      []string
	resend       []string // of senders
	limits       []quota.Limit
	recipients   []RecipientPattern
	suppressed   Suppressed
	duplicates   *int32 // seconds; nil: the default
	stay         stay   // of the network that was asked for
}

// stay is how long a user has been logging in from a network without a gap of 30 days.
// Zero: not at all within 30 days.
type stay struct {
	since time.Time
	last  time.Time // to the day
}

// admits reports whether the account may be used at all, apart from its password.
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
		Senders: a.senders, Resend: a.resend, Limits: a.limits, Expires: a.expires, Duplicates: spanOf(a.duplicates),
		Recipients: a.recipients, Suppressed: a.suppressed,
	}
}

// question is the key for looking up an account: a user's name, and the id of a secret or 0
// for the password. wide is the client's network as known_network has it.
type question struct {
	name       string
	credential int64
	wide       netip.Prefix
}

// The statements return one row whatever they find, and for an unknown name read about as
// much of the indexes.
const (
	accountColumns = `
		select coalesce(u.id, 0), coalesce(u.version, 0), coalesce(u.name, ''), coalesce(u.enabled, false),
		       coalesce(c.id, 0), coalesce(c.hash, ''), c.expires_at, coalesce(c.allowed_networks, '{}'), c.duplicates_s,
		       array(select p.pattern from sender_pattern p where p.user_id = u.id order by p.pattern),
		       nullif(array(select p.pattern from sender_pattern p where p.user_id = u.id and p.resend order by p.pattern), '{}'),
		       (select json_agg(json_build_object('Kind', l.kind, 'Window', l.window_s * 1000000000::bigint, 'Max', l.max,
		                 'Scope', case when l.credential_id is not null then 'credential' when l.user_id is not null then 'user'
		                   when l.domain <> '' then 'domain' else 'default' end,
		                 'Subject', coalesce(nullif(l.domain, ''), coalesce(l.credential_id, u.id)::text)) order by l.kind, l.window_s, l.id)
		        from limit_rule l
		        where coalesce(l.user_id, 0) = any(array[u.id, 0]) and coalesce(l.credential_id, 0) = any(array[0, c.id])
		          and l.domain = any(array['', split_part(u.name, '@', 2)])
		          and not (coalesce(u.no_limit_defaults, false) and l.user_id is null and l.domain = '')),
		       (select json_agg(json_build_object('Credential', coalesce(r.credential_id, 0), 'Allow', r.allow, 'Pattern', r.pattern) order by r.credential_id nulls first, r.allow, r.pattern)
		        from recipient_pattern r where r.user_id = u.id and (r.credential_id is null or r.credential_id = c.id)),
		       coalesce(c.suppressed, '')`
	accountByPassword = accountColumns + `, k.first_at, k.last_at
		from (select $1::text as name, $2::bigint as credential) asked
		left join app_user u on u.name = asked.name
		left join credential c on c.user_id = u.id and c.kind = 'password' and c.revoked_at is null and asked.credential = 0
		left join known_network k on k.user_id = u.id and k.network = $3::cidr and k.last_at > now() - interval '30 days'`
	accountBySecret = accountColumns + `, k.first_at, k.last_at
		from (select $1::text as name, $2::bigint as credential) asked
		left join app_user u on u.name = asked.name
		left join credential c on c.id = asked.credential and c.user_id = u.id and c.kind = 'secret' and c.revoked_at is null
		left join known_network k on k.user_id = u.id and k.network = $3::cidr and k.last_at > now() - interval '30 days'`
	accountByIDs = accountColumns + `, null::timestamptz, null::timestamptz
		from (select $1::bigint as id, $2::bigint as credential) asked
		left join app_user u on u.id = asked.id
		left join credential c on c.id = asked.credential and c.user_id = u.id and c.revoked_at is null`
)

// account reads a user and a credential; unknown ones have zero values.
func (s *Store) account(ctx context.Context, q question) (account, error) {
	sql := accountByPassword
	if q.credential != 0 {
		sql = accountBySecret
	}
	return s.scanAccount(ctx, sql, q.name, q.credential, cidrOf(q.wide))
}

// current reads a user and a credential by their ids.
func (s *Store) current(ctx context.Context, userID, credentialID int64) (account, error) {
	return s.scanAccount(ctx, accountByIDs, userID, credentialID)
}

func (s *Store) scanAccount(ctx context.Context, sql string, args ...any) (account, error) {
	var a account
	var expires, since, last *time.Time
	err := s.db.QueryRow(ctx, sql, args...).Scan(&a.id, &a.version, &a.name, &a.enabled,
		&a.credentialID, &a.hash, &expires, &a.networks, &a.duplicates, &a.senders, &a.resend, &a.limits, &a.recipients, &a.suppressed, &since, &last)
	if err != nil {
		return account{}, err
	}
	a.expires, a.stay = timeOf(expires), stay{timeOf(since), timeOf(last)}
	return a, err
}

const selectStanding = `
	select coalesce(bool_or(k.network = $2), false), coalesce(bool_or(k.network = $3), false)
	from known_network k
	where k.user_id = (select u.id from app_user u where u.name = $1)
	  and k.network = any(array[$2::cidr, $3::cidr]) and k.last_at > now() - interval '30 days'`

// standing reads from where the user of this name has logged in within 30 days.
func (s *Store) standing(ctx context.Context, name string, from throttle.Origin) (known standing, err error) {
	err = s.db.QueryRow(ctx, selectStanding, name, cidrOf(from.Narrow), cidrOf(from.Wide)).Scan(&known.address, &known.network)
	return known, err
}

// cidrOf is a network, or null for none.
func cidrOf(network netip.Prefix) *netip.Prefix {
	if !network.IsValid() {
		return nil
	}
	return &network
}
