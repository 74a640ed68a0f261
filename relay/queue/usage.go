package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// Usage is what counts at the moment against limits of a kind and a window.
type Usage struct {
	Scope   ChargeScope
	Subject int64
	Kind    ChargeKind
	Window  time.Duration
	Used    int64
}

var sqlUsage = texts.Bind("usage", "user_id", "credentials")

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

var sqlTryCharge = texts.Bind("try_charge", append([]string{"id"}, pg.Names(new(charges).arguments)...)...)

// TryCharge says which limit would refuse a message now: nil for none. It asks as
// Enqueue does and takes the charge back.
func TryCharge(ctx context.Context, db batcher, limits []Charge, recipients int, size int64) (*OverLimit, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	over, err := tryCharge(ctx, db, &submittal{m: Message{ID: NewID(), Size: size, Charges: limits}, rcpts: make([]Recipient, recipients)})
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
func tryCharge(ctx context.Context, db batcher, j *submittal) (over *OverLimit, err error) {
	if len(j.m.Charges) == 0 {
		return nil, nil
	}
	var c charges
	c.fill([]*submittal{j})
	args := pg.Args{Values: []any{j.m.ID}}
	c.arguments(&args)
	batch := &pgx.Batch{}
	batch.Queue("begin")
	batch.Queue(sqlTryCharge, args.Values...).Query(func(rows pgx.Rows) error {
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
