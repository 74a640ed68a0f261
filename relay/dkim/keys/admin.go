package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/refusal"
	"postern/relay/dkim"
	"postern/relay/seal"
)

// actTime bounds an act.
const actTime = 30 * time.Second

// Admin changes the keys. Each act is in the audit, in its transaction.
type Admin struct {
	Pool   *pgxpool.Pool
	Sealer *seal.Sealer // for Add and Rotate
	Actor  string       // for the audit

	clock func(time.Time) time.Time // what a test makes of the database's clock; nil: it stays
}

// deed is one act on a domain whose keys are locked.
type deed struct {
	pgx.Tx
	domain string
	keys   []Key
	now    time.Time
	done   []Key // what the act has made, changed or removed
	found  []Key // what it has found done
	every  *int  // days that it has set
}

// act does one act. The keys that it has done it to, or to which it was done before, are returned.
func (a *Admin) act(ctx context.Context, action, domain string, do func(ctx context.Context, d *deed) error) (done []Key, err error) {
	ctx, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	err = pgx.BeginFunc(ctx, a.Pool, func(tx pgx.Tx) error {
		d := &deed{Tx: tx, domain: domain}
		var version int64
		if err := tx.QueryRow(ctx, sqlPoll).Scan(&version, &d.now); err != nil {
			return err
		}
		if a.clock != nil {
			d.now = a.clock(d.now)
		}
		if action == "dkim add" {
			if _, err := tx.Exec(ctx, sqlAddDomain, domain, d.now); err != nil {
				return err
			}
		}
		if d.keys, err = lock(ctx, tx, domain, 0); errors.Is(err, errLost) {
			return Unknown(domain)
		} else if err != nil {
			return err
		}
		if err := do(ctx, d); err != nil {
			return err
		}
		done = append(d.found, d.done...)
		if _, err := tx.Exec(ctx, sqlHurry, domain, d.now); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlRemoveDomain, domain); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlChanged); err != nil {
			return err
		}
		if d.done == nil && d.every == nil {
			return nil
		}
		return audit.Record(ctx, tx, a.Actor, audit.Deed{Action: action, Object: domain, Detail: d.detail()})
	})
	if err != nil && !refusal.Is(err) {
		err = fmt.Errorf("%s: %w", action, err)
	}
	return done, err
}

// detail is what the audit says of the act.
func (d *deed) detail() map[string]any {
	detail := map[string]any{}
	if d.every != nil {
		detail["every_days"] = *d.every
	}
	var selectors []string
	for _, k := range d.done {
		selectors = append(selectors, k.Selector)
	}
	if selectors != nil {
		detail["selectors"] = selectors
	}
	return detail
}

// Unknown is the refusal of a domain without keys.
func Unknown(domain string) error {
	return refusal.NotFound("there is no DKIM key for %s; 'postern dkim add %[1]s' makes one", domain)
}

// Add makes keys for a domain that has none of these algorithms. Errors: refusal.ErrExists,
// refusal.ErrInvalid.
func (a *Admin) Add(ctx context.Context, domain string, algorithms []dkim.Algorithm, everyDays int) ([]Key, error) {
	if dkim.Registry(domain) {
		return nil, refusal.Invalid("%s is a public suffix, below which others have their domains: name the domain of the senders", domain)
	}
	return a.act(ctx, "dkim add", domain, func(ctx context.Context, d *deed) error {
		for _, alg := range algorithms {
			if of(d.keys, alg, Pending) != nil || of(d.keys, alg, Active) != nil {
				return refusal.Exists("%s has a key for %s already; 'postern dkim rotate %[1]s' makes the next one", domain, alg)
			}
			if err := d.make(ctx, a.Sealer, alg); err != nil {
				return err
			}
		}
		if everyDays == 0 {
			return nil
		}
		return d.setEvery(ctx, everyDays)
	})
}

// make makes a pending key.
func (d *deed) make(ctx context.Context, s *seal.Sealer, alg dkim.Algorithm) error {
	taken, err := used(ctx, d.Tx, d.domain, d.keys)
	if err != nil {
		return err
	}
	m, err := newKey(s, d.domain, alg, d.now, taken)
	if err != nil {
		return err
	}
	d.keys, d.done = append(d.keys, m.Key), append(d.done, m.Key)
	return insert(ctx, d.Tx, m)
}

func (d *deed) setEvery(ctx context.Context, days int) error {
	d.every = &days
	_, err := d.Exec(ctx, sqlSetEvery, d.domain, days)
	return err
}

// Rotate makes the next keys of a domain, unless they are there; all that are pending are returned.
// Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (a *Admin) Rotate(ctx context.Context, domain string) ([]Key, error) {
	return a.act(ctx, "dkim rotate", domain, func(ctx context.Context, d *deed) error {
		for _, alg := range dkim.Algorithms() {
			switch pending := of(d.keys, alg, Pending); {
			case pending != nil:
				d.found = append(d.found, *pending)
			case of(d.keys, alg, Active) == nil:
			default:
				if err := d.make(ctx, a.Sealer, alg); err != nil {
					return err
				}
			}
		}
		if d.done == nil && d.found == nil {
			return refusal.Invalid("%s has no key that signs; 'postern dkim add %[1]s' makes one", domain)
		}
		return nil
	})
}

// SetEvery sets the age at which the keys of a domain are rotated, in days; 0: by an admin only.
// Errors: refusal.ErrNotFound.
func (a *Admin) SetEvery(ctx context.Context, domain string, days int) error {
	_, err := a.act(ctx, "dkim rotate", domain, func(ctx context.Context, d *deed) error { return d.setEvery(ctx, days) })
	return err
}

// chosen are the keys with a selector, "" for all. Errors: refusal.ErrNotFound.
func (d *deed) chosen(selector string) ([]Key, error) {
	list := slices.DeleteFunc(slices.Clone(d.keys), func(k Key) bool { return selector != "" && k.Selector != selector })
	if len(list) == 0 {
		return nil, refusal.NotFound("%s has no key %q; see 'postern dkim list %[1]s'", d.domain, selector)
	}
	return list, nil
}

// Retire ends the signing with a key, "" for all of the domain, which then are not rotated any more:
// those that are active are retiring, those that are pending removed. Errors: refusal.ErrNotFound,
// refusal.ErrInvalid.
func (a *Admin) Retire(ctx context.Context, domain, selector string) ([]Key, error) {
	return a.act(ctx, "dkim retire", domain, func(ctx context.Context, d *deed) error {
		list, err := d.chosen(selector)
		if err != nil {
			return err
		}
		for _, k := range list {
			switch {
			case k.State == Pending:
				_, err = d.Exec(ctx, sqlDelete, domain, k.Selector)
			case k.State == Active:
				k.State, k.Since = Retiring, d.now
				_, err = d.Exec(ctx, sqlWrite, domain, k.Selector, k.State, k.Since, k.looks, k.Gone, when(k.LookedAt), k.Found)
			default:
				continue
			}
			if err != nil {
				return err
			}
			d.done = append(d.done, k)
		}
		switch {
		case d.done == nil:
			return refusal.Invalid("no such key of %s is pending or active", domain)
		case selector == "" && list[0].EveryDays != 0:
			return d.setEvery(ctx, 0)
		}
		return nil
	})
}

// Remove deletes a key, "" for all of the domain. Unless it is forced, one that signs, or has signed
// mail that may be on its way, is refused. Errors: refusal.ErrNotFound, refusal.ErrInvalid.
func (a *Admin) Remove(ctx context.Context, domain, selector string, force bool) ([]Key, error) {
	return a.act(ctx, "dkim remove", domain, func(ctx context.Context, d *deed) (err error) {
		if d.done, err = d.chosen(selector); err != nil {
			return err
		}
		signs, signed := "", ""
		for _, k := range d.done {
			switch k.State {
			case Active:
				signs = k.Selector
			case Retiring:
				signed = k.Selector
			}
			if _, err := d.Exec(ctx, sqlDelete, domain, k.Selector); err != nil {
				return err
			}
		}
		switch {
		case force:
		case signs != "":
			return refusal.Invalid("%s signs mail: 'postern dkim retire %s' first, or --force", signs, domain)
		case signed != "":
			return refusal.Invalid("mail that %s signed may be on its way: wait until 'postern dkim list %s' has it as retired, or --force", signed, domain)
		}
		return nil
	})
}
