package keys

import (
	"slices"
	"time"

	"postern/relay/dkim"
)

const day = 24 * time.Hour

const (
	// ahead is how long before its end the next key is made, or half of its time if that is less.
	ahead = 14 * day
	// leastRetiring is how long a key is retiring at least, and longer if the queue's lifetime is:
	// other servers keep mail that it has signed for some five days, and some verify old mail again.
	leastRetiring = 7 * day
	// agreed is how many looks in a row decide about a key.
	agreed = 2
)

// verdict is what a look has found of a record.
type verdict int

const (
	unknown   verdict = iota // it is at some servers only, or one has another
	silent                   // some servers have not answered, and the others have it
	published                // all servers have it
	missing                  // all have answered, and none has it
)

// look is the result of a look at the record of a key.
type look struct {
	verdict verdict
	found   string // what is wrong
}

// has reports that there is a key with a selector.
func has(keys []Key, selector string) bool {
	return slices.ContainsFunc(keys, func(k Key) bool { return k.Selector == selector })
}

// of returns the last of a domain's keys that has an algorithm and a state, or nil.
func of(keys []Key, a dkim.Algorithm, s State) *Key {
	for i := range slices.Backward(keys) {
		if keys[i].Algorithm == a && keys[i].State == s {
			return &keys[i]
		}
	}
	return nil
}

// signs returns which of a domain's keys signs with an algorithm, or nil: the active one or, where
// its record is gone, the last that is retiring and has its record.
func signs(keys []Key, a dkim.Algorithm) *Key {
	if k := of(keys, a, Active); k == nil || !k.Gone {
		return k
	}
	for i := range slices.Backward(keys) {
		if k := &keys[i]; k.Algorithm == a && k.State == Retiring && !k.Gone {
			return k
		}
	}
	return nil
}

// overdue returns the algorithms whose active key is so old that the next one is to be made.
func overdue(keys []Key, now time.Time) (list []dkim.Algorithm) {
	for _, a := range dkim.Algorithms() {
		k := of(keys, a, Active)
		if k == nil || k.EveryDays == 0 || of(keys, a, Pending) != nil {
			continue
		}
		if !now.Before(k.NextMade()) {
			list = append(list, a)
		}
	}
	return list
}

// Rotates is when an active key that is rotated has its age.
func (k *Key) Rotates() time.Time { return k.Since.Add(k.every()) }

// NextMade is when the key after an active one is made, if it is rotated.
func (k *Key) NextMade() time.Time { return k.Rotates().Add(-min(ahead, k.every()/2)) }

func (k *Key) every() time.Duration { return time.Duration(k.EveryDays) * day }

// after changes keys by what a look has found, by selector, and returns those that are to be
// deleted. A key without a result stays as it is.
func after(keys []Key, looks map[string]look, now time.Time, retiringFor time.Duration) (deleted []string) {
	for i := range keys {
		k := &keys[i]
		l, looked := looks[k.Selector]
		if !looked {
			continue
		}
		k.LookedAt, k.Found = now, l.found
		switch l.verdict {
		case published:
			k.looks = min(max(k.looks, 0)+1, agreed)
			k.Gone = k.Gone && k.looks < agreed
		case missing:
			k.looks = max(min(k.looks, 0)-1, -agreed)
			k.Gone = k.State != Pending && (k.Gone || k.looks <= -agreed)
		default:
			k.looks = 0
		}
		switch {
		case k.State == Pending && k.looks >= agreed:
			if old := of(keys, k.Algorithm, Active); old != nil {
				old.State, old.Since = Retiring, now
			}
			k.State, k.Since = Active, now
		case k.State == Retired && k.Gone:
			deleted = append(deleted, k.Selector)
		}
	}
	for i := range keys { // what signs in the place of the active key retires from then on
		k := &keys[i]
		switch {
		case k.State != Retiring:
		case signs(keys, k.Algorithm) == k:
			k.Since = now
		case now.Sub(k.Since) >= retiringFor:
			k.State, k.Since = Retired, now
		}
	}
	return deleted
}

// next is when a domain with these keys is to be looked at again.
func next(keys []Key, now time.Time) time.Time {
	wait := day
	for i := range keys {
		k := &keys[i]
		switch {
		case k.State == Pending && (k.looks > 0 || now.Sub(k.CreatedAt) < time.Hour):
			wait = min(wait, time.Minute)
		case k.State == Pending && now.Sub(k.CreatedAt) < day:
			wait = min(wait, 10*time.Minute)
		case k.looks > -agreed && k.looks < agreed && k.State != Retired:
			wait = min(wait, 10*time.Minute)
		case k.State != Retired:
			wait = min(wait, time.Hour)
		}
	}
	return now.Add(wait)
}
