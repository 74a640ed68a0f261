package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/panics"
	"postern/relay/seal"
)

// callTime bounds each call to the database.
const callTime = 10 * time.Second

// storage is certmagic's storage in Postgres. Keys are paths; values are sealed, and
// bound to their keys.
type storage struct {
	pool   *pgxpool.Pool
	sealer *seal.Sealer
	node   string // whose locks these are, for people who look
	log    *slog.Logger
	guard  *panics.Guard

	lease, renewEvery, pollEvery time.Duration
	loose                        *scope // locks that were taken in no scope
	now                          func() time.Time
	answers                      *answers
}

var (
	_ certmagic.Storage          = (*storage)(nil)
	_ certmagic.TryLocker        = (*storage)(nil)
	_ certmagic.LockLeaseRenewer = (*storage)(nil)
)

func newStorage(cfg Config) *storage {
	return &storage{
		pool: cfg.Pool, sealer: cfg.Sealer, node: cfg.Node, log: cfg.Log, guard: cfg.Guard,
		lease: 30 * time.Second, renewEvery: 10 * time.Second, pollEvery: time.Second,
		loose: newScope(func(error) {}), now: time.Now, answers: newAnswers(),
	}
}

// String keeps the pool and the key out of certmagic's log.
func (s *storage) String() string { return "postgres" }

// call bounds a call to the database.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, callTime, fmt.Errorf("the database did not answer in %s", callTime))
}

// clockApart is how far the clocks of this machine and the database may be apart.
const clockApart = time.Hour

const askClock = `select clock_timestamp()`

// clock is an error when this machine's clock is too far from the database's to judge
// whether a certificate must be renewed.
func (s *storage) clock(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	var theirs time.Time
	before := s.now()
	if err := s.pool.QueryRow(ctx, askClock).Scan(&theirs); err != nil {
		return fmt.Errorf("ask for the database's time: %w", cause(ctx, err))
	}
	after := s.now()
	if theirs.Add(clockApart).Before(before) || theirs.Add(-clockApart).After(after) {
		return fmt.Errorf("the clocks of this machine (%s) and the database (%s) differ, so nothing is ordered: set the wrong one",
			after.UTC().Format(time.RFC3339), theirs.UTC().Format(time.RFC3339))
	}
	return nil
}

// sealedFor is the place for which the value of key is sealed.
func sealedFor(key string) string { return "certificate\x00" + key }

// Sealed describes the values, with the places of sealedFor.
func Sealed() seal.Column {
	return seal.Column{
		Read: `
select array['certificate', key], value
from certificate_store where $1::bytea is null or substr(value, 1, length($1)) <> $1`,
		Write: `update certificate_store set value = $3 where key = ($1::text[])[2] and value = $2`,
	}
}

// putValues writes values while all of the scope's locks are held: a lock's row cannot
// be taken over between the check and the end of the statement.
const putValues = `
with held as (
	select l.name from certificate_lock l
	join unnest($4::text[], $5::bigint[]) h(name, token) on l.name = h.name and l.token = h.token
	where l.expires_at > clock_timestamp() for share of l)
insert into certificate_store (key, value, size)
select v.key, v.value, v.size from unnest($1::text[], $2::bytea[], $3::integer[]) v(key, value, size)
where (select count(*) from held) = cardinality($4::text[])
on conflict (key) do update set value = excluded.value, size = excluded.size, modified_at = clock_timestamp()`

// Store implements certmagic.Storage. In a scope, the three parts of a certificate
// are kept until they are together, and then written together; and nothing is written
// when a lock of the scope is lost: errLeaseLost.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	sc, values := scopeOf(ctx), map[string][]byte{key: value}
	if sc != nil {
		values = sc.gather(key, value)
	}
	if len(values) == 0 {
		return nil
	}
	if err := s.put(ctx, values); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	if sc != nil {
		sc.written()
	}
	return nil
}

func (s *storage) put(ctx context.Context, values map[string][]byte) error {
	var keys []string
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys) // nodes that write the same keys must not deadlock
	sealed, sizes := make([][]byte, len(keys)), make([]int32, len(keys))
	for i, key := range keys {
		var err error
		if sealed[i], err = s.sealer.Seal(sealedFor(key), values[key]); err != nil {
			return err
		}
		sizes[i] = int32(len(values[key]))
	}
	locks, tokens := fence(ctx)
	ctx, cancel := call(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, putValues, keys, sealed, sizes, locks, tokens)
	for _, key := range keys {
		s.answers.forget(key)
	}
	if err != nil {
		return cause(ctx, err)
	}
	if tag.RowsAffected() != int64(len(keys)) {
		return errLeaseLost
	}
	return nil
}

const loadValues = `select key, value from certificate_store where key = any($1)`

// Load implements certmagic.Storage.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	if isAnswer(key) {
		return s.answers.load(ctx, key, s.load)
	}
	return s.load(ctx, key)
}

func (s *storage) load(ctx context.Context, key string) ([]byte, error) {
	values, err := s.get(ctx, key)
	return values[key], err
}

// get loads values that belong together as they were at one time.
func (s *storage) get(ctx context.Context, keys ...string) (map[string][]byte, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	values := map[string][]byte{}
	rows, _ := s.pool.Query(ctx, loadValues, keys)
	var key string
	var sealed []byte
	_, err := pgx.ForEachRow(rows, []any{&key, &sealed}, func() error {
		value, err := s.sealer.Open(sealedFor(key), sealed)
		if err != nil {
			return fmt.Errorf("%w: secret_key_file must be the same on all nodes", err)
		}
		values[key] = value
		return nil
	})
	if err == nil && len(values) < len(keys) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", strings.Join(keys, ", "), cause(ctx, err))
	}
	return values, nil
}

const deleteValues = `
with held as (
	select l.name from certificate_lock l
	join unnest($2::text[], $3::bigint[]) h(name, token) on l.name = h.name and l.token = h.token
	where l.expires_at > clock_timestamp() for share of l)
delete from certificate_store
where (key = $1 or starts_with(key, $1 || '/')) and (select count(*) from held) = cardinality($2::text[])`

const heldLocks = `
select count(*) from certificate_lock l
join unnest($1::text[], $2::bigint[]) h(name, token) on l.name = h.name and l.token = h.token
where l.expires_at > clock_timestamp()`

// Delete implements certmagic.Storage. A lost lock deletes nothing: the value may be the next
// holder's.
func (s *storage) Delete(ctx context.Context, key string) error {
	sc := scopeOf(ctx)
	if sc != nil && sc.forget(key) {
		return nil
	}
	locks, tokens := fence(ctx)
	ctx, cancel := call(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, deleteValues, key, locks, tokens)
	s.answers.forget(key)
	if err == nil && tag.RowsAffected() == 0 && len(locks) > 0 {
		// Nothing there, or nothing held any more?
		var held int
		if err = s.pool.QueryRow(ctx, heldLocks, locks, tokens).Scan(&held); err == nil && held != len(locks) {
			err = errLeaseLost
		}
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, cause(ctx, err))
	}
	return nil
}

// Exists implements certmagic.Storage: false also when the database does not answer.
func (s *storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

const listKeys = `select key from certificate_store where starts_with(key, $1) order by key`

// List implements certmagic.Storage: the files and folders in path, and with
// recursive all below them.
func (s *storage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	prefix := ""
	if path != "" {
		prefix = strings.TrimSuffix(path, "/") + "/"
	}
	rows, _ := s.pool.Query(ctx, listKeys, prefix)
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(keys) == 0 && path != "" {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, cause(ctx, err))
	}
	return entries(keys, prefix, recursive), nil
}

// entries adds the folders that the keys imply.
func entries(keys []string, prefix string, recursive bool) []string {
	seen := map[string]bool{}
	var list []string
	for _, key := range keys {
		parts := strings.Split(strings.TrimPrefix(key, prefix), "/")
		for n := range parts {
			entry := prefix + strings.Join(parts[:n+1], "/")
			if !seen[entry] {
				seen[entry] = true
				list = append(list, entry)
			}
			if !recursive {
				break
			}
		}
	}
	return list
}

const statKey = `
select key, size, modified_at from certificate_store
where key = $1 or starts_with(key, $1 || '/') order by key <> $1, key limit 1`

// Stat implements certmagic.Storage.
func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	var found string
	var info certmagic.KeyInfo
	if err := s.pool.QueryRow(ctx, statKey, key).Scan(&found, &info.Size, &info.Modified); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			err = fs.ErrNotExist
		}
		return info, fmt.Errorf("stat %s: %w", key, cause(ctx, err))
	}
	if found != key {
		return certmagic.KeyInfo{Key: key}, nil
	}
	info.Key, info.IsTerminal = key, true
	return info, nil
}

// cause is err, or why ctx ended when that is what it is about.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); err != nil && why != nil {
		return why
	}
	return err
}
