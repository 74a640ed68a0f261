package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Usage is what counts at the moment against limits of a kind and a window.
type Usage struct {
	Scope   ChargeScope
	Subject int64
	Kind    ChargeKind
	Window  time.Duration
	Used    int64
}

// sqlUsage reads what a charge would find (charge_usage in migrations/0005_accounts.sql).
const sqlUsage = `
select x.scope, x.subject, x.kind, x.window_s, coalesce(sum(u.n) filter (where u.at > b.bucket - 62), 0)::bigint
from usage_window x
	cross join lateral (select greatest(floor(extract(epoch from clock_timestamp()) * 60 / x.window_s)::bigint, x.at[cardinality(x.at)]) as bucket) b
	left join lateral unnest(x.at, x.n) u(at, n) on true
where (x.scope, x.subject) in (select 1::smallint, $1::bigint union all select 2::smallint, unnest($2::bigint[]))
group by x.scope, x.subject, x.kind, x.window_s order by x.scope, x.subject, x.kind, x.window_s`

// ReadUsage returns what counts against the limits of a user and of credentials. A limit
// against which nothing was ever charged is not in it.
func ReadUsage(ctx context.Context, db querier, user int64, credentials ...int64) ([]Usage, error) {
	rows, err := db.Query(ctx, sqlUsage, user, credentials)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (u Usage, err error) {
		var seconds int64
		err = row.Scan(&u.Scope, &u.Subject, &u.Kind, &seconds, &u.Used)
		u.Window = time.Duration(seconds) * time.Second
		return u, err
	})
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return list, nil
}

const sqlTryCharge = `
select charge, used, retry_at from charge_usage(array[$1::uuid], false, $2::smallint[], $3::bigint[], $4::smallint[], $5::integer[],
	$6::integer[], $7::integer[], $8::bigint[], $9::bigint[]) where refused`

// TryCharge says which limit would refuse a message now: nil for none. It asks as
// Enqueue does and takes the charge back.
func TryCharge(ctx context.Context, db batcher, limits []Charge, recipients int, size int64) (*OverLimit, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	over, err := tryCharge(ctx, db, &job{m: Message{ID: NewID(), Size: size, Charges: limits}, rcpts: make([]Recipient, recipients)})
	if err != nil {
		return nil, fmt.Errorf("try the limits: %w", err)
	}
	return over, nil
}

// batcher is a connection or a pool.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// tryCharge charges a message and takes it back, in one round trip: nobody waits for
// its locks longer than that. db is in no transaction.
func tryCharge(ctx context.Context, db batcher, j *job) (over *OverLimit, err error) {
	if len(j.m.Charges) == 0 {
		return nil, nil
	}
	var c charges
	c.fill([]*job{j})
	batch := &pgx.Batch{}
	batch.Queue("begin")
	batch.Queue(sqlTryCharge, append([]any{j.m.ID}, c.args()...)...).Query(func(rows pgx.Rows) error {
		var charge int32
		var used int64
		var retryAt *time.Time
		_, err := pgx.ForEachRow(rows, []any{&charge, &used, &retryAt}, func() error {
			over = &OverLimit{Charge: *c.of[charge-1], Used: used, Amount: c.sum[charge-1]}
			if retryAt != nil {
				over.RetryAt = *retryAt
			}
			return nil
		})
		return err
	})
	batch.Queue("rollback")
	if err := db.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("ask the limits: %w", err)
	}
	return over, nil
}
