package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth/audit"
	"postern/internal/pg"
)

// Record is the nodes' shared record of one name.
type Record struct {
	Authority string    `json:"source"` // certmagic's key of the directory
	Name      string    `json:"name"`
	Node      string    `json:"node"` // the last to write this
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"`    // hexadecimal
	NotBefore time.Time `json:"not_before,omitzero"` // zero: none was issued yet
	NotAfter  time.Time `json:"not_after,omitzero"`
	RenewedAt time.Time `json:"renewed_at,omitzero"` // when the last was issued

	Failures     int       `json:"failures"` // in a row
	FailingSince time.Time `json:"failing_since,omitzero"`
	LastError    string    `json:"error,omitempty"`
	NextTry      time.Time `json:"next_try,omitzero"`    // no node orders before
	RenewAsked   time.Time `json:"renew_asked,omitzero"` // by an admin, who need not wait for its time; zero: nobody did
}

// State summarizes the record in a word or two; docs/certificates.md explains them.
func (r Record) State(now time.Time) string {
	switch {
	case r.NotAfter.IsZero():
		return "failing"
	case !now.Before(r.NotAfter):
		return "expired"
	case r.Failures > 0:
		return "renewal failing"
	case !r.RenewAsked.IsZero():
		return "renewal asked"
	}
	return "valid"
}

const columns = `authority, name, node, issuer, serial, coalesce(not_before, 'epoch'), coalesce(not_after, 'epoch'),
	coalesce(renewed_at, 'epoch'), failures, coalesce(failing_since, 'epoch'), last_error, coalesce(next_try_at, 'epoch'), coalesce(renew_asked_at, 'epoch')`

func scanRecord(row pgx.CollectableRow) (Record, error) {
	var r Record
	err := row.Scan(&r.Authority, &r.Name, &r.Node, &r.Issuer, &r.Serial, &r.NotBefore, &r.NotAfter,
		&r.RenewedAt, &r.Failures, &r.FailingSince, &r.LastError, &r.NextTry, &r.RenewAsked)
	for _, t := range []*time.Time{&r.NotBefore, &r.NotAfter, &r.RenewedAt, &r.FailingSince, &r.NextTry, &r.RenewAsked} {
		if t.Unix() == 0 {
			*t = time.Time{}
		}
	}
	return r, err
}

const readRecord = `select ` + columns + ` from certificate_state where authority = $1 and name = $2`

// record reads what is known of a name; nothing is known of one that is new.
func (s *storage) record(ctx context.Context, authority, name string) (Record, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	rows, _ := s.pool.Query(ctx, readRecord, authority, name)
	r, err := pgx.CollectExactlyOneRow(rows, scanRecord)
	if errors.Is(err, pgx.ErrNoRows) {
		return Record{Authority: authority, Name: name}, nil
	}
	if err != nil {
		return r, fmt.Errorf("read the state of the certificate for %s: %w", name, cause(ctx, err))
	}
	return r, nil
}

const recordFailure = `
with held as (
	select l.name from certificate_lock l
	join unnest($7::text[], $8::bigint[]) h(name, token) on l.name = h.name and l.token = h.token
	where l.expires_at > clock_timestamp() for share of l),
told as (insert into event (kind, object, detail)
	select 'certificate.failing', $2::text, jsonb_build_object('authority', $1::text, 'node', $3::text, 'error', $5::text)
	where (select count(*) from held) = cardinality($7::text[])
		and not exists (select from certificate_state c where c.authority = $1 and c.name = $2 and c.failures > 0))
insert into certificate_state as c (authority, name, node, failures, failing_since, last_error, next_try_at)
select $1, $2, $3, 1, $4, $5, $6 where (select count(*) from held) = cardinality($7::text[])
on conflict (authority, name) do update set node = excluded.node, failures = c.failures + 1,
	failing_since = coalesce(c.failing_since, excluded.failing_since),
	last_error = excluded.last_error, next_try_at = excluded.next_try_at`

// failed tells all nodes of a failed order, on behalf of the holder of the name's lock.
func (s *storage) failed(ctx context.Context, r Record) error {
	locks, tokens := fence(ctx)
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	tag, err := s.pool.Exec(ctx, recordFailure, r.Authority, r.Name, s.node, r.FailingSince, storable(r.LastError), r.NextTry, locks, tokens)
	if err == nil && tag.RowsAffected() == 0 {
		err = errLeaseLost
	}
	if err != nil {
		return fmt.Errorf("record a failure: %w", cause(ctx, err))
	}
	return nil
}

const recordSuccess = `
with c as (insert into certificate_state as c (authority, name, node, issuer, serial, not_before, not_after, renewed_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (authority, name) do update set node = excluded.node, issuer = excluded.issuer, serial = excluded.serial,
	not_before = excluded.not_before, not_after = excluded.not_after,
	renewed_at = case when c.serial = excluded.serial then c.renewed_at else excluded.renewed_at end,
	renew_asked_at = case when c.serial = excluded.serial then c.renew_asked_at end,
	failures = 0, failing_since = null, last_error = '', next_try_at = null
where (c.failures > 0 or c.serial <> excluded.serial) and (c.not_before is null or c.not_before <= excluded.not_before)
returning c.renewed_at)
insert into event (kind, object, detail)
select 'certificate.issued', $2, jsonb_build_object('authority', $1::text, 'node', $3::text, 'issuer', $4::text, 'serial', $5::text, 'not_after', $7::timestamptz)
from c where c.renewed_at = $8`

// succeeded tells all nodes that the certificate is in order. Most times they know.
func (s *storage) succeeded(ctx context.Context, authority, name string, leaf *x509.Certificate, now time.Time) error {
	ctx, cancel := call(ctx)
	defer cancel()
	_, err := s.pool.Exec(ctx, recordSuccess, authority, name, s.node, storable(leaf.Issuer.CommonName),
		leaf.SerialNumber.Text(16), leaf.NotBefore, leaf.NotAfter, now)
	if err != nil {
		return fmt.Errorf("record the certificate: %w", cause(ctx, err))
	}
	return nil
}

// storable makes what an authority said fit a text column: it may be a whole page.
func storable(s string) string {
	if len(s) > 2000 {
		s = strings.ToValidUTF8(s[:2000], "") + " …"
	}
	return pg.Storable(s)
}

const listRecords = `select ` + columns + ` from certificate_state order by name, authority`

// List returns the nodes' records of their certificates, for an admin. It needs no key and
// reveals no secret.
func List(ctx context.Context, pool *pgxpool.Pool) ([]Record, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	rows, _ := pool.Query(ctx, listRecords)
	list, err := pgx.CollectRows(rows, scanRecord)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", cause(ctx, err))
	}
	return list, nil
}

const askRenewal = `
update certificate_state set renew_asked_at = clock_timestamp(), next_try_at = case when failures > 0 then clock_timestamp() end
where name = $1`

// AskRenewal makes the nodes renew a certificate before its time, or try a failed order now.
// The audit has it as actor's. It reports false if no node has a record of the name.
func AskRenewal(ctx context.Context, pool *pgxpool.Pool, name, actor string) (known bool, err error) {
	ctx, cancel := call(ctx)
	defer cancel()
	name = strings.ToLower(name)
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, askRenewal, name)
		if known = tag.RowsAffected() > 0; err != nil || !known {
			return err
		}
		return audit.Record(ctx, tx, actor, audit.Deed{Action: "certificate renew", Object: name})
	})
	if err != nil {
		return false, fmt.Errorf("ask for a renewal: %w", cause(ctx, err))
	}
	return known, nil
}
