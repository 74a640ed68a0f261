package auth

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
)

const (
	writeEvery = 3 * time.Second
	notesMax   = 1 << 14 // uses, and homes, that wait to be written
	noteBatch  = 1000
	// How often a credential in constant use is recorded, unless it is used from
	// elsewhere.
	useEvery = time.Minute
	// How many addresses of a user are known, the latest ones.
	addressesKept = 64
)

// notes are logins that are not written yet: the last use of each credential and the
// addresses and networks where users are at home. Their number is bounded; further ones are
// dropped.
type notes struct {
	mu      sync.Mutex
	uses    map[int64]Use // by credential
	homes   map[dwelling]struct{}
	written *cache[int64, Use] // that need not be written again soon
}

// dwelling is a user's address (narrow) or network (wide).
type dwelling struct {
	user    int64
	network netip.Prefix
}

func newNotes() *notes {
	return &notes{
		uses: make(map[int64]Use), homes: make(map[dwelling]struct{}),
		written: newCache[int64, Use](notesMax, useEvery),
	}
}

// used notes a login by a credential.
func (n *notes) used(credential int64, u Use) {
	if w, _, ok := n.written.get(credential, u.At); ok && w.Addr == u.Addr && w.TLS == u.TLS {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, there := n.uses[credential]; there || len(n.uses) < notesMax {
		n.uses[credential] = u
	}
}

// atHome notes that a user logged in from an address or network.
func (n *notes) atHome(d dwelling) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.network.IsValid() && len(n.homes) < notesMax {
		n.homes[d] = struct{}{}
	}
}

// take hands all notes over.
func (n *notes) take() (uses map[int64]Use, homes map[dwelling]struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	uses, homes = n.uses, n.homes
	n.uses, n.homes = make(map[int64]Use), make(map[dwelling]struct{})
	return uses, homes
}

// giveBack takes back notes that could not be written; later ones take precedence.
func (n *notes) giveBack(uses map[int64]Use, homes map[dwelling]struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, u := range uses {
		if _, later := n.uses[id]; !later && len(n.uses) < notesMax {
			n.uses[id] = u
		}
	}
	for d := range homes {
		if len(n.homes) < notesMax {
			n.homes[d] = struct{}{}
		}
	}
}

// writing writes notes.
type writing struct {
	store *Store
	notes *notes
}

func (w *writing) round(ctx context.Context) error {
	uses, homes := w.notes.take()
	for batch := range slices.Chunk(slices.Sorted(maps.Keys(uses)), noteBatch) {
		if err := w.store.writeUses(ctx, batch, uses); err != nil {
			w.notes.giveBack(uses, homes)
			return err
		}
		for _, id := range batch {
			w.notes.written.put(id, uses[id], uses[id].At)
			delete(uses, id)
		}
	}
	for batch := range slices.Chunk(slices.SortedFunc(maps.Keys(homes), dwelling.compare), noteBatch) {
		if err := w.store.writeHomes(ctx, batch); err != nil {
			w.notes.giveBack(nil, homes)
			return err
		}
		for _, d := range batch {
			delete(homes, d)
		}
	}
	return nil
}

func (d dwelling) compare(other dwelling) int {
	if c := cmp.Compare(d.user, other.user); c != 0 {
		return c
	}
	return cmp.Or(d.network.Addr().Compare(other.network.Addr()), cmp.Compare(d.network.Bits(), other.network.Bits()))
}

// writeUses writes the last uses of credentials, locked in the order of their ids. It does
// not overwrite a later use by another node.
func (s *Store) writeUses(ctx context.Context, ids []int64, uses map[int64]Use) error {
	at, addrs, facts := make([]time.Time, len(ids)), make([]*netip.Addr, len(ids)), make([]string, len(ids))
	for i, id := range ids {
		u := uses[id]
		at[i], facts[i] = u.At, pg.Storable(u.TLS)
		if u.Addr.IsValid() {
			addr := u.Addr.Unmap().WithZone("")
			addrs[i] = &addr
		}
	}
	const sql = `
		with used as materialized (
			select c.id, n.at, n.addr, n.tls
			from unnest($1::bigint[], $2::timestamptz[], $3::inet[], $4::text[]) n(id, at, addr, tls)
			join credential c on c.id = n.id
			where c.last_used_at is null or c.last_used_at < n.at
			order by c.id for no key update of c)
		update credential c set last_used_at = u.at, last_used_addr = u.addr, last_used_tls = u.tls
		from used u where c.id = u.id`
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return pg.Relaxed(ctx, s.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, ids, at, addrs, facts)
		return err
	})
}

const (
	// Addresses are told from networks by their length.
	forgetHomes = `
		with surplus as materialized (
			select k.user_id, k.network from known_network k
			where k.user_id = any($1::bigint[]) and k.last_at < clock_timestamp() - interval '30 days'
			union
			select u.id, o.network from unnest($1::bigint[]) u(id) cross join lateral (
				select k.network from known_network k where k.user_id = u.id and masklen(k.network) in (32, 64)
				order by k.last_at desc, k.network offset $2) o)
		delete from known_network where (user_id, network) in (
			select k.user_id, k.network from known_network k join surplus using (user_id, network)
			order by k.user_id, k.network for update of k)`
	addHomes = `
		insert into known_network (user_id, network)
		select n.user_id, n.network from unnest($1::bigint[], $2::cidr[]) with ordinality n(user_id, network, nth)
		where exists (select from app_user u where u.id = n.user_id) order by n.nth
		on conflict (user_id, network) do update set last_at = clock_timestamp()`
)

// writeHomes writes addresses and networks where users are at home. First it deletes
// those that a user has not come back to for 30 days, so that such a network is new again,
// and the addresses beyond the number kept.
func (s *Store) writeHomes(ctx context.Context, homes []dwelling) error {
	users, networks := make([]int64, len(homes)), make([]netip.Prefix, len(homes))
	for i, d := range homes {
		users[i], networks[i] = d.user, d.network
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return pg.Relaxed(ctx, s.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, forgetHomes, users, addressesKept); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, addHomes, users, networks)
		return err
	})
}
