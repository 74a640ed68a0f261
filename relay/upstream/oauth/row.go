package oauth

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/seal"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlRead   = texts.Bind("read", "upstream", "credential")
	sqlTake   = texts.Bind("take", "upstream", "credential", "node", "span", "serial")
	sqlStore  = texts.Bind("store", "upstream", "credential", "lease", "was", "sealed", "life")
	sqlFail   = texts.Bind("fail", "upstream", "credential", "lease", "error", "login", "wait")
	sqlLogin  = texts.Bind("login", "upstream", "credential", "sealed", "life")
	sqlStates = texts.Bind("states")
	sqlForget = texts.Bind("forget", "upstream")
)

// callTime bounds one statement.
const callTime = 5 * time.Second

// row is what the nodes know of a token, with spans as of when it was read.
type row struct {
	pair    pair // Life is unused
	serial  int64
	left    time.Duration // until it expires
	life    time.Duration // in all
	age     time.Duration
	failing bool
	error   string        // the last
	login   bool          // a person has to log in
	wait    time.Duration // before any node may ask
	leased  bool
	holder  string
}

// table is the table upstream_token.
type table struct {
	db     pg.DB
	sealer *seal.Sealer
	node   string
}

// place is what a pair is sealed for: it opens for no other account or settings.
func place(upstream, credential string) string {
	return "upstream_token\x00" + upstream + "\x00" + credential
}

// Sealed describes the tokens, with their places.
func Sealed() seal.Column {
	return seal.Column{
		Read: `
select array['upstream_token', upstream, credential], sealed
from upstream_token where sealed is not null and ($1::bytea is null or substr(sealed, 1, length($1)) <> $1)`,
		Write: `update upstream_token set sealed = $3 where upstream = ($1::text[])[2] and credential = ($1::text[])[3] and sealed = $2`,
	}
}

func (t *table) seal(upstream, credential string, p pair) ([]byte, error) {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings only
	}
	return t.sealer.Seal(place(upstream, credential), text)
}

func (t *table) open(upstream, credential string, sealed []byte) (p pair, err error) {
	if sealed == nil {
		return p, nil
	}
	text, err := t.sealer.Open(place(upstream, credential), sealed)
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("open the token of upstream %s: %w", upstream, err)
	}
	return p, nil
}

// read returns the zero row where there is none.
func (t *table) read(ctx context.Context, upstream, credential string) (r row, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var sealed []byte
	err = t.db.QueryRow(ctx, sqlRead, upstream, credential).Scan(&sealed, &r.serial, &r.left, &r.life, &r.age,
		&r.failing, &r.error, &r.login, &r.wait, &r.leased, &r.holder)
	if errors.Is(err, pgx.ErrNoRows) {
		return row{}, nil
	}
	if err != nil {
		return r, fmt.Errorf("read the token of upstream %s: %w", upstream, err)
	}
	r.pair, err = t.open(upstream, credential, sealed)
	return r, err
}

// take takes the lease to get another token than the one with this serial, and returns the
// refresh token to do it with.
func (t *table) take(ctx context.Context, upstream, credential string, serial int64) (lease int64, refresh string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var sealed []byte
	err = t.db.QueryRow(ctx, sqlTake, upstream, credential, t.node, leaseTime, serial).Scan(&lease, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("take the token of upstream %s: %w", upstream, err)
	}
	p, err := t.open(upstream, credential, sealed)
	return lease, p.Refresh, err
}

// store takes what was got under a lease in place of the token with serial was. It returns
// false if there is another token by now.
func (t *table) store(ctx context.Context, upstream, credential string, lease, was int64, p pair) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	sealed, err := t.seal(upstream, credential, p)
	if err != nil {
		return false, err
	}
	tag, err := t.db.Exec(ctx, sqlStore, upstream, credential, lease, was, sealed, p.Life)
	if err != nil {
		return false, fmt.Errorf("store the token of upstream %s: %w", upstream, err)
	}
	return tag.RowsAffected() > 0, nil
}

// fail tells all nodes why there is no new token.
func (t *table) fail(ctx context.Context, upstream, credential string, lease int64, f *Fault) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := t.db.Exec(ctx, sqlFail, upstream, credential, lease, pg.Storable(f.Error()), f.Login, max(CoolDown, f.after)); err != nil {
		return fmt.Errorf("record why upstream %s has no token: %w", upstream, err)
	}
	return nil
}

// State is what is known of an account's token.
type State struct {
	Upstream     string
	ExpiresAt    time.Time // zero: there is none
	FailingSince time.Time // zero: it does not fail
	LastError    string
	Login        bool      // a person has to log in
	NextTry      time.Time // zero: at the next use
}

// States reads the states of accounts; those that have asked for no token yet are left out.
func States(ctx context.Context, db pg.DB, accounts []Account) ([]State, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	wanted := map[string]bool{}
	for _, a := range accounts {
		wanted[a.credential()] = true
	}
	rows, err := db.Query(ctx, sqlStates)
	if err != nil {
		return nil, fmt.Errorf("read the states of tokens: %w", err)
	}
	var list []State
	var s State
	var credential string
	_, err = pgx.ForEachRow(rows, []any{&s.Upstream, &credential, &s.ExpiresAt, &s.FailingSince, &s.LastError, &s.Login, &s.NextTry}, func() error {
		if wanted[credential] {
			for _, at := range []*time.Time{&s.ExpiresAt, &s.FailingSince, &s.NextTry} {
				if at.Unix() == 0 {
					*at = time.Time{}
				}
			}
			list = append(list, s)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the states of tokens: %w", err)
	}
	return list, nil
}

// Forget deletes the tokens of an account, in the transaction that changes its grant.
func Forget(ctx context.Context, tx pgx.Tx, upstream string) error {
	if _, err := tx.Exec(ctx, sqlForget, upstream); err != nil {
		return fmt.Errorf("forget the tokens of upstream %s: %w", upstream, err)
	}
	return nil
}
