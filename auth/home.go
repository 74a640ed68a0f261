package auth

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// That a user is known from an address or a network is written down once in so long,
	// and then learned again.
	homeEvery = 24 * time.Hour
	// A network stays new for a day, so that an attacker who logs in for each message is
	// as new with the second.
	newFor = 24 * time.Hour
	// How many networks and addresses of users are remembered.
	networksMax = 1 << 16
	// How long it is remembered whether a user is known from an address.
	standingTTL = 5 * time.Second
)

// standing is where an account is known from: it has logged in from there within 30 days. The
// zero value is that of an account that does not exist.
type standing struct {
	address bool // the very address: the /32 or /64
	network bool // the /24 or /48
}

// knownFrom is called for each login that would have to wait.
func (a *Authenticator) knownFrom(ctx context.Context, try loginTry) (standing, error) {
	if try.nobodys() {
		return standing{}, nil
	}
	now := time.Now()
	if _, _, ok := a.addresses.get(try.address, now); ok {
		return standing{address: true, network: true}, nil
	}
	if known, _, ok := a.standings.get(try.address, now); ok {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	known, err := a.users.standing(ctx, try.name, try.from)
	if err != nil {
		return standing{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	a.standings.put(try.address, known, now)
	return known, nil
}

// welcome notes a login and returns its identity.
func (a *Authenticator) welcome(acct account, try loginTry, now time.Time) Identity {
	h, _, here := a.homes.get(try.pair, now)
	if !here {
		if h = acct.stay; h.since.IsZero() {
			h.since = now
		}
		if now.Sub(h.last) >= homeEvery {
			h.last = now
			a.notes.atHome(dwelling{acct.id, try.from.Wide})
		}
		a.homes.put(try.pair, h, h.last)
	}
	if _, _, here := a.addresses.get(try.address, now); !here {
		a.notes.atHome(dwelling{acct.id, try.from.Narrow})
		a.addresses.put(try.address, struct{}{}, now)
	}
	a.notes.used(acct.credentialID, Use{At: now, Addr: try.peer.Addr, TLS: try.peer.TLS})
	id := acct.identity()
	id.NewNetwork = now.Sub(h.since) < newFor
	return id
}

// Addresses are told from networks by their length. Each is written once a day, so those of
// two days have all from which somebody has logged in within one.
const recentAddresses = `
		select network from known_network
		where last_at > clock_timestamp() - interval '2 days' and masklen(network) in (32, 64)
		order by last_at desc limit $1`

// RecentAddresses returns the IPv4 addresses (as /32) and IPv6 /64 from which users have
// logged in within a day or two, at any node: the last ones, at most limit.
func (s *Store) RecentAddresses(ctx context.Context, limit int) ([]netip.Prefix, error) {
	rows, err := s.db.Query(ctx, recentAddresses, limit)
	if err != nil {
		return nil, fmt.Errorf("read known addresses: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[netip.Prefix])
	if err != nil {
		return nil, fmt.Errorf("read known addresses: %w", err)
	}
	return list, nil
}
