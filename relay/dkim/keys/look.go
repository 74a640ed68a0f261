package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/miekg/dns"

	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/maillog"
	"postern/relay/resolver"
)

const (
	mostLooks = 8                     // domains that a node looks at at a time
	lookTime  = 30 * time.Second      // for all servers of a record
	leaseTime = lookTime + 3*callTime // a look, and the write of its result
	mostAlias = 4                     // zones that a record is an alias through
	mostAsked = 16                    // servers that are asked about a record at a time
	mostNamed = 8                     // servers whose fault is told
)

// errLost says that another node has the lease, or an admin has removed the domain.
var errLost = errors.New("the lease of the look is lost")

// Published looks at the record of a key as a node does. wrong names a fault of the record, "" for
// none; the error says that it is not known, since some servers do not answer.
func Published(ctx context.Context, r *resolver.Resolver, k Key) (wrong string, err error) {
	switch l := lookAt(ctx, r, k); l.verdict {
	case published:
		return "", nil
	case silent:
		return "", errors.New(l.found)
	default:
		return l.found, nil
	}
}

// lookAt asks all authoritative servers for the record of a key.
func lookAt(ctx context.Context, r *resolver.Resolver, k Key) look {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return lookUp(ctx, r, k, k.Name(), mostAlias)
}

func lookUp(ctx context.Context, r *resolver.Resolver, k Key, name string, aliases int) look {
	servers, err := r.Authorities(ctx, name)
	switch {
	case errors.Is(err, resolver.ErrNone):
		return look{missing, "the domain has no name servers"}
	case err != nil:
		return look{silent, maillog.Clean(err.Error())}
	}
	var mu sync.Mutex
	var wg panics.Group
	answers, places := map[string]answer{}, make(chan struct{}, mostAsked)
	for server, addrs := range servers {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			a := ask(ctx, r, k, name, addrs)
			mu.Lock()
			defer mu.Unlock()
			answers[strings.TrimSuffix(server, ".")] = a
		})
	}
	wg.Wait()
	if alias := agree(answers); alias != "" && aliases > 0 {
		return lookUp(ctx, r, k, alias, aliases-1)
	}
	return judge(answers)
}

// answer is what a server says about a record.
type answer struct {
	alias string // into another zone, that the name stands for
	none  error  // why what it has is not the record; nil with err nil: it has it
	err   error  // it has not answered
}

// ask asks a server at each of its addresses: the first answer that is not the record decides.
func ask(ctx context.Context, r *resolver.Resolver, k Key, name string, addrs []netip.Addr) answer {
	a := answer{err: errors.New("its address is not known")}
	for _, addr := range addrs {
		texts, alias, err := textsAt(ctx, r, net.JoinHostPort(addr.String(), "53"), name)
		switch {
		case errors.Is(err, resolver.ErrElsewhere):
			return answer{alias: alias}
		case err != nil && !errors.Is(err, resolver.ErrNone):
			if a.err != nil { // no other address has answered
				a.err = err
			}
			continue
		}
		if a = (answer{none: k.matches(texts)}); a.none != nil {
			return a
		}
	}
	return a
}

func textsAt(ctx context.Context, r *resolver.Resolver, server, name string) (texts []string, alias string, err error) {
	found, err := r.At(server).Lookup(ctx, name, dns.TypeTXT)
	for _, txt := range resolver.Of[*dns.TXT](found) {
		texts = append(texts, strings.Join(txt.Txt, ""))
	}
	return texts, found.Canonical, err
}

// agree is the alias that all servers have answered; "": there is none.
func agree(answers map[string]answer) (alias string) {
	for _, a := range answers {
		if a.alias == "" || alias != "" && a.alias != alias {
			return ""
		}
		alias = a.alias
	}
	return alias
}

// judge is what the answers of all servers come to.
func judge(answers map[string]answer) look {
	have, lack, mute := 0, 0, 0
	reasons := map[string]bool{}
	var wrong []string
	for _, server := range slices.Sorted(maps.Keys(answers)) {
		switch a := answers[server]; {
		case a.err != nil:
			mute++
			wrong = append(wrong, fmt.Sprintf("%s does not answer: %v", server, a.err))
		case a.alias != "":
			wrong = append(wrong, fmt.Sprintf("%s has an alias (CNAME) that others lack", server))
		case a.none != nil:
			lack++
			reasons[a.none.Error()] = true
			wrong = append(wrong, fmt.Sprintf("%s: %v", server, a.none))
		default:
			have++
		}
	}
	if lack > 1 && lack == len(answers) && len(reasons) == 1 {
		_, why, _ := strings.Cut(wrong[0], ": ")
		wrong = []string{"all name servers: " + why}
	}
	more := len(wrong) - mostNamed
	wrong = wrong[:min(len(wrong), mostNamed)]
	for i, w := range wrong { // it may quote the server
		wrong[i] = maillog.Clean(w)
	}
	if more > 0 {
		wrong = append(wrong, fmt.Sprintf("and %d more", more))
	}
	l := look{unknown, strings.Join(wrong, "; ")}
	switch len(answers) {
	case 0:
		l.found = "the domain has no name servers"
	case have:
		l.verdict = published
	case lack:
		l.verdict = missing
	case have + mute:
		l.verdict = silent
	}
	return l
}

// visit is a domain that is due, with the lease for it and when that was taken.
type visit struct {
	domain string
	lease  int64
	now    time.Time
}

// lookAt looks at the records of a domain under its lease, makes the keys that are due, and records
// what becomes of all.
func (r *Ring) lookAt(ctx context.Context, dns *resolver.Resolver, v visit) error {
	read, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list, err := List(read, r.cfg.Pool, v.domain)
	if err != nil {
		return err
	}
	found := make([]look, len(list))
	var wg panics.Group
	for i, k := range list {
		wg.Go(func() { found[i] = lookAt(ctx, dns, k) })
	}
	wg.Wait()
	looks := map[string]look{}
	for i, k := range list {
		looks[k.Selector] = found[i]
	}
	if ctx.Err() != nil {
		return ctx.Err() // a server that was cut off by that has said nothing
	}
	write, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var fresh []made
	for _, a := range overdue(list, v.now) {
		taken, err := used(write, r.cfg.Pool, v.domain, list)
		if err != nil {
			return err
		}
		m, err := newKey(r.cfg.Sealer, v.domain, a, v.now, taken)
		if err != nil {
			return err
		}
		fresh = append(fresh, m)
	}
	changes, err := r.record(write, v, looks, fresh)
	for _, c := range changes {
		r.cfg.Log.Info("DKIM key "+c.what, "domain", v.domain, "selector", c.selector)
	}
	return err
}

// change is what has become of a key, for the log.
type change struct{ what, selector string }

// record writes the results of a look, and returns what they have changed.
func (r *Ring) record(ctx context.Context, v visit, looks map[string]look, fresh []made) (changes []change, err error) {
	err = pgx.BeginFunc(ctx, r.cfg.Pool, func(tx pgx.Tx) error {
		list, err := lock(ctx, tx, v.domain, v.lease)
		if err != nil {
			return err
		}
		was := slices.Clone(list)
		deleted := after(list, looks, v.now, max(leastRetiring, r.cfg.Lifetime))
		if changes, err = write(ctx, tx, was, list, deleted); err != nil {
			return err
		}
		for _, m := range fresh {
			if slices.Contains(overdue(list, v.now), m.Algorithm) && !has(list, m.Selector) {
				if err := insert(ctx, tx, m); err != nil {
					return err
				}
				changes = append(changes, change{"made: its record is to be published", m.Selector})
				list = append(list, m.Key)
			}
		}
		for _, c := range changes {
			if _, err := tx.Exec(ctx, sqlTell, v.domain, c.selector, c.what); err != nil {
				return err
			}
		}
		if changes != nil {
			if _, err := tx.Exec(ctx, sqlChanged); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, sqlDone, v.domain, v.lease, next(list, v.now))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record what has become of the DKIM keys of %s: %w", v.domain, err)
	}
	return changes, nil
}

// lock keeps a domain's keys as they are until the transaction ends. The error is errLost if there is
// no such domain, or if a lease other than 0 is not its last.
func lock(ctx context.Context, tx pgx.Tx, domain string, lease int64) ([]Key, error) {
	locked, err := tx.Exec(ctx, sqlLock, domain, lease)
	switch {
	case err != nil:
		return nil, err
	case locked.RowsAffected() == 0:
		return nil, errLost
	}
	return List(ctx, tx, domain)
}

// write writes the keys that are other than they were, those first that give up a place.
func write(ctx context.Context, tx pgx.Tx, was, now []Key, deleted []string) (changes []change, err error) {
	batch := &pgx.Batch{}
	queue := func(active bool) {
		for i := range now {
			k, old := &now[i], &was[i]
			if (k.State == Active) != active || k.LookedAt.Equal(old.LookedAt) && k.State == old.State || slices.Contains(deleted, k.Selector) {
				continue
			}
			batch.Queue(sqlWrite, k.Domain, k.Selector, k.State, k.Since, k.looks, k.Gone, when(k.LookedAt), pg.Storable(k.Found))
			switch {
			case k.State != old.State:
				changes = append(changes, change{"is " + string(k.State), k.Selector})
			case k.Gone != old.Gone:
				changes = append(changes, change{map[bool]string{true: "is not used: its record is gone", false: "is used again: its record is there"}[k.Gone], k.Selector})
			}
		}
	}
	queue(false)
	queue(true)
	for _, selector := range deleted {
		batch.Queue(sqlDelete, now[0].Domain, selector)
		changes = append(changes, change{"is deleted: its record is gone", selector})
	}
	if deleted != nil {
		batch.Queue(sqlRemoveDomain, now[0].Domain)
	}
	return changes, tx.SendBatch(ctx, batch).Close()
}

// when is null for no time.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func insert(ctx context.Context, tx pgx.Tx, m made) error {
	_, err := tx.Exec(ctx, sqlInsert, m.Domain, m.Selector, m.Algorithm, m.Public, m.sealed, m.State, m.CreatedAt)
	return err
}
