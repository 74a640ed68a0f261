package auth

import "context"

// rehashQueue bounds how many passwords wait to be hashed again, and so how many are in
// memory. A password without a place is tried again at the next login.
const rehashQueue = 64

// outdatedPassword is a password that has just matched a cheap or imported hash.
type outdatedPassword struct {
	credential int64
	hash       string
	password   string
}

// renew has an outdated hash replaced in time.
func (a *Authenticator) renew(acct account, try loginTry) {
	if try.secret() || !outdated(a.hashOf(acct, try), a.decoy.cost) {
		return
	}
	select {
	case a.outdated <- outdatedPassword{acct.credentialID, acct.hash, try.password}:
	default:
	}
}

// rehash replaces outdated hashes until ctx ends, one at a time, each under a permit.
func (a *Authenticator) rehash(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-a.outdated:
			a.rehashOne(ctx, o)
		}
	}
}

func (a *Authenticator) rehashOne(ctx context.Context, o outdatedPassword) {
	hash := ""
	if err := a.hashing.do(asker{}, func() { hash = hashPassword(o.password, a.decoy.cost) }); err != nil {
		return // busy: at another login
	}
	if err := a.store.replaceHash(ctx, o.credential, o.hash, hash); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot replace an outdated password hash", "credential", o.credential, "error", err)
	}
}

// replaceHash sets a new hash of the same password if the old one is still there. The user's
// version stays: passwords verified by the old one remain valid.
func (s *Store) replaceHash(ctx context.Context, credential int64, old, hash string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.db.Exec(ctx, `
		update credential set hash = $3, updated_at = now()
		where id = $1 and hash = $2 and revoked_at is null`, credential, old, hash)
	return err
}
